"""Outcomes problem by problem: a table's and those of the runs' folders together, without what contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lori_pl.errors import LoriError, one_line
from lori_pl.evaluation.intervals import as_bits
from lori_pl.evaluation.records import OtherProblems, Outcomes, read_outcomes
from lori_pl.report.records import Group, clean
from lori_pl.run_files import outcomes_in

_NAME, _SET = 300, 60


def shown_outcomes(folder: Path) -> dict[str | None, Path]:
    """The files of outcomes in a folder by the test set's name as a page may have it; ``None`` is the first set."""
    return {name and clean(name, _SET): path for name, path in outcomes_in(folder).items()}


def read_own(path: Path | None, notes: list[str]) -> Outcomes | None:
    """A run's own outcomes, if there is a file of them that can be read.

    Args:
        path: The file.
        notes: Takes a line where it cannot be read.
    """
    try:
        return None if path is None else read_outcomes(path)
    except LoriError as error:
        notes.append(f"{one_line(error)}; problem by problem it is not compared.")
        return None


def check_outcomes(group: Group) -> None:
    """Adds the outcomes that only the runs' folders have, and leaves out those that contradict the accuracies.

    What neither a table nor a summary tells comes from them: accuracies by number of steps, and on further test sets.

    Args:
        group: The group, whose outcomes so far are those of its table.
    """
    own = {run.folder: shown_outcomes(run.folder) for run in group.measured if run.folder is not None}
    group.outcomes = _whole(group, None, group.outcomes, own)
    names = dict.fromkeys([*group.other_outcomes, *(name for files in own.values() for name in files if name)])
    whole = {name: _whole(group, name, group.other_outcomes.get(name), own) for name in names}
    group.other_outcomes = {name: found for name, found in whole.items() if found is not None}
    if group.outcomes is None or (steps := group.outcomes.steps) is None:
        return
    counts = dict(zip(*(array.tolist() for array in np.unique(steps, return_counts=True)), strict=True))
    for run in group.measured:
        if (answers := group.outcomes.bits.get((run.method, run.seed))) is not None:
            run.step_counts = counts
            run.by_steps = {k: float(answers[steps == k].mean()) for k in counts} | run.by_steps


def _whole(
    group: Group, name: str | None, found: Outcomes | None, own: Mapping[Path, Mapping[str | None, Path]]
) -> Outcomes | None:
    """The outcomes on one test set that agree with the accuracies there; ``None`` where there are none."""
    bits = {} if found is None else dict(found.bits)
    for run in group.measured:
        if (run.method, run.seed) in bits or run.folder is None:
            continue
        theirs = read_own(own[run.folder].get(name), group.notes)
        if theirs is None or len(theirs.bits) != 1:
            continue
        found = found or replace(theirs, bits={})
        try:
            rows = found.rows_of(theirs)
        except OtherProblems:
            continue
        if found.steps is None and theirs.steps is not None:
            found = replace(found, steps=theirs.steps[rows])
        found = replace(found, problems=found.problems or theirs.problems)
        (answers,) = theirs.bits.values()
        bits[run.method, run.seed] = as_bits(answers, run.method)[rows]
    if found is None:
        return None
    runs = {(run.method, run.seed): run for run in group.measured}
    kept = {}
    for key, answers in bits.items():
        run_of = runs.get(key)
        # of a run that is not in the table any more, or that answered others
        if run_of is None or _are_others(run_of.tested(name)[2], found.problems):
            continue
        accuracy = run_of.tested(name)[0]
        if len(answers) == 0 or (accuracy is not None and abs(float(answers.mean()) - accuracy) > 1e-6):
            where = "" if name is None else f" on {name}"
            group.notes.append(
                f"{clean(key[0], _NAME)}, seed {key[1]}: outcomes and accuracy differ{where}; the accuracy counts."
            )
            continue
        kept[key] = answers
        if name is not None:
            run_of.other_sets.setdefault(name, float(answers.mean()))
            run_of.other_counts.setdefault(name, len(answers))
    return replace(found, bits=kept) if kept else None


def _are_others(one: str, other: str | None) -> bool:
    return bool(one and other) and one != other
