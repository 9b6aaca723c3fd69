"""Reads folders of results and of single runs into groups of runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lori_pl.errors import LoriError, one_line
from lori_pl.evaluation.records import RESULT_COLUMNS, OtherProblems, Outcomes, ResultTable, read_outcomes
from lori_pl.report.apart import options, tell_apart
from lori_pl.report.outcomes import check_outcomes, read_own, shown_outcomes
from lori_pl.report.records import STEP, Group, Run, clean, fraction, number, step_accuracies
from lori_pl.run_files import CELLS, CONFIG, LOGS, REPORT, RESULTS, SUMMARY
from lori_pl.sweep.fields import SWEEP_COLUMNS, VARIANT_AXIS

T = TypeVar("T")
OTHER_SET = "test_sets."
_NAME, _TEXT, _CONFIG = 300, 4000, 60_000
_KNOWN = {*RESULT_COLUMNS, *SWEEP_COLUMNS, "validation"}


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, ended or not."""
    return any((folder / name).exists() for name in (SUMMARY, CONFIG, LOGS)) and not (folder / REPORT).exists()


def read_results(
    folder: Path,
    at_hand: dict[str, Path],
    selection: bool = False,
    cells: Collection[str] | None = None,
    named: bool = False,
) -> Group:
    """Reads a folder of results: ``results.csv`` and, where they are there, ``correct.npz`` and ``correct_SET.npz``.

    Args:
        folder: The folder.
        at_hand: Folders of runs by name; those that a row names by its cell are taken out.
        selection: Whether settings were chosen on these runs.
        cells: Ids of the cells whose rows are taken; by default all.
        named: Whether their names tell settings apart, as those of one sweep file do.

    Raises:
        LoriError: If the table or the outcomes cannot be read, or none of its rows is of the cells.
    """
    group = Group(clean("/".join(folder.resolve().parts[-2:]), _NAME), [], selection=selection)
    rows = ResultTable(folder / RESULTS).rows()
    if not rows:
        group.notes.append(f"{folder / RESULTS} has no row yet: no run has ended.")
    last: dict[object, Run] = {}
    for line, row in enumerate(rows, start=2):
        run = _row(row, f"{folder.name}/{RESULTS}, row {line}", group.notes)
        if run is not None:
            # a cell that was run again has a row of its own each time, of which the last counts
            last[run.cell or (run.method, run.seed)] = run
    group.runs = list(last.values())
    if cells is not None:
        _keep(group, cells, folder / RESULTS, at_hand)
    own = {path.name: path for path in sorted((folder / CELLS).glob("*")) if is_run(path)}
    for run in group.runs:
        place = at_hand.pop(run.cell, None) or own.get(run.cell)
        if run.cell and place is not None:
            _complete(run, place, group.notes)
    files = {name: read_outcomes(path) for name, path in shown_outcomes(folder).items()}
    group.outcomes = files.pop(None, None)
    group.other_outcomes = {name: found for name, found in files.items() if name is not None}
    tell_apart(group, named=named)
    _check(group)
    return group


def in_order(group: Group, cells: Sequence[str]) -> None:
    """Puts a group's runs in the order of a sweep's cells; rows stand as the runs ended.

    Args:
        group: The group.
        cells: Ids of cells; runs of others keep their order, behind.
    """
    places = {cell: place for place, cell in reversed(list(enumerate(cells)))}
    group.runs.sort(key=lambda run: places.get(run.cell, len(places)))


def _keep(group: Group, cells: Collection[str], table: Path, at_hand: dict[str, Path]) -> None:
    """Leaves out rows of other cells, and their runs' folders."""
    others = [run for run in group.runs if run.cell not in cells]
    if others and len(others) == len(group.runs):
        raise LoriError(
            f"{table}: no row is of a cell of the sweep file; its values or the contents of its configs are others "
            "than when the rows were made. Leave --sweep out to see them"
        )
    for run in others:
        at_hand.pop(run.cell, None)
    group.runs = [run for run in group.runs if run.cell in cells]
    if others:
        names = ", ".join(dict.fromkeys(run.method for run in others))
        group.notes.append(
            f"{len(others)} of {table}'s rows are of cells that the sweep file does not have, and are left out: "
            f"{one_line(names, 300)}."
        )
    if missing := len(set(cells) - {run.cell for run in group.runs}):
        group.notes.append(f"{missing} of the sweep's {len(cells)} cells have no row yet.")


def read_runs(folders: Sequence[Path], notes: list[str]) -> list[Group]:
    """Reads folders of single runs, those that answered the same test problems together.

    Args:
        folders: The folders.
        notes: Takes a line for each folder that cannot be read.
    """
    parts: list[_Part] = []
    untested = Group("Single runs", [])
    for folder in folders:
        run, outcomes = _single(folder, notes)
        if run is None:
            continue
        if run.status != "ok":
            untested.runs.append(run)
            continue
        part = next((part for part in parts if part.takes(run, outcomes)), None)
        if part is None:
            parts.append(part := _Part(Group("Single runs", []), run.n))
        part.add(run, outcomes)
    groups = [part.group for part in parts] or [untested] * bool(untested.runs)
    if parts:  # those that were not tested stand with the others
        groups[0].runs += untested.runs
    for place, group in enumerate(groups, start=1):
        if len(groups) > 1:
            group.title = f"Single runs, test problems {place}"
        tell_apart(group)
        _check(group)
    return groups


@dataclass
class _Part:
    """Single runs on the same problems: their number, and as far as it is known which they are."""

    group: Group
    n: int | None
    outcomes: Outcomes | None = None
    problems: str = ""

    def takes(self, run: Run, outcomes: Outcomes | None) -> bool:
        if self.outcomes is not None and outcomes is not None and not _same_problems(self.outcomes, outcomes):
            return False
        # what has no outcomes stands apart from what has, for its ids are not known
        alike = (self.outcomes is None) == (outcomes is None) and (outcomes is not None or self.n == run.n)
        return alike and (not self.problems or not run.problems or self.problems == run.problems)

    def add(self, run: Run, outcomes: Outcomes | None) -> None:
        self.group.runs.append(run)
        self.outcomes = self.outcomes or outcomes
        self.problems = self.problems or run.problems


def _same_problems(one: Outcomes, other: Outcomes) -> bool:
    try:
        one.rows_of(other)
    except OtherProblems:
        return False
    return True


def _row(row: dict[str, str], place: str, notes: list[str]) -> Run | None:
    method = clean(row["method"], _NAME)
    seed = number(row["seed"])
    if seed is None or seed != int(seed):
        notes.append(f"{place}: the seed '{clean(row['seed'], 60)}' is no whole number; the row is left out.")
        return None
    command = clean(row["command"], _TEXT)
    varied = {VARIANT_AXIS, *(options(row["command"]) or {})}
    run = Run(
        method or "(no name)",
        int(seed),
        status=row.get("status") or "ok",
        reason=clean(row.get("reason", ""), _TEXT),
        accuracy=fraction(row["accuracy"]),
        n=_count(row["n"]),
        problems=clean(row.get("problems", ""), 60),
        passes=number(row["passes"]),
        milliseconds=number(row["milliseconds"]),
        validation=fraction(row.get("validation")),
        by_steps=step_accuracies(row),
        other_sets=_of_sets(row, ".accuracy", fraction),
        other_counts=_of_sets(row, ".n", _count),
        other_problems=_of_sets(row, ".problems", lambda text: clean(text, 60) or None),
        axes={
            clean(key, _NAME): clean(value, _NAME)
            for key, value in row.items()
            if value and key not in _KNOWN and not key.startswith((STEP, OTHER_SET)) and key in varied
        },
        command=command,
        commit=clean(row["commit"], 60),
        machine=clean(row.get("machine", ""), 200),
        cell=clean(row.get("cell", ""), 60),
    )
    if run.status != "ok":
        run.status = "failed"
    elif run.accuracy is None:
        run.status, run.reason = "failed", f"the row has no accuracy from 0 to 1 ('{clean(row['accuracy'], 60)}')"
    return run


def _of_sets(row: dict[str, str], measure: str, read: Callable[[Any], T | None]) -> dict[str, T]:
    """A measure of each further test set by the set's name, from the columns of a row."""
    return {
        clean(key.removeprefix(OTHER_SET).removesuffix(measure), 60): found
        for key, value in row.items()
        if key.startswith(OTHER_SET) and key.endswith(measure) and (found := read(value)) is not None
    }


def _single(folder: Path, notes: list[str]) -> tuple[Run | None, Outcomes | None]:
    """One run's folder as a run, with its outcomes."""
    name = clean(folder.name, _NAME)
    config = _config(folder, notes)
    summary = _summary(folder, notes)
    if summary is None:
        if config is None and not (folder / LOGS).exists():
            return None, None
        run = Run(name, 0, "not tested", "the folder has no summary.json: not ended, or not tested", folder=folder)
        run.config = config
        return run, None
    ((method, entry),) = summary["methods"].items()
    seed = number(summary.get("seed"))
    run = Run(clean(method, _NAME) or name, int(seed or 0), folder=folder, config=config)
    _fill(run, entry, summary)
    if run.accuracy is None:
        run.status, run.reason = "failed", "summary.json has no accuracy from 0 to 1"
    outcomes = read_own(shown_outcomes(folder).get(None), notes)
    run.problems = run.problems or (outcomes.problems or "" if outcomes else "")
    return run, outcomes


def _complete(run: Run, folder: Path, notes: list[str]) -> None:
    """Adds to a row of a table what only the run's folder tells."""
    run.folder, run.config = folder, _config(folder, notes)
    summary = _summary(folder, notes)
    if summary is None or run.status != "ok":
        return
    ((_, entry),) = summary["methods"].items()
    accuracy = fraction(entry.get("accuracy"))
    if accuracy is None or run.accuracy is None or abs(accuracy - run.accuracy) > 1e-9:
        notes.append(
            f"{run.method}, seed {run.seed}: the folder {folder} reports another accuracy; the table's counts."
        )
        return
    _fill(run, entry, summary)


def _fill(run: Run, entry: dict[str, Any], summary: dict[str, Any]) -> None:
    run.accuracy = fraction(entry.get("accuracy")) if run.accuracy is None else run.accuracy
    run.n = _count(entry.get("n")) if run.n is None else run.n
    run.problems = run.problems or clean(entry.get("problems", ""), 60)
    run.passes = number(entry.get("passes")) if run.passes is None else run.passes
    run.milliseconds = number(entry.get("milliseconds")) if run.milliseconds is None else run.milliseconds
    run.validation = fraction(summary.get("validation")) if run.validation is None else run.validation
    run.by_steps = run.by_steps or step_accuracies(entry)
    run.commit = run.commit or clean(summary.get("commit", ""), 60)
    run.machine = run.machine or clean(summary.get("machine", ""), 200)
    sets = summary.get("test_sets")
    others = list(sets.items())[1:] if isinstance(sets, dict) else []
    measured = {clean(name, 60): values for name, values in others if isinstance(values, dict)}
    if not run.other_sets:
        shares = {name: fraction(values.get("accuracy")) for name, values in measured.items()}
        run.other_sets = {name: share for name, share in shares.items() if share is not None}
    for name in run.other_sets.keys() & measured.keys():
        if (count := _count(measured[name].get("n"))) is not None:
            run.other_counts.setdefault(name, count)
        if digest := clean(measured[name].get("problems", ""), 60):
            run.other_problems.setdefault(name, digest)


def _summary(folder: Path, notes: list[str]) -> dict[str, Any] | None:
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        methods = summary["methods"]
        ((_, entry),) = methods.items()
        entry.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        notes.append(f"{path}: no summary of one method ({one_line(error, 120)}); it is left out.")
        return None
    return summary


def _config(folder: Path, notes: list[str]) -> str | None:
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        notes.append(f"{path} cannot be read ({one_line(error, 120)}).")
        return None
    text = "\n".join(clean(line, _TEXT).rstrip() for line in lines)
    return text if len(text) <= _CONFIG else f"{text[:_CONFIG]}\n… (the rest stands in {path})"


def _check(group: Group) -> None:
    """Completes the outcomes, and tells of runs that answered other problems than the rest."""
    check_outcomes(group)
    numbers = Counter(run.n for run in group.measured)
    if len(numbers) > 1:
        shown = ", ".join(str(n) for n in sorted(numbers, key=lambda n: n or 0))
        group.notes.append(f"Runs have different numbers of test problems ({shown}): only those alike are compared.")
    elif len({run.problems for run in group.measured if run.problems}) > 1:
        group.notes.append("Runs have different test problems, though as many: only those alike are compared.")
    if len(machines := group.machines) > 1:
        group.notes.append(
            f"Milliseconds were measured on {len(machines)} machines ({'; '.join(machines)}): a mean over seeds may "
            "mix them, and only those of one machine compare, so no picture has them."
        )
    for method, runs in group.methods.items():
        if len({run.n for run in runs}) > 1 or len({run.problems for run in runs if run.problems}) > 1:
            group.notes.append(f"The seeds of {method} answered different test problems: its mean is over all of them.")


def _count(value: Any) -> int | None:
    found = number(value)
    return int(found) if found is not None and found >= 1 and found == int(found) and found < 1e12 else None
