"""Runs the cells of a sweep and keeps the table of their results; any number of workers may share the cells.

``results.csv`` has one row a run that ended, well or not, and ``correct.npz`` the per-problem outcomes of the runs that
leave them; the sweep's folder holds ``cells/ID/`` with each run's folder, its output in ``log.txt``. A cell is done
when it has a row with status ``ok``; the row is written last. A run that was stopped with its sweep goes on from its
checkpoint, if the code is the same; one that was killed is run again. A worker holds a lock on the cell that it runs,
so on one file system with locks no cell is run twice.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from lori_pl.errors import LoriError
from lori_pl.evaluation.comparison import compare
from lori_pl.evaluation.records import (
    RESULT_COLUMNS,
    Outcomes,
    ResultTable,
    git_commit,
    read_outcomes,
    write_outcomes,
)
from lori_pl.files import FolderBusy, lock_folder, replace_file
from lori_pl.sweep.cells import Cell, CellMaker, expand, grid_points
from lori_pl.sweep.child import ChildResult, failure_reason, progress_file, run_child
from lori_pl.sweep.display import best_of, duration, results_table, shown
from lori_pl.sweep.progress import progress_line
from lori_pl.sweep.search import Proposal, Study
from lori_pl.sweep.specification import SWEEP_COLUMNS, SweepSpecification
from lori_pl.sweep.summary import read_summary

Runner = Callable[..., ChildResult]
"""Runs a command with its output in a file, and descriptors that it inherits; `run_child` is the real one."""

INTERRUPTED = "interrupted.json"
"""In a cell's folder: the commit, and the seconds so far, of a run that was stopped with its sweep."""


class Sweep:
    """A sweep and the state of its folder.

    Args:
        specification: What to run.
        runner: Runs one command; by default `run_child`.
        console: Where progress is printed.

    Raises:
        LoriError: As `lori_pl.sweep.cells.expand` and `ResultTable.rows`.
    """

    def __init__(
        self, specification: SweepSpecification, runner: Runner | None = None, console: Console | None = None
    ) -> None:
        self.specification = specification
        self.output = specification.output
        expanded = expand(specification)
        self.cells = [] if specification.search is not None else expanded
        columns = [*SWEEP_COLUMNS, *specification.axes, *specification.metrics]
        self.table = ResultTable(specification.results / "results.csv", columns)
        self._runner = runner or run_child
        self._console = console or Console()
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
        return self.output / "cells" / cell.id

    def studies(self) -> list[Study]:
        """The searches, one a point of the grid; their trials so far become the sweep's cells."""
        search = self.specification.search
        if search is None:
            return []
        studies = [Study(self.specification, point) for point in grid_points(self.specification)]
        self.cells = [
            cell
            for place, study in enumerate(studies)
            for trial in study.trials()
            for cell in self._cells_of(place, study, trial.number, trial.point)
        ]
        return studies

    def _cells_of(self, place: int, study: Study, number: int, point: dict[str, Any]) -> list[Cell]:
        """The cells of a trial, one a seed, numbered over all studies."""
        seeds = self.specification.seeds
        first = (place * study.search.trials + number) * len(seeds)
        return [self._maker.make(first + i + 1, study.point | point, seed) for i, seed in enumerate(seeds)]

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

    def is_at_work(self, cell: Cell) -> bool:
        """Whether a worker is at a cell."""
        try:
            if not self._lock_place(cell).is_dir():
                return False
            with self._lock(cell):
                return False
        except FolderBusy:
            return True

    # ---- running ----------------------------------------------------------------------------------------------------

    def run(self, retry_failed: bool = False, only: int | None = None) -> int:
        """Run what is not done yet and is not at work elsewhere.

        Args:
            retry_failed: Run the cells again whose last row says ``failed``.
            only: Number of the one cell to run.

        Returns:
            How many runs failed in this call.

        Raises:
            LoriError: There is no cell of that number.
            KeyboardInterrupt: Ctrl-C; the run is ended, and its cell has no row.
        """
        skipped = {"ok"} if retry_failed else {"ok", "failed"}
        if self.specification.search is not None:
            return self._run_searches(skipped, only)
        return self._run_grid(skipped, only)

    def _run_grid(self, skipped: set[str], only: int | None) -> int:
        results = self.results()
        selected = self.selected(only)
        waiting = [cell for cell in selected if self.status(cell, results) not in skipped]
        self._announce(selected, waiting, results)
        failed, busy = 0, []
        for position, cell in enumerate(waiting):
            try:
                row = self._settle(cell, skipped, len(waiting) - position - 1)
            except FolderBusy:
                busy.append(cell)
                continue
            failed += row["status"] == "failed" and not row.get("from_elsewhere", False)
        if busy := [cell for cell in busy if cell.id not in self.results()]:
            numbers = ", ".join(str(cell.number) for cell in busy)
            self.say(f"at work elsewhere (another worker, or a run that a killed one left behind): cells {numbers}")
        return failed

    def _run_searches(self, skipped: set[str], only: int | None) -> int:
        search = self.specification.search
        assert search is not None
        if only is not None:
            raise LoriError(f"{self.specification.file}: --only takes a cell of a grid, and here a search finds them")
        end = time.monotonic() + (search.hours or float("inf")) * 3600
        failed = 0
        studies = self.studies()
        self.say(f"sweep {self.specification.name}: {len(studies)} searches in {self.output}")
        for place, study in enumerate(studies):
            while time.monotonic() < end:
                with study.proposal() as proposal:
                    if proposal is None:
                        break
                    failed += self._try(place, study, proposal, skipped)
            self.say(best_of(study))
        self.studies()
        return failed

    def _try(self, place: int, study: Study, proposal: Proposal, skipped: set[str]) -> int:
        """Runs a trial's cells; gives how many failed."""
        cells = self._cells_of(place, study, proposal.number, proposal.point)
        known = {cell.id for cell in self.cells}
        self.cells += [cell for cell in cells if cell.id not in known]
        rows = []
        for cell in cells:
            try:
                rows.append(self._settle(cell, skipped, 0, proposal.lock))
            except FolderBusy:  # two trials of one point
                break
        values = [row.get(study.search.metric) for row in rows if row["status"] == "ok"]
        if len(values) < len(cells) or any(value in (None, "") for value in values):
            study.end(proposal.number, None)
        else:
            study.end(proposal.number, fmean(float(value) for value in values if value is not None))
        return sum(row["status"] == "failed" and not row.get("from_elsewhere", False) for row in rows)

    def _settle(self, cell: Cell, skipped: set[str], remaining: int, *locks: int) -> dict[str, Any]:
        """Runs a cell, unless another worker has done so meanwhile, and reports it; gives its row.

        Raises:
            FolderBusy: If another worker is at it.
        """
        # a run inherits the lock: an orphan of a killed sweep holds it too
        with self._lock(cell) as lock:
            row = self.results().get(cell.id)
            if row is not None and row["status"] in skipped:
                return {**row, "from_elsewhere": True}
            if (found := self._reused(cell)) is not None:
                return found
            try:
                made = self._run_cell(cell, functools.partial(self._runner, keep_open=(lock, *locks)))
            except KeyboardInterrupt:
                self.say(f"stopped in cell {cell.number}; the same command goes on from there")
                raise
        self._report(cell, made, remaining)
        return made

    def _reused(self, cell: Cell) -> dict[str, Any] | None:
        """Takes over the row of the very same run, and its outcomes, from another sweep."""
        for folder in self.specification.reuse:
            rows = [row for row in ResultTable(folder / "results.csv").rows() if row.get("cell") == cell.id]
            if not rows or rows[-1]["status"] != "ok":
                continue
            row: dict[str, Any] = {**rows[-1], **cell.columns()}
            known = {*RESULT_COLUMNS, *SWEEP_COLUMNS, *self.specification.axes, *self.specification.metrics}
            row = {column: value for column, value in row.items() if column in known}
            path = folder / "correct.npz"
            bits = read_outcomes(path).bits.get((row["method"], cell.seed)) if path.exists() else None
            with self._results_held():
                if bits is not None:
                    ids = read_outcomes(path).ids
                    write_outcomes(self.specification.results / "correct.npz", ids, bits, row["method"], cell.seed)
                self.table.append(row)
            self.say(f"{self.title(cell)}  accuracy {float(row['accuracy']):.4f}  as {row['method']} in {folder}")
            return row
        return None

    def _lock_place(self, cell: Cell) -> Path:
        # not in the cell's folder, which is removed where a run begins anew
        return self.output / "locks" / cell.id

    def _lock(self, cell: Cell) -> Any:
        return lock_folder(self._lock_place(cell), "another worker, or a run that a killed one left behind, is at it")

    def _run_cell(self, cell: Cell, runner: Callable[[Sequence[str], Path], ChildResult]) -> dict[str, Any]:
        folder, commit = self.folder(cell), git_commit()
        before = _interrupted(folder, commit)
        if before is None:
            # What a failed run, or one of other code, left there would be taken for this one's.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        command = cell.command(folder)
        log, start = folder / "log.txt", time.monotonic()
        try:
            with progress_line(self._console, self.title(cell), progress_file(log)):
                result = runner([*command, *([] if before is None else ["--ckpt_path=auto"])], log)
        except KeyboardInterrupt:
            seconds = (before or 0.0) + time.monotonic() - start
            text = json.dumps({"commit": commit, "seconds": seconds})
            replace_file(folder / INTERRUPTED, lambda file: file.write(text.encode()))
            raise
        row: dict[str, Any] = {
            "seed": cell.seed,
            "commit": commit,
            "command": shown(command),
            "cell": cell.id,
            "seconds": round((before or 0.0) + result.seconds, 2),
            "peak_memory_mib": round(result.peak_memory_mib, 1),
            **cell.columns(),
        }
        sweep = self.specification
        try:
            if result.exit_code != 0:
                raise LoriError(failure_reason(result.exit_code, log))
            method, measured = read_summary(folder / "summary.json", sweep.metrics)
            label = cell.label(sweep.label, sweep.name, method)
            self._keep_outcomes(folder / "correct.npz", label, cell.seed)
            row |= {"method": label, "status": "ok", **measured}
            self._link(cell, label)
        except LoriError as error:
            row |= {"method": cell.label(sweep.label, sweep.name, "?"), "status": "failed", "reason": str(error)}
        with self._results_held():
            self.table.append(row)
        return row

    def _link(self, cell: Cell, label: str) -> None:
        """Lets a finished run be found by its name and seed, too."""
        name = re.sub(r"[^\w.,=+\[\]-]+", "_", label)[:100]
        link = self.output / "by_name" / f"{name}_seed{cell.seed}"
        link.parent.mkdir(exist_ok=True)
        with suppress(OSError):  # some file systems have no links
            new = link.with_name(f".{cell.id}")
            new.symlink_to(Path("..") / "cells" / cell.id)
            os.replace(new, link)

    def _results_held(self) -> Any:
        return lock_folder(self.specification.results, "", wait=True)

    def _keep_outcomes(self, path: Path, label: str, seed: int) -> None:
        if not path.exists():
            return
        outcomes = read_outcomes(path)
        if len(outcomes.bits) != 1:
            raise LoriError(f"{path}: {len(outcomes.bits)} outcomes, but a cell is one run of one method")
        (bits,) = outcomes.bits.values()
        try:
            with self._results_held():
                write_outcomes(self.specification.results / "correct.npz", outcomes.ids, bits, label, seed)
        except LoriError as error:
            # A sweep over data has other problems in each cell; the run is none the worse for it.
            self.say(f"the outcomes stay in {path}: {error}")

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

    def _announce(self, selected: list[Cell], waiting: list[Cell], results: dict[str, dict[str, str]]) -> None:
        failed = sum(self.status(cell, results) == "failed" for cell in selected if cell not in waiting)
        self.say(
            f"sweep {self.specification.name}: {len(waiting)} of {len(selected)} cells to run in {self.output}"
            + (f" ({failed} failed before; --retry_failed runs them again)" if failed else "")
        )

    def _report(self, cell: Cell, row: dict[str, Any], remaining: int) -> None:
        seconds = [float(done["seconds"]) for done in self.results().values() if done["status"] == "ok"]
        eta = ""
        if remaining and seconds:
            eta = f"  ETA {duration(remaining * sum(seconds) / len(seconds))}"
        outcome = f"accuracy {row['accuracy']:.4f}" if row["status"] == "ok" else f"failed: {row['reason']}"
        if missing := [metric for metric in self.specification.metrics if row["status"] == "ok" and metric not in row]:
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
        self._console.print(results_table(str(self.table.path), rows, self.specification.metrics))
        for line in self.comparisons():
            self.say(line)

    def comparisons(self) -> list[str]:
        """A line for each pair of the file's ``compare``: the difference of what was recorded with its intervals."""
        path = self.specification.results / "correct.npz"
        if not self.specification.compare or not path.exists():
            return []
        outcomes = read_outcomes(path)
        # the file may hold those of cells that the sweep no longer has
        done = {(row["method"], int(row["seed"])) for row in self.results().values() if row["status"] == "ok"}
        outcomes = Outcomes(outcomes.ids, {key: bits for key, bits in outcomes.bits.items() if key in done})
        lines = []
        for first, second in self.specification.compare:
            try:
                lines.append(str(compare(outcomes, first, second)))
            except LoriError as error:
                lines.append(f"{first} - {second}: {error}")
        return lines

    def say(self, line: str) -> None:
        """Prints a line."""
        # A label such as lori[rank=8] is no markup.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _interrupted(folder: Path, commit: str) -> float | None:
    """Seconds that a cell's run had taken when its sweep was stopped, if the same code may go on with it."""
    path = folder / INTERRUPTED
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        seconds = float(noted["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path.unlink()
    return seconds if noted["commit"] == commit and commit.isalnum() and commit != "unknown" else None
