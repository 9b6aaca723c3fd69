"""Runs one cell of a sweep, once among all workers, and leaves its row, its outcomes and a link to it."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import (
    RESULT_COLUMNS,
    Outcomes,
    ResultTable,
    code_digest,
    git_commit,
    read_outcomes,
    write_outcomes,
)
from lori_pl.files import FolderBusy, lock_folder
from lori_pl.run_files import CELLS, CHECKPOINTS, MACHINE, OUTCOMES, RESULTS, STUDENT, SUMMARY, further_outcomes
from lori_pl.sweep.begun import BEGUN, commit_of, note_begun, seconds_before
from lori_pl.sweep.cells import Cell, folder_of
from lori_pl.sweep.child import LOG, ChildResult, failure_reason, progress_file
from lori_pl.sweep.display import shown
from lori_pl.sweep.fields import SWEEP_COLUMNS
from lori_pl.sweep.progress import progress_line, read_machine
from lori_pl.sweep.specification import SweepSpecification
from lori_pl.sweep.summary import read_summary

Runner = Callable[..., ChildResult]
"""Runs a command with its output in a file, and descriptors that it inherits; `run_child` is the real one."""

PAUSE = 0.2
"""Seconds after which a busy cell is tried once more: who only looks holds it for a moment."""


@dataclass(frozen=True)
class Settled:
    """A cell that has its row.

    Args:
        row: The row.
        is_new: Whether it was made here and now, and not by another worker meanwhile.
    """

    row: dict[str, Any]
    is_new: bool


class CellRunner:
    """Runs cells of a sweep.

    Args:
        specification: The sweep.
        table: Its table of results.
        runner: Runs one command.
        console: Where the running cell's progress is shown.
        title: Names a cell.
        say: Prints a line.
    """

    def __init__(
        self,
        specification: SweepSpecification,
        table: ResultTable,
        runner: Runner,
        console: Console,
        title: Callable[[Cell], str],
        say: Callable[[str], None],
    ) -> None:
        self.specification, self.table = specification, table
        self.output, self.results_folder = specification.output, specification.results
        self._runner, self._console, self._title, self._say = runner, console, title, say

    def folder(self, cell: Cell) -> Path:
        """Where the cell's run writes."""
        return self.output / CELLS / cell.id

    def command(self, cell: Cell) -> list[str]:
        """The command line that runs a cell; a test's takes its student from wherever it is."""
        places = [] if cell.test is None else self._students(cell)
        student = next((place for place in places if place.is_dir()), None)
        return replace(cell, student=student).command(self.folder(cell))

    def check_students(self, cells: Sequence[Cell]) -> None:
        """Looks for the students of other sweeps' runs that are to be tested, before anything runs.

        Args:
            cells: What is to be run.

        Raises:
            LoriError: One is not there.
        """
        for cell in cells:
            if cell.test is None or self.recorded(cell) is not None:
                continue
            places = self._students(cell)
            if any(place.is_dir() for place in places):
                continue
            begins = (
                f"{self.specification.file}, field 'tests': cell {cell.number} tests the student of run {cell.of}, "
                "whose row "
            )
            if len(places) > 1:
                raise LoriError(
                    f"{begins}is another sweep's, and there is none in {' or '.join(map(str, places[1:]))}; bring it "
                    "there, or let the run be made here (without 'reuse', and without its row if it has one), or leave "
                    "the tests out"
                )
            if self._recorded_here(cell) is not None:  # a run that is still to be made leaves one, or a reason
                raise LoriError(
                    f"{begins}stands in {self.table.path}, and there is none in {places[0]}; bring it there, or make "
                    "all anew with another 'output' and 'results' (--override output=DIR --override results=DIR)"
                )

    def _students(self, cell: Cell) -> list[Path]:
        """Where the student may be that a test takes: here, and where a run lies whose row was taken over."""
        assert cell.of is not None
        own = self.output / CELLS / cell.of
        found = self._recorded_here(cell)
        if found is None and (known := self.recorded(cell.of)) is not None:
            found = known[1]
        root = None if found is None else folder_of(found["command"])
        others = (
            [] if root in (None, own) else [root, *(folder / CELLS / cell.of for folder in self.specification.reuse)]
        )
        return [folder / STUDENT for folder in dict.fromkeys([own, *others])]

    def _recorded_here(self, cell: Cell) -> dict[str, str] | None:
        """The row of the run whose student a test takes, where this sweep has it."""
        rows = rows_of(cell.of or "", self.table)
        return rows[-1] if rows and rows[-1]["status"] == "ok" else None

    def is_at_work(self, cell: Cell) -> bool:
        """Whether a worker is at a cell."""
        try:
            if not self._lock_place(cell).is_dir():
                return False
            with self._lock(cell):
                return False
        except FolderBusy:
            return True

    def settle(self, cell: Cell, seen: int, wait: bool = False, locks: Sequence[int] = ()) -> Settled:
        """Runs a cell, or takes the row that it got since the caller looked.

        Args:
            cell: The cell.
            seen: How many rows it had when the caller looked.
            wait: Wait for another worker that is at it.
            locks: Descriptors that the run inherits beside that of the cell's own lock.

        Raises:
            FolderBusy: If another worker is at it, and ``wait`` is false.
            KeyboardInterrupt: Ctrl-C; the run is ended, and its cell has no row, unless it had come to its end.
        """
        # a run inherits the lock: an orphan of a killed sweep holds it too
        with self._held(cell, wait) as lock:
            rows = rows_of(cell.id, self.table)
            if len(rows) > seen:
                return Settled(rows[-1], False)
            if (found := self._reused(cell)) is not None:
                return Settled(found, False)
            try:
                made = self._run(cell, functools.partial(self._runner, keep_open=(lock, *locks)))
            except KeyboardInterrupt:
                self._say(f"stopped in cell {cell.number}; the same command goes on from there")
                raise
        return Settled(made, True)

    # ---- locks ------------------------------------------------------------------------------------------------------

    def _lock_place(self, cell: Cell) -> Path:
        # not in the cell's folder, which is removed where a run begins anew
        return self.output / "locks" / cell.id

    def _lock(self, cell: Cell, wait: bool = False) -> Any:
        busy = "another worker, or a run that a killed one left behind, is at it"
        return lock_folder(self._lock_place(cell), busy, wait)

    @contextmanager
    def _held(self, cell: Cell, wait: bool) -> Iterator[int]:
        with ExitStack() as held:
            try:
                lock = held.enter_context(self._lock(cell, wait))
            except FolderBusy:
                time.sleep(PAUSE)
                lock = held.enter_context(self._lock(cell))
            yield lock

    def _results_held(self) -> Any:
        return lock_folder(self.results_folder, "", wait=True)

    # ---- running ----------------------------------------------------------------------------------------------------

    def _run(self, cell: Cell, runner: Callable[[Sequence[str], Path], ChildResult]) -> dict[str, Any]:
        with self._results_held():  # where the row cannot be written, nothing is run for it
            pass
        folder, commit = self.folder(cell), git_commit()
        code = code_digest()
        # a test has no checkpoint to go on from
        before = None if cell.test is not None else seconds_before(folder, code)
        if before is None:
            self._clear(cell)
        command = self.command(cell)
        log, start = folder / LOG, time.monotonic()
        # a run that goes on writes behind what it said before
        said = log.stat().st_size if log.exists() else 0
        (folder / MACHINE).unlink(missing_ok=True)
        # a run that is killed with its sweep goes on, too
        note_begun(folder, code, commit, before or 0.0, time.time())
        try:
            with progress_line(self._console, self._title(cell), progress_file(log)):
                result = runner([*command, *([] if before is None else ["--ckpt_path=auto"])], log)
        except KeyboardInterrupt:
            note_begun(folder, code, commit, (before or 0.0) + time.monotonic() - start, None)
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
        with _signals_wait():  # a run that ended gets its row, whatever comes
            reason = failure_reason(result.exit_code, log, said) if result.exit_code != 0 else ""
            self._note(cell, row, reason)
        return row

    def _clear(self, cell: Cell) -> None:
        """Makes room for a run that begins anew: what an earlier one left would be taken for this one's."""
        folder = self.folder(cell)
        if (folder / CHECKPOINTS).is_dir():
            # perhaps days of work, which the same code could go on with
            place = next(path for path in self._places_aside(cell) if not path.exists())
            place.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(place)
            self._say(
                f"cell {cell.number} begins anew: what stood there is of other code (commit {commit_of(place)}), or "
                f"has no sound checkpoint, and is in {place} now; to go on with it, return to that code and move it to "
                f"{folder}"
            )
        # some file systems keep a file that is open somewhere
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)

    def _places_aside(self, cell: Cell) -> Iterator[Path]:
        return (self.output / "set_aside" / f"{cell.id}_{number}" for number in itertools.count(1))

    def _note(self, cell: Cell, row: dict[str, Any], reason: str) -> None:
        sweep, folder = self.specification, self.folder(cell)
        # from the look at the table's names on nobody else adds one
        with self._results_held():
            try:
                if reason:
                    raise LoriError(reason)
                method, measured = read_summary(folder / SUMMARY, sweep.metrics)
                label = cell.label(sweep.label, sweep.name, method)
                if self._is_taken(label, cell):
                    self._say(
                        f"cell {cell.number}: another cell's row in {self.table.path} is called '{label}' with this "
                        f"seed, so this one is called '{label} [{cell.id}]'; give a label that tells them apart"
                    )
                    label = f"{label} [{cell.id}]"
                self._keep_outcomes(folder, label, cell.seed)
                row |= {"method": label, "status": "ok", **measured}
                self._link(cell, label)
            except LoriError as error:
                row |= {"method": cell.label(sweep.label, sweep.name, "?"), "status": "failed", "reason": str(error)}
                row["machine"] = read_machine(folder)
            self.table.append(row)
        if row["status"] == "ok":
            (folder / BEGUN).unlink(missing_ok=True)

    def _is_taken(self, label: str, cell: Cell) -> bool:
        """Whether another cell's result has this label and the cell's seed."""
        key = label, str(cell.seed), "ok"
        rows = (row for row in self.table.rows() if row.get("cell") != cell.id)
        return any((row["method"], row["seed"], row["status"]) == key for row in rows)

    def _keep_outcomes(self, folder: Path, label: str, seed: int) -> None:
        found = {path: read_outcomes(path) for path in _outcomes_in(folder)}
        for path, outcomes in found.items():
            if len(outcomes.bits) != 1:
                raise LoriError(f"{path}: {len(outcomes.bits)} outcomes, but a cell is one run of one method")
        for path, outcomes in found.items():
            (bits,) = outcomes.bits.values()
            self._add_outcomes(path, outcomes, bits, label, seed)

    def _add_outcomes(self, path: Path, outcomes: Outcomes, bits: np.ndarray, label: str, seed: int) -> None:
        """Puts a cell's outcomes beside the table, which the caller holds."""
        place = self.results_folder / path.name
        try:
            write_outcomes(place, outcomes.ids, bits, label, seed, outcomes.steps, outcomes.problems)
        except LoriError as error:
            # A sweep over data has other problems in each cell; the run is none the worse for it.
            self._say(f"the outcomes stay in {path}: {error}")

    def _link(self, cell: Cell, label: str) -> None:
        """Lets a finished run be found by its name and seed, too."""
        name = re.sub(r"[^\w.,=+\[\]-]+", "_", label)[:100]
        if name != label:  # another label may come to the same
            name = f"{name}_{cell.id}"
        link = self.output / "by_name" / f"{name}_seed{cell.seed}"
        link.parent.mkdir(exist_ok=True)
        with suppress(OSError):  # some file systems have no links
            new = link.with_name(f".{cell.id}")
            new.unlink(missing_ok=True)
            new.symlink_to(Path("..") / CELLS / cell.id)
            os.replace(new, link)

    # ---- rows of other sweeps ---------------------------------------------------------------------------------------

    def recorded(self, cell: Cell | str) -> tuple[Path, dict[str, str]] | None:
        """The first of the ``reuse`` folders that has the row of the very same run, with all metrics, and that row.

        Args:
            cell: The cell, or the id of a run.
        """
        id, is_test = (cell, False) if isinstance(cell, str) else (cell.id, cell.test is not None)
        metrics = () if is_test else self.specification.metrics
        for folder in self.specification.reuse:
            rows = rows_of(id, ResultTable(folder / RESULTS))
            if rows and rows[-1]["status"] == "ok" and all(rows[-1].get(metric) for metric in metrics):
                return folder, rows[-1]
        return None

    def _reused(self, cell: Cell) -> dict[str, Any] | None:
        """Takes over the row of the very same run, and its outcomes, from another sweep."""
        sweep = self.specification
        if (recorded := self.recorded(cell)) is None:
            return None
        folder, found = recorded
        known = {*RESULT_COLUMNS, *SWEEP_COLUMNS, *sweep.columns, *sweep.metrics}
        row = {column: value for column, value in (found | cell.columns()).items() if column in known}
        theirs = row["method"]
        name = row["method"] = self._name_here(cell, theirs)
        known_outcomes = {path: read_outcomes(path) for path in _outcomes_in(folder)}
        with _signals_wait(), self._results_held():
            if self._is_taken(name, cell):
                raise LoriError(
                    f"{sweep.file}, field 'reuse': {folder} has this run as '{theirs}', but another cell's row in "
                    f"{self.table.path} is called '{name}'; leave {folder} out, or give labels that differ"
                )
            for path, outcomes in known_outcomes.items():
                if (theirs, cell.seed) in outcomes.bits:
                    self._add_outcomes(path, outcomes, outcomes.bits[theirs, cell.seed], name, cell.seed)
            self.table.append(row)
        self._say(f"{self._title(cell)}  accuracy {float(row['accuracy']):.4f}  as {theirs} in {folder}")
        return row

    def _name_here(self, cell: Cell, theirs: str) -> str:
        """What this sweep calls a run that another has as ``theirs``: the same, where its names are the methods'."""
        any_method = "\0"
        own = cell.label(self.specification.label, self.specification.name, any_method)
        return theirs if any_method in own else own


def rows_of(id: str, table: ResultTable) -> list[dict[str, str]]:
    """The rows of a cell's id, oldest first."""
    return [row for row in table.rows() if row.get("cell") == id]


def _outcomes_in(folder: Path) -> list[Path]:
    """The files of outcomes in a folder, one a test set."""
    return [*filter(Path.exists, [folder / OUTCOMES]), *further_outcomes(folder).values()]


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Within the block signals that would end the sweep wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(n))]
    # a mask of this thread would leave them to other threads, and so to the handler
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
