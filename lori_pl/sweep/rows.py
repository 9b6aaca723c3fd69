"""The rows of a sweep's cells: made of what a run leaves, taken over from another sweep, or renewed with the file."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import RESULT_COLUMNS, Outcomes, read_outcomes, write_outcomes
from lori_pl.files import lock_folder
from lori_pl.run_files import CELLS, RESULTS, SUMMARY, outcomes_in
from lori_pl.sweep.begun import BEGUN
from lori_pl.sweep.cells import ANY_METHOD, Cell, folder_of
from lori_pl.sweep.fields import SWEEP_COLUMNS
from lori_pl.sweep.progress import read_machine
from lori_pl.sweep.specification import SweepSpecification
from lori_pl.sweep.summary import read_summary
from lori_pl.sweep.table import SweepTable


class CellRows:
    """Makes the rows of a sweep's cells, with their outcomes and the links to their runs.

    Args:
        specification: The sweep.
        table: Its table of results.
        title: Names a cell.
        say: Prints a line.
    """

    def __init__(
        self,
        specification: SweepSpecification,
        table: SweepTable,
        title: Callable[[Cell], str],
        say: Callable[[str], None],
    ) -> None:
        self.specification, self.table = specification, table
        self._title, self._say = title, say

    def held(self) -> Any:
        """A context in which nobody else writes to the folder of results."""
        return lock_folder(self.specification.results, "", wait=True)

    def note(self, cell: Cell, folder: Path, row: dict[str, Any], reason: str) -> None:
        """Completes a row by what the run left, or by why it failed, and puts it into the table.

        Args:
            cell: The cell.
            folder: The run's folder.
            row: What is known of it.
            reason: Why it failed; empty where it ended well.
        """
        sweep = self.specification
        # from the look at the table's names on nobody else adds one
        with self.held():
            try:
                if reason:
                    raise LoriError(reason)
                method, measured = read_summary(folder / SUMMARY, sweep.metrics)
                label = self._free(cell.label(sweep.label, sweep.name, method), cell)
                self._keep_outcomes(folder, label, cell.seed)
                row |= {"method": label, "status": "ok", **measured}
                self._link(cell, label)
            except LoriError as error:
                row |= {"method": cell.label(sweep.label, sweep.name, "?"), "status": "failed", "reason": str(error)}
                row["machine"] = read_machine(folder)
            self.table.append(row)
        if row["status"] == "ok":
            (folder / BEGUN).unlink(missing_ok=True)

    def renew(self, cell: Cell, row: dict[str, str], folder: Path) -> dict[str, str]:
        """Gives a finished cell's row what the file asks for since it was made: its label, and further metrics.

        A metric comes from the run's ``summary.json``, where that is at hand.

        Args:
            cell: The cell.
            row: Its row.
            folder: The run's folder.

        Returns:
            The row as it is now.
        """
        if row["status"] != "ok" or not self._to_change(cell, row, folder):
            return row
        with signals_wait(), self.held():
            row = self.table.of(cell.id)[-1]  # another worker may have done it
            if row["status"] != "ok" or not (changed := self._to_change(cell, row, folder)):
                return row
            before = row["method"]
            if (name := changed.get("method", before)) != before:
                changed["method"] = name = self._free(name, cell)
                for path in outcomes_in(self.specification.results).values():
                    outcomes = read_outcomes(path)
                    if (bits := outcomes.bits.get((before, cell.seed))) is not None:
                        self._add_outcomes(path, outcomes, bits, name, cell.seed)
                if folder.is_dir():
                    self._link(cell, name)
            self.table.append(row | changed)
            row = self.table.of(cell.id)[-1]
        parts = [f"called '{name}' now"] * (name != before) + [f"with its {key}" for key in changed if key != "method"]
        self._say(f"{self._title(cell)}  the row of '{before}' is {' and '.join(parts)}")
        return row

    def _to_change(self, cell: Cell, row: dict[str, str], folder: Path) -> dict[str, Any]:
        """What a finished cell's row is to have that it has not."""
        own, missing = self._label(cell), self.missing(row)
        method, changed = "", {}
        if missing or ANY_METHOD in own:
            with suppress(LoriError):
                # a run whose row was taken over lies where that says
                places = [folder, *filter(None, [folder_of(row["command"])])]
                place = next((each for each in places if (each / SUMMARY).is_file()), folder)
                method, found = read_summary(place / SUMMARY, missing)
                if found["accuracy"] == float(row["accuracy"]):  # it is that run's
                    changed = {key: found[key] for key in missing if key in found}
                else:
                    method = ""
        if method or ANY_METHOD not in own:
            name = own.replace(ANY_METHOD, method)
            if row["method"] != name and not (row["method"] == f"{name} [{cell.id}]" and self._is_taken(name, cell)):
                changed["method"] = name
        return changed

    def missing(self, row: dict[str, str]) -> list[str]:
        """The file's metrics that a row has not.

        Args:
            row: The row.
        """
        return [metric for metric in self.specification.metrics if not row.get(metric)]

    def _label(self, cell: Cell) -> str:
        """What the file calls a cell, with a mark for the method's name."""
        return cell.label(self.specification.label, self.specification.name, ANY_METHOD)

    def _free(self, label: str, cell: Cell) -> str:
        """A label that no other cell's result of the seed has."""
        if not self._is_taken(label, cell):
            return label
        self._say(
            f"cell {cell.number}: another cell's row in {self.table.path} is called '{label}' with this "
            f"seed, so this one is called '{label} [{cell.id}]'; give a label that tells them apart, or take the "
            "other's row out, if the file has its cell no more, and start again"
        )
        return f"{label} [{cell.id}]"

    def _is_taken(self, label: str, cell: Cell) -> bool:
        """Whether another cell's result has this label and the cell's seed."""
        key = label, str(cell.seed), "ok"
        # a cell that was run again counts by its last row
        last = {row.get("cell") or str(line): row for line, row in enumerate(self.table.rows())}
        rows = (row for id, row in last.items() if id != cell.id)
        return any((row["method"], row["seed"], row.get("status")) == key for row in rows)

    def _keep_outcomes(self, folder: Path, label: str, seed: int) -> None:
        found = {path: read_outcomes(path) for path in outcomes_in(folder).values()}
        for path, outcomes in found.items():
            if len(outcomes.bits) != 1:
                raise LoriError(f"{path}: {len(outcomes.bits)} outcomes, but a cell is one run of one method")
        for path, outcomes in found.items():
            (bits,) = outcomes.bits.values()
            self._add_outcomes(path, outcomes, bits, label, seed)

    def _add_outcomes(self, path: Path, outcomes: Outcomes, bits: np.ndarray, label: str, seed: int) -> None:
        """Puts a cell's outcomes beside the table, which the caller holds."""
        place = self.specification.results / path.name
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
        link = self.specification.output / "by_name" / f"{name}_seed{cell.seed}"
        link.parent.mkdir(exist_ok=True)
        with suppress(OSError):  # some file systems have no links
            new = link.with_name(f".{cell.id}")
            new.unlink(missing_ok=True)
            new.symlink_to(Path("..") / CELLS / cell.id)
            os.replace(new, link)

    # ---- rows of other sweeps ---------------------------------------------------------------------------------------

    def without_metrics(self, cell: Cell) -> tuple[Path, list[str]] | None:
        """The first of the ``reuse`` folders that has the row of the very same run, and which metrics it lacks there.

        Args:
            cell: A run's cell.
        """
        found = ((folder, self.missing(row)) for folder, row in self._in_reuse(cell.id))
        return next(((folder, missing) for folder, missing in found if missing), None)

    def recorded(self, cell: Cell | str) -> tuple[Path, dict[str, str]] | None:
        """The first of the ``reuse`` folders that has the row of the very same run, with all metrics, and that row.

        Args:
            cell: The cell, or the id of a run.
        """
        id, is_test = (cell, False) if isinstance(cell, str) else (cell.id, cell.test is not None)
        found = self._in_reuse(id)
        return next(((folder, row) for folder, row in found if is_test or not self.missing(row)), None)

    def _in_reuse(self, id: str) -> Iterator[tuple[Path, dict[str, str]]]:
        """The ``reuse`` folders in which a run has ended well, each with its row there."""
        for folder in self.specification.reuse:
            if (row := SweepTable(folder / RESULTS).done(id)) is not None:
                yield folder, row

    def reused(self, cell: Cell) -> dict[str, Any] | None:
        """Takes over the row of the very same run, and its outcomes, from another sweep."""
        sweep = self.specification
        if (recorded := self.recorded(cell)) is None:
            return None
        folder, found = recorded
        known = {*RESULT_COLUMNS, *SWEEP_COLUMNS, *sweep.columns, *sweep.metrics}
        row = {column: value for column, value in (found | cell.columns()).items() if column in known}
        theirs = row["method"]
        own = self._label(cell)  # the same as theirs, where this file's names are the methods'
        name = row["method"] = theirs if ANY_METHOD in own else own
        known_outcomes = {path: read_outcomes(path) for path in outcomes_in(folder).values()}
        with signals_wait(), self.held():
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


@contextmanager
def signals_wait() -> Iterator[None]:
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
