"""Runs one cell of a sweep, once among all workers, and leaves its row, its outcomes and a link to it."""

from __future__ import annotations

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import code_digest, git_commit
from lori_pl.files import FolderBusy, lock_folder
from lori_pl.run_files import CELLS, CHECKPOINTS, MACHINE, STUDENT
from lori_pl.sweep.begun import BEGUN, commit_of, note_begun, seconds_before
from lori_pl.sweep.cells import Cell, folder_of
from lori_pl.sweep.child import LOG, ChildResult, failure_reason, progress_file
from lori_pl.sweep.display import shown
from lori_pl.sweep.progress import progress_line
from lori_pl.sweep.rows import CellRows, signals_wait
from lori_pl.sweep.specification import SweepSpecification
from lori_pl.sweep.table import SweepTable

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
        table: SweepTable,
        runner: Runner,
        console: Console,
        title: Callable[[Cell], str],
        say: Callable[[str], None],
    ) -> None:
        self.specification, self.table = specification, table
        self.output = specification.output
        self.rows = CellRows(specification, table, title, say)
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
            if cell.test is None or self.rows.recorded(cell) is not None:
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
            if self.table.done(cell.of or "") is not None:  # a run that is still to be made leaves one, or a reason
                raise LoriError(
                    f"{begins}stands in {self.table.path}, and there is none in {places[0]}; bring it there, or make "
                    "all anew with another 'output' and 'results' (--override output=DIR --override results=DIR)"
                )

    def _students(self, cell: Cell) -> list[Path]:
        """Where the student may be that a test takes: here, and where a run lies whose row was taken over."""
        assert cell.of is not None
        own = self.output / CELLS / cell.of
        found = self.table.done(cell.of)
        if found is None and (known := self.rows.recorded(cell.of)) is not None:
            found = known[1]
        root = None if found is None else folder_of(found["command"])
        others = (
            [] if root in (None, own) else [root, *(folder / CELLS / cell.of for folder in self.specification.reuse)]
        )
        return [folder / STUDENT for folder in dict.fromkeys([own, *others])]

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
            rows = self.table.of(cell.id)
            if len(rows) > seen:
                return Settled(rows[-1], False)
            if (found := self.rows.reused(cell)) is not None:
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

    # ---- running ----------------------------------------------------------------------------------------------------

    def _run(self, cell: Cell, runner: Callable[[Sequence[str], Path], ChildResult]) -> dict[str, Any]:
        with self.rows.held():  # where the row cannot be written, nothing is run for it
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
        with signals_wait():  # a run that ended gets its row, whatever comes
            reason = failure_reason(result.exit_code, log, said) if result.exit_code != 0 else ""
            self.rows.note(cell, folder, row, reason)
        return row

    def _clear(self, cell: Cell) -> None:
        """Makes room for a run that begins anew: what an earlier one left would be taken for this one's."""
        folder = self.folder(cell)
        if (folder / CHECKPOINTS).is_dir():
            # perhaps days of work, which the same code could go on with
            place = next(path for path in self._places_aside(cell) if not path.exists())
            place.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(place)
            if (place / BEGUN).exists():
                why = (
                    f"what stood there is of other code (commit {commit_of(place)}), or has no sound checkpoint, and "
                    f"is in {place} now; to go on with it, return to that code and move it to {folder}"
                )
            else:
                why = f"its run had ended well, but has no row any more; what stood there is in {place} now"
            self._say(f"cell {cell.number} begins anew: {why}")
        # some file systems keep a file that is open somewhere
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)

    def _places_aside(self, cell: Cell) -> Iterator[Path]:
        return (self.output / "set_aside" / f"{cell.id}_{number}" for number in itertools.count(1))
