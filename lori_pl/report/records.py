"""What a report speaks of: trained models in groups that answered the same problems."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lori_pl.evaluation.claims import Measured
from lori_pl.evaluation.intervals import seed_interval, wilson
from lori_pl.evaluation.records import Outcomes

T = TypeVar("T")
STEP = "accuracy_steps_"
"""Columns and entries with the accuracy among problems of so many rationale steps."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]+")


@dataclass(frozen=True)
class Table:
    """Heads, rows of as many cells, the first of which names the row, and perhaps a title and a caption."""

    heads: list[str]
    rows: list[list[str]]
    title: str = ""
    caption: str = ""


@dataclass
class Run:
    """One trained model and what is known of it; accuracies are fractions.

    Args:
        method: The name under which it is reported, the same for all its seeds.
        seed: The training seed.
        status: ``ok``, ``failed``, or ``not tested``.
        reason: Why it is not ``ok``.
        accuracy: On the first test set.
        n: Number of its problems.
        problems: Their digest, where it is known.
        passes: Mean model passes a problem.
        milliseconds: Mean milliseconds a problem, in batches.
        validation: Accuracy on the validation problems, by which the checkpoint was chosen.
        by_steps: Accuracy by number of rationale steps.
        step_counts: Number of problems of each number of steps, where it is known.
        other_sets: Accuracies on further test sets.
        other_counts: Number of problems of each further test set, where it is known.
        other_problems: Their digests, where they are known.
        axes: What a sweep varied, as text by key.
        command: The command that repeats it.
        commit: The code's.
        machine: What it ran on.
        cell: Its id in a sweep.
        folder: The run's folder, where it is at hand.
        config: The text of its ``config.yaml``, where it is at hand.
    """

    method: str
    seed: int
    status: str = "ok"
    reason: str = ""
    accuracy: float | None = None
    n: int | None = None
    problems: str = ""
    passes: float | None = None
    milliseconds: float | None = None
    validation: float | None = None
    by_steps: dict[int, float] = field(default_factory=dict)
    step_counts: dict[int, int] = field(default_factory=dict)
    other_sets: dict[str, float] = field(default_factory=dict)
    other_counts: dict[str, int] = field(default_factory=dict)
    other_problems: dict[str, str] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    command: str = ""
    commit: str = ""
    machine: str = ""
    cell: str = ""
    folder: Path | None = None
    config: str | None = None

    def tested(self, on: str | None = None) -> tuple[float | None, int | None, str]:
        """Accuracy, number of problems and their digest on a further test set; by default on the first."""
        if on is None:
            return self.accuracy, self.n, self.problems
        return self.other_sets.get(on), self.other_counts.get(on), self.other_problems.get(on, "")


@dataclass
class Group:
    """Runs that answered the same problems, so that they can be compared.

    Args:
        title: What the group is called.
        runs: The runs.
        outcomes: Whether each answer was right, as far as it is known.
        other_outcomes: The same on further test sets, by their names.
        selection: Whether settings were chosen on these runs, so that no claim is made of them.
        notes: What a reader must know of them.
    """

    title: str
    runs: list[Run]
    outcomes: Outcomes | None = None
    other_outcomes: dict[str, Outcomes] = field(default_factory=dict)
    selection: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def machines(self) -> list[str]:
        """Those on which milliseconds were measured, by name."""
        return sorted({run.machine for run in self.measured if run.milliseconds is not None and run.machine})

    @property
    def measured(self) -> list[Run]:
        """The runs that have an accuracy."""
        return [run for run in self.runs if run.status == "ok"]

    @property
    def methods(self) -> dict[str, list[Run]]:
        """The runs that have an accuracy by method, in the order of their first."""
        found: dict[str, list[Run]] = {}
        for run in self.measured:
            found.setdefault(run.method, []).append(run)
        return found

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs that have an accuracy."""
        return sorted({run.seed for run in self.measured})

    @property
    def further_sets(self) -> list[str]:
        """The names of the further test sets, in the order of the runs."""
        return list(dict.fromkeys(name for run in self.measured for name in run.other_sets))

    def comparable(self, *methods: str, on: str | None = None) -> dict[tuple[str, int], Measured]:
        """Accuracies by method and seed, of those runs that answered the problems that most of them did.

        Problems are the same where their number is and, if both runs know it, their digest. The number on a further
        test set is not always known: such a run counts with the others.

        Args:
            methods: The methods that are compared; by default all.
            on: A further test set; by default the first.
        """
        runs = [(run, *run.tested(on)) for run in self.measured if not methods or run.method in methods]
        n = _most_frequent([count for _, _, count, _ in runs if on is None or count is not None])
        runs = [each for each in runs if each[2] == n or (on is not None and each[2] is None)]
        problems = _most_frequent([digest for *_, digest in runs if digest])
        return {
            (run.method, run.seed): Measured(accuracy, run.by_steps if on is None else {})
            for run, accuracy, _, digest in runs
            if accuracy is not None and digest in ("", problems)
        }


def _most_frequent(values: Sequence[T]) -> T | None:
    return Counter(values).most_common(1)[0][0] if values else None


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Args:
        mean: The mean.
        bounds: The interval, or ``None`` where nothing gives one.
        unit: What it speaks of: ``seeds``, ``problems``, or nothing.
    """

    mean: float
    bounds: tuple[float, float] | None = None
    unit: str = ""


def estimate(values: Sequence[float], n: int | None = None, share: bool = True) -> Estimate:
    """The mean of one value a seed: with the t interval over seeds, or Wilson's over problems where no seeds differ.

    Args:
        values: One value a seed.
        n: Number of problems behind each.
        share: Whether the values are accuracies, whose bounds stay within 0 and 1.
    """
    mean = sum(values) / len(values)
    if (bounds := seed_interval(values)) is not None:
        low, high = bounds
        return Estimate(mean, (max(low, 0.0), min(high, 1.0)) if share else (low, high), "seeds")
    if share and n:
        return Estimate(mean, wilson(round(mean * n), n), "problems")
    return Estimate(mean)


def clean(text: object, limit: int = 100_000) -> str:
    """Text from data without control characters and lone surrogates, which neither XML nor UTF-8 can hold.

    Args:
        text: The text.
        limit: Most characters; what is beyond is left out, with a mark.
    """
    kept = _CONTROL.sub(" ", str(text)).encode("utf-8", "replace").decode("utf-8")
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def number(value: Any) -> float | None:
    """A finite number from data, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def fraction(value: Any) -> float | None:
    """A number from 0 to 1 from data, or ``None``."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def step_accuracies(values: dict[str, Any]) -> dict[int, float]:
    """The accuracies by number of steps among the entries of a row or a summary, in the order of the steps."""
    found: dict[int, float] = {}
    for key, value in values.items():
        steps, share = str(key).removeprefix(STEP), fraction(value)
        if str(key).startswith(STEP) and steps.isascii() and steps.isdigit() and share is not None:
            found[int(steps[:9])] = share
    return dict(sorted(found.items()))
