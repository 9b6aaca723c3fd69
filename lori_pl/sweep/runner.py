"""Runs the cells of a sweep and keeps the table of their results; any number of workers may share the cells.

``results.csv`` has one row a run that ended, well or not, and ``correct.npz`` the per-problem outcomes of the runs that
leave them, ``correct_SET.npz`` those on a further test set; the sweep's folder holds ``cells/ID/`` with each run's
folder, its output in ``log.txt``. A cell is done when it has a row with status ``ok``; the row is written last. A run
that was stopped with its sweep goes on from its checkpoint, if the code is the same, and so does one that was killed. A
worker holds a lock on the cell that it runs, so on one file system with locks no cell is run twice.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from lori_pl.errors import LoriError
from lori_pl.files import FolderBusy
from lori_pl.run_files import RESULTS
from lori_pl.sweep.cell_runner import CellRunner, Runner, Settled
from lori_pl.sweep.cells import Cell, CellMaker, expand, grid_points, uncalled
from lori_pl.sweep.child import LOG, progress_file, run_child
from lori_pl.sweep.compared import comparisons
from lori_pl.sweep.display import best_of, duration, results_table
from lori_pl.sweep.fields import SWEEP_COLUMNS
from lori_pl.sweep.progress import read_progress
from lori_pl.sweep.search import Proposal, Study
from lori_pl.sweep.specification import SweepSpecification
from lori_pl.sweep.table import SweepTable
from lori_pl.tables import print_whole, say


def settled_states(retry_failed: bool) -> set[str]:
    """The status of cells that are not to be run.

    Args:
        retry_failed: Whether failed ones are run again.
    """
    return {"ok"} if retry_failed else {"ok", "failed"}


class Sweep:
    """A sweep and the state of its folder.

    Args:
        specification: What to run.
        runner: Runs one command; by default `run_child`.
        console: Where progress is printed.

    Raises:
        LoriError: As `lori_pl.sweep.cells.expand` and `SweepTable.rows`.
    """

    def __init__(
        self, specification: SweepSpecification, runner: Runner | None = None, console: Console | None = None
    ) -> None:
        self.specification = specification
        self.output = specification.output
        expanded = expand(specification)
        self.cells = [] if specification.search is not None else expanded
        columns = [*SWEEP_COLUMNS, *specification.columns, *specification.metrics]
        self.table = SweepTable(specification.results / RESULTS, columns)
        self._console = console or Console()
        self.runner = CellRunner(specification, self.table, runner or run_child, self._console, self.title, self.say)
        self._maker = CellMaker(specification)

    def results(self) -> dict[str, dict[str, str]]:
        """The last row of each of the sweep's cells that has one, by cell id."""
        rows = {row.get("cell", ""): row for row in self.table.rows()}
        return {cell.id: rows[cell.id] for cell in self.cells if cell.id in rows}

    def status(self, cell: Cell, results: dict[str, dict[str, str]]) -> str:
        """``ok``, ``failed`` or ``to run``."""
        return results[cell.id]["status"] if cell.id in results else "to run"

    def folder(self, cell: Cell) -> Path:
        """Where the cell's run writes."""
        return self.runner.folder(cell)

    def studies(self, looks: bool = False) -> list[Study]:
        """The searches, one a point of the grid; their trials so far become the sweep's cells.

        Args:
            looks: Make none that is not there.

        Raises:
            LoriError: If the storage fails.
        """
        search = self.specification.search
        if search is None:
            return []
        studies = [Study(self.specification, point, looks) for point in grid_points(self.specification)]
        cells: dict[str, Cell] = {}
        for place, study in enumerate(studies):
            for trial in study.trials():
                for cell in self._cells_of(place, study, trial.number, trial.point):
                    cells.setdefault(cell.id, cell)  # two trials may have one point
        self.cells = list(cells.values())
        return studies

    def _cells_of(self, place: int, study: Study, number: int, point: dict[str, Any]) -> list[Cell]:
        """The cells of a trial, one a seed, numbered over all studies."""
        seeds = self.specification.seeds
        first = (place * study.search.trials + number) * len(seeds)
        return [self._maker.make(first + i + 1, study.point | point, seed) for i, seed in enumerate(seeds)]

    def still_open(self, studies: Sequence[Study]) -> tuple[set[str], int]:
        """Of searches the ids of the cells whose trial has not ended, and how many cells come with further trials.

        Args:
            studies: The searches that are begun.
        """
        search, seeds = self.specification.search, len(self.specification.seeds)
        assert search is not None
        begun = [(place, study, trial) for place, study in enumerate(studies) for trial in study.trials()]
        open_ids = {
            cell.id
            for place, study, trial in begun
            if trial.state == "running"
            for cell in self._cells_of(place, study, trial.number, trial.point)
        }
        return open_ids, seeds * (len(grid_points(self.specification)) * search.trials - len(begun))

    @property
    def total(self) -> int:
        """How many cells there are, or will be."""
        search = self.specification.search
        if search is None:
            return len(self.cells)
        return len(grid_points(self.specification)) * search.trials * len(self.specification.seeds)

    @property
    def is_begun(self) -> bool:
        """Whether a worker has made the sweep's folder."""
        return self.output.is_dir()

    # ---- running ----------------------------------------------------------------------------------------------------

    def run(self, retry_failed: bool = False, only: int | None = None) -> int:
        """Run what is not done yet and is not at work elsewhere.

        Args:
            retry_failed: Run the cells again whose last row says ``failed``.
            only: Number of the one cell to run.

        Returns:
            How many runs failed in this call.

        Raises:
            LoriError: There is no cell of that number; or a test takes the student of another sweep's run, which is not
                there.
            KeyboardInterrupt: Ctrl-C; the run is ended, and its cell has no row.
        """
        skipped = settled_states(retry_failed)
        if self.specification.search is not None:
            return self._run_searches(skipped, only)
        return self._run_grid(skipped, only)

    def _run_grid(self, skipped: set[str], only: int | None) -> int:
        seen = Counter(row.get("cell", "") for row in self.table.rows())
        results = self._renew(self.results())
        selected = self.selected(only)
        waiting = [cell for cell in selected if self.status(cell, results) not in skipped]
        self.runner.check_students(waiting)
        self._announce(selected, waiting, results)
        failed, busy, left = 0, [], deque(waiting)
        while left:
            if not self._has_student(cell := left.popleft()):
                continue
            try:
                settled = self.runner.settle(cell, seen[cell.id])
            except FolderBusy:
                # once more behind the others: perhaps somebody only looked, or was ended
                if cell not in busy:
                    busy.append(cell)
                    left.append(cell)
                continue
            if settled.is_new:
                failed += settled.row["status"] == "failed"
                self._report(cell, settled.row, left, skipped)
        results = self.results()
        if busy := [cell for cell in busy if self.status(cell, results) not in skipped]:
            numbers = ", ".join(str(cell.number) for cell in busy)
            self.say(f"at work elsewhere (another worker, or a run that a killed one left behind): cells {numbers}")
        if untested := [cell for cell in waiting if self.status(cell, results) == "to run" and cell not in busy]:
            numbers = ", ".join(str(cell.number) for cell in untested)
            self.say(f"not tested, since the run of their student has not come to its end: cells {numbers}")
        return failed

    def _renew(self, results: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        """The rows so far, once they have what the file asks for since they were made."""
        rows, known = self.runner.rows, [cell for cell in self.cells if cell.id in results]
        for _ in range(2):  # two may change names: the one waits for the other's
            results = {cell.id: rows.renew(cell, results[cell.id], self.folder(cell)) for cell in known}
        return results

    def _has_student(self, cell: Cell) -> bool:
        """Whether the run has ended whose student a cell tests; true of a run."""
        # read anew: the run may have ended a moment ago, here or elsewhere
        return cell.of is None or self.results().get(cell.of, {}).get("status") == "ok"

    def _run_searches(self, skipped: set[str], only: int | None) -> int:
        search = self.specification.search
        assert search is not None
        if only is not None:
            raise LoriError(f"{self.specification.file}: --only takes a cell of a grid, and here a search finds them")
        failed = 0
        studies = self.studies()
        self._renew(self.results())
        self.say(f"sweep {self.specification.name}: {len(studies)} searches in {self.output}")
        for place, study in enumerate(studies):
            end = time.monotonic() + (search.hours or float("inf")) * 3600
            while time.monotonic() < end:
                with study.proposal() as proposal:
                    if proposal is None:
                        break
                    failed += self._try(place, study, proposal, skipped)
            self.say(best_of(study))
        self.studies()
        return failed

    def _try(self, place: int, study: Study, proposal: Proposal, skipped: set[str]) -> int:
        """Runs a trial's cells until one fails; gives how many failed here."""
        cells = self._cells_of(place, study, proposal.number, proposal.point)
        known = {cell.id for cell in self.cells}
        self.cells += [cell for cell in cells if cell.id not in known]
        values: list[float] = []
        for cell in cells:
            rows = self.table.of(cell.id)
            if rows and rows[-1]["status"] in skipped:
                settled = Settled(self.runner.rows.renew(cell, rows[-1], self.folder(cell)), False)
            else:
                # another trial of the same point may be at it
                settled = self.runner.settle(cell, len(rows), wait=True, locks=(proposal.lock,))
            row: dict[str, Any] = settled.row
            if settled.is_new:
                self._report(cell, row)
            if row["status"] == "failed":
                study.end(proposal.number, None)
                return int(settled.is_new)
            try:
                values.append(float(row.get(study.search.metric, "")))
            except (TypeError, ValueError) as error:  # the trial stays open: the next start asks for no other
                raise LoriError(
                    f"{self.specification.file}, field 'search.metric': the run {self.folder(cell)} has no number "
                    f"'{study.search.metric}' in its summary.json; name another metric"
                ) from error
        study.end(proposal.number, fmean(values))
        return 0

    def selected(self, only: int | None) -> list[Cell]:
        """The one cell of a number, or all.

        Raises:
            LoriError: There is no such cell.
        """
        if only is None:
            return self.cells
        if not 1 <= only <= len(self.cells):
            raise LoriError(f"{self.specification.file}: there is no cell {only}; --only takes 1 to {len(self.cells)}")
        return [self.cells[only - 1]]

    def examples(self, only: int | None = None, skipped: Collection[str] = ()) -> list[Cell]:
        """Cells whose options are to be looked at before any is run; of a search that is not begun, one at an end.

        Args:
            only: Number of the one cell to look at.
            skipped: Leave out cells of this status.

        Raises:
            LoriError: There is no such cell.
        """
        if (search := self.specification.search) is None:
            results = self.results()
            waiting = [cell for cell in self.selected(only) if self.status(cell, results) not in skipped]
            # a row that is taken over is a run of its own day
            return [cell for cell in waiting if not skipped or self.runner.rows.recorded(cell) is None]
        if skipped and self.is_begun and any(study.trials() for study in self.studies(looks=True)):
            return []
        end = {key: space[0] if isinstance(space, list) else space.least for key, space in search.space.items()}
        seed = self.specification.seeds[0]
        return [self._maker.make(1, point | end, seed) for point in grid_points(self.specification)]

    def _announce(self, selected: list[Cell], waiting: list[Cell], results: dict[str, dict[str, str]]) -> None:
        failed = sum(self.status(cell, results) == "failed" for cell in selected if cell not in waiting)
        self.say(
            f"sweep {self.specification.name}: {len(waiting)} of {len(selected)} cells to run in {self.output}"
            + (f" ({failed} failed before; --retry_failed runs them again)" if failed else "")
        )
        if line := uncalled(self.specification, self.cells):
            self.say(line)
        self._tell_missing_metrics(selected, waiting, results)

    def _tell_missing_metrics(
        self, selected: list[Cell], waiting: list[Cell], results: dict[str, dict[str, str]]
    ) -> None:
        rows, lacking = self.runner.rows, dict[str, list[str]]()
        for cell in selected:
            if cell.test is not None:  # what only a training has is no fault of theirs
                continue
            if cell in waiting:
                if rows.recorded(cell) is None and (found := rows.without_metrics(cell)) is not None:
                    reason = f"run here, since {found[0] / RESULTS} has their row without {', '.join(found[1])}"
                    lacking.setdefault(reason, []).append(str(cell.number))
            elif results[cell.id]["status"] == "ok" and (missing := rows.missing(results[cell.id])):
                reason = f"their rows have no {', '.join(missing)}, and no summary.json at hand has it"
                lacking.setdefault(reason, []).append(str(cell.number))
        for reason, numbers in lacking.items():
            self.say(f"cell{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {reason}")

    def seconds_left(
        self, waiting: Sequence[Cell], results: Mapping[str, Mapping[str, str]], workers: int, further_runs: int = 0
    ) -> float | None:
        """About how long cells will take, by the mean time of those that ended well; ``None`` where that says nothing.

        Trainings and tests of students have a mean each; where none of a kind has ended, it is that of all. A training
        that has begun counts by the steps that are left. What tests the student of a failed run takes no time, nor does
        a row that will be taken over from another sweep.

        Args:
            waiting: Cells that have not ended.
            results: The rows so far, by cell id.
            workers: How many cells are at work at a time; 0 counts as 1.
            further_runs: Trainings that have no cell yet.
        """
        failed = {id for id, row in results.items() if row["status"] == "failed"}
        waiting = [cell for cell in waiting if cell.of not in failed and self.runner.rows.recorded(cell) is None]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for cell in self.cells:
            if (row := results.get(cell.id)) is not None and row["status"] == "ok":
                seconds[cell.test is not None].append(float(row["seconds"]))
        ended = [*seconds[False], *seconds[True]]
        if not ended or not (waiting or further_runs):
            return None
        tests = sum(cell.test is not None for cell in waiting)
        runs = further_runs + sum(self._share_left(cell) for cell in waiting if cell.test is None)
        return (runs * fmean(seconds[False] or ended) + tests * fmean(seconds[True] or ended)) / max(workers, 1)

    def _share_left(self, cell: Cell) -> float:
        """What is left of a cell's training, by the step that it came to: 1 of one that has not begun."""
        found = read_progress(progress_file(self.folder(cell) / LOG))
        return 1.0 if found is None or not found[1] else 1.0 - found[0] / found[1]

    def _report(
        self, cell: Cell, row: dict[str, Any], others: Iterable[Cell] = (), skipped: Collection[str] = ()
    ) -> None:
        results = self.results()
        left = [each for each in others if self.status(each, results) not in skipped]
        # those of other workers, and the next one here
        workers = 1 + sum(self.runner.is_at_work(each) for each in left)
        seconds = self.seconds_left(left, results, min(workers, len(left)))
        eta = "" if seconds is None else f"  ETA {duration(seconds)}"
        outcome = f"accuracy {row['accuracy']:.4f}" if row["status"] == "ok" else f"failed: {row['reason']}"
        wanted = self.specification.metrics if row["status"] == "ok" and cell.test is None else ()
        if missing := [metric for metric in wanted if metric not in row]:
            outcome += f" (no {', '.join(missing)} in summary.json)"
        self.say(f"{self.title(cell)}  {outcome}  {duration(row['seconds'])}{eta}")

    def title(self, cell: Cell) -> str:
        """A cell's place and what sets it apart."""
        return f"[{cell.number}/{self.total}] {cell.description()}"

    def show_table(self) -> None:
        """Print the rows so far, and the differences that the file asks for."""
        results = self.results()
        if not results:
            return
        rows = [results[cell.id] for cell in self.cells if cell.id in results]
        print_whole(results_table(str(self.table.path), rows, self.specification.metrics), self._console)
        for line in comparisons(self.specification, [row for row in rows if row["status"] == "ok"]):
            self.say(line)
        if others := {row.get("cell") or row["method"] for row in self.table.rows()} - {cell.id for cell in self.cells}:
            self.say(f"{self.table.path} has rows of {len(others)} other cells, which this file does not have")

    def say(self, line: str) -> None:
        """Prints a line."""
        say(line, self._console)
