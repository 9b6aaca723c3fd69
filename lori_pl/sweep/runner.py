"""Runs the cells of a sweep one after the other and keeps the table of their results.

``results.csv`` has one row a run that ended, well or not, and ``correct.npz`` the per-problem outcomes of the runs that
leave them; the sweep's folder holds ``cells/ID/`` with each run's folder, its output in ``log.txt``. A cell is done
when it has a row with status ``ok``; the row is written last. A run that was stopped with its sweep goes on from its
checkpoint, if the code is the same; one that was killed is run again.
"""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lori_pl.errors import LoriError
from lori_pl.evaluation.comparison import compare
from lori_pl.evaluation.records import Outcomes, ResultTable, git_commit, read_outcomes, write_outcomes
from lori_pl.files import lock_folder, replace_file
from lori_pl.sweep.cells import Cell, expand
from lori_pl.sweep.child import ChildResult, failure_reason, progress_file, run_child
from lori_pl.sweep.progress import progress_line
from lori_pl.sweep.specification import SWEEP_COLUMNS, SweepSpecification

Runner = Callable[[Sequence[str], Path], ChildResult]
"""Runs a command with its output in a file; `run_child` is the real one."""

INTERRUPTED = "interrupted.json"
"""In a cell's folder: the commit, and the seconds so far, of a run that was stopped with its sweep."""

_MEASURES = ("accuracy", "low", "high", "n", "passes", "milliseconds")


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
        self.cells = expand(specification)
        columns = [*SWEEP_COLUMNS, *specification.axes, *specification.metrics]
        self.table = ResultTable(specification.results / "results.csv", columns)
        self._runner = runner
        self._console = console or Console()

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

    def show_plan(self, only: int | None = None) -> None:
        """Print every cell with its status and command; nothing is run or written.

        Args:
            only: Number of the one cell to show.

        Raises:
            LoriError: There is no such cell.
        """
        results = self.results()
        for cell in self._selected(only):
            self._print(
                f"[{cell.number}/{len(self.cells)}] {cell.id}  {self.status(cell, results)}  {cell.description()}"
            )
            self._print(f"    {_shown(cell.command(self.folder(cell)))}")

    def run(self, retry_failed: bool = False, only: int | None = None) -> int:
        """Run what is not done yet, one cell at a time, and print the table of results.

        Args:
            retry_failed: Run the cells again whose last row says ``failed``.
            only: Number of the one cell to run.

        Returns:
            How many runs failed in this call.

        Raises:
            LoriError: There is no cell of that number, or another sweep works in the folder.
            KeyboardInterrupt: Ctrl-C; the run is ended, and its cell has no row.
        """
        skipped = {"ok"} if retry_failed else {"ok", "failed"}
        failed = 0
        # a run inherits the lock: an orphan of a killed sweep holds it too
        busy = "another sweep, or a run that a killed one left behind, works here"
        with lock_folder(self.output, busy) as lock:
            runner = self._runner or functools.partial(run_child, keep_open=(lock,))
            results = self.results()
            selected = self._selected(only)
            waiting = [cell for cell in selected if self.status(cell, results) not in skipped]
            self._announce(selected, waiting, results)
            for position, cell in enumerate(waiting):
                try:
                    row = self._run_cell(cell, runner)
                except KeyboardInterrupt:
                    self._print(f"stopped in cell {cell.number}; the same command goes on from there")
                    raise
                failed += row["status"] == "failed"
                self._report(cell, row, len(waiting) - position - 1)
        self._print_table()
        return failed

    def _run_cell(self, cell: Cell, runner: Runner) -> dict[str, Any]:
        folder, commit = self.folder(cell), git_commit()
        before = _interrupted(folder, commit)
        if before is None:
            # What a failed run, or one of other code, left there would be taken for this one's.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        command = cell.command(folder)
        log, start = folder / "log.txt", time.monotonic()
        try:
            with progress_line(self._console, self._title(cell), progress_file(log)):
                result = runner([*command, *([] if before is None else ["--ckpt_path=auto"])], log)
        except KeyboardInterrupt:
            seconds = (before or 0.0) + time.monotonic() - start
            text = json.dumps({"commit": commit, "seconds": seconds})
            replace_file(folder / INTERRUPTED, lambda file: file.write(text.encode()))
            raise
        row: dict[str, Any] = {
            "seed": cell.seed,
            "commit": commit,
            "command": _shown(command),
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
        except LoriError as error:
            row |= {"method": cell.label(sweep.label, sweep.name, "?"), "status": "failed", "reason": str(error)}
        self.table.append(row)
        return row

    def _keep_outcomes(self, path: Path, label: str, seed: int) -> None:
        if not path.exists():
            return
        outcomes = read_outcomes(path)
        if len(outcomes.bits) != 1:
            raise LoriError(f"{path}: {len(outcomes.bits)} outcomes, but a cell is one run of one method")
        (bits,) = outcomes.bits.values()
        try:
            write_outcomes(self.specification.results / "correct.npz", outcomes.ids, bits, label, seed, outcomes.steps)
        except LoriError as error:
            # A sweep over data has other problems in each cell; the run is none the worse for it.
            self._print(f"the outcomes stay in {path}: {error}")

    def _selected(self, only: int | None) -> list[Cell]:
        if only is None:
            return self.cells
        if not 1 <= only <= len(self.cells):
            raise LoriError(f"{self.specification.file}: there is no cell {only}; --only takes 1 to {len(self.cells)}")
        return [self.cells[only - 1]]

    def _announce(self, selected: list[Cell], waiting: list[Cell], results: dict[str, dict[str, str]]) -> None:
        failed = sum(self.status(cell, results) == "failed" for cell in selected if cell not in waiting)
        self._print(
            f"sweep {self.specification.name}: {len(waiting)} of {len(selected)} cells to run in {self.output}"
            + (f" ({failed} failed before; --retry_failed runs them again)" if failed else "")
        )

    def _report(self, cell: Cell, row: dict[str, Any], remaining: int) -> None:
        seconds = [float(done["seconds"]) for done in self.results().values() if done["status"] == "ok"]
        eta = ""
        if remaining and seconds:
            eta = f"  ETA {_duration(remaining * sum(seconds) / len(seconds))}"
        outcome = f"accuracy {row['accuracy']:.4f}" if row["status"] == "ok" else f"failed: {row['reason']}"
        if missing := [metric for metric in self.specification.metrics if row["status"] == "ok" and metric not in row]:
            outcome += f" (no {', '.join(missing)} in summary.json)"
        self._print(f"{self._title(cell)}  {outcome}  {_duration(row['seconds'])}{eta}")

    def _title(self, cell: Cell) -> str:
        return f"[{cell.number}/{len(self.cells)}] {cell.description()}"

    def _print_table(self) -> None:
        results = self.results()
        if not results:
            return
        metrics = [metric for metric in self.specification.metrics if metric not in _MEASURES]
        table = Table(title=Text(str(self.table.path)))
        for column in ("method", "seed", "accuracy", "n", "passes", "ms", *metrics, "seconds", "MiB"):
            table.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
        for cell in self.cells:
            if row := results.get(cell.id):
                accuracy = Text("failed", style="red")
                if row["status"] == "ok":
                    bounds = f" [{_short(row['low'])}, {_short(row['high'])}]" if row["low"] else ""
                    accuracy = Text(_short(row["accuracy"]) + bounds)
                numbers = [row["n"], row["passes"], row["milliseconds"], *(row.get(metric, "") for metric in metrics)]
                last = [row["seconds"], row["peak_memory_mib"]]
                texts = [Text(_short(number)) for number in (*numbers, *last)]
                table.add_row(Text(row["method"]), row["seed"], accuracy, *texts)
        self._console.print(table)
        for line in self.comparisons():
            self._print(line)

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

    def _print(self, line: str) -> None:
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


def read_summary(path: Path, metrics: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What a run reports of itself.

    Args:
        path: The run's ``summary.json``: ``{"methods": {NAME: {"accuracy", "low", "high", "n", "passes",
            "milliseconds", ...}}, ...}`` with one method.
        metrics: Further names to copy, from the method's entry or else from the whole summary; dots lead inwards
            (``test_sets.svamp.accuracy``).

    Returns:
        The method's name, and the measures and metrics that are there.

    Raises:
        LoriError: The file is missing or is no summary of one method.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoriError("the run ended without a summary.json in its folder") from None
    except (OSError, ValueError) as error:
        raise LoriError(f"summary.json cannot be read: {error}") from error
    methods = summary.get("methods") if isinstance(summary, dict) else None
    if not isinstance(methods, dict) or len(methods) != 1:
        raise LoriError(f"summary.json must report one method under 'methods', got {_names(methods)}")
    ((method, entry),) = methods.items()
    accuracy = entry.get("accuracy") if isinstance(entry, dict) else None
    if not isinstance(accuracy, int | float) or isinstance(accuracy, bool):
        raise LoriError(f"summary.json has no 'accuracy' of method '{method}'")
    found = {name: _find(name, entry) for name in _MEASURES}
    for name in metrics:
        value = _find(name, entry)
        found[name] = _find(name, summary) if value is None else value
    return method, {name: value for name, value in found.items() if value is not None}


def _find(name: str, values: Any) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _shown(command: Sequence[str]) -> str:
    # The interpreter's path belongs to one machine; the recorded command is to work on any.
    return shlex.join(["python" if part == sys.executable else part for part in command])


def _names(methods: Any) -> str:
    return ", ".join(methods) or "none" if isinstance(methods, dict) else "none"


def _short(number: str) -> str:
    try:
        return f"{float(number):.4g}"
    except ValueError:
        return number


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
