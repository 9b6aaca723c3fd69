"""What a sweep varied: series of runs that are alike in everything but one value and the seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lori_pl.report.apart import options
from lori_pl.report.records import Estimate, Group, Run, estimate, number
from lori_pl.sweep.fields import VARIANT_AXIS

_Flags = frozenset[tuple[str, str | tuple[str, ...]]]


@dataclass(frozen=True)
class Point:
    """The runs of one value.

    Args:
        value: The value as text.
        accuracy: Over their seeds.
        validation: Mean accuracy on the validation problems, where every run has it.
        seeds: Number of seeds.
    """

    value: str
    accuracy: Estimate
    validation: float | None
    seeds: int


@dataclass(frozen=True)
class Series:
    """Values of one key with all else alike.

    Args:
        name: What is alike, in short.
        points: At least two, in ascending order where they are numbers.
        remark: What one of them has besides, where it has anything.
    """

    name: str
    points: tuple[Point, ...]
    remark: str = ""

    @property
    def chosen(self) -> Point | None:
        """The point with the best validation, where all points have one: what a selection takes."""
        known = [(point.validation, place) for place, point in enumerate(self.points) if point.validation is not None]
        return self.points[max(known)[1]] if len(known) == len(self.points) else None


@dataclass(frozen=True)
class Ablation:
    """One varied key.

    Args:
        key: The key.
        series: Its series.
        numeric: Whether all values are numbers.
    """

    key: str
    series: tuple[Series, ...]
    numeric: bool


def ablations(group: Group) -> list[Ablation]:
    """Finds the varied keys of a group's runs and their series.

    Two runs belong to one series where their recorded commands differ in nothing but the key's value, the seed and the
    folder, or the weights that a test takes. Two variants, sets of flags that a sweep names, do where they have the
    same config files and are alike in everything else that was varied. Whole config files that vary are methods rather
    than values, and no axis here.
    """
    keys = list(dict.fromkeys(key for run in group.measured for key in run.axes if key != "config"))
    found = []
    for key in keys:
        parts: dict[_Flags, list[Run]] = {}
        for run in group.measured:
            flags = options(run.command)
            if flags is not None and key in run.axes:
                alike = {**run.axes, "config": flags["config"]} if key == VARIANT_AXIS else flags
                parts.setdefault(frozenset((k, v) for k, v in alike.items() if k != key), []).append(run)
        remarks = _join_none(parts, key)
        series = {flags: runs for flags, runs in parts.items() if len({run.axes[key] for run in runs}) > 1}
        if not series:
            continue
        every = [run for runs in series.values() for run in runs]
        numeric = key != VARIANT_AXIS and all(number(run.axes[key]) is not None for run in every)
        names = _names(list(series.values()), key)
        made = tuple(
            Series(name, _points(runs, key, numeric), remarks.get(flags, ""))
            for name, (flags, runs) in zip(names, series.items(), strict=True)
        )
        found.append(Ablation(key, made, numeric))
    return found


def _join_none(parts: dict[_Flags, list[Run]], key: str) -> dict[_Flags, str]:
    """Puts runs with none of something to the series of those with some, and gives a remark on each such series.

    Of what is not there nothing can be measured, so that a run whose value is 0 may have flags that turn a part off
    (``null``) and stand by themselves for that.
    """
    remarks: dict[_Flags, str] = {}
    for flags, runs in list(parts.items()):
        values = {run.axes[key] for run in runs}
        off = sorted(k for k, v in flags if v == "null")
        if not off or len(values) > 1 or number(next(iter(values))) != 0:
            continue
        others = [each for each in parts if each != flags and _without_null(each) == _without_null(flags)]
        if len(others) == 1 and not values & {run.axes[key] for run in parts[others[0]]}:
            parts[others[0]] = [*parts[others[0]], *parts.pop(flags)]
            remarks[others[0]] = f"The runs at 0 also have {', '.join(f'{k}=null' for k in off)}."
    return remarks


def _without_null(flags: _Flags) -> _Flags:
    return frozenset((k, v) for k, v in flags if v != "null")


def _points(runs: Sequence[Run], key: str, numeric: bool) -> tuple[Point, ...]:
    values: dict[str, list[Run]] = {}
    for run in runs:
        values.setdefault(run.axes[key], []).append(run)
    points = []
    for value, those in values.items():
        validations = [run.validation for run in those if run.validation is not None]
        points.append(
            Point(
                value,
                estimate([run.accuracy for run in those if run.accuracy is not None], those[0].n),
                sum(validations) / len(validations) if len(validations) == len(those) else None,
                len(those),
            )
        )
    return tuple(sorted(points, key=lambda point: float(point.value)) if numeric else points)


def _names(series: Sequence[Sequence[Run]], key: str) -> list[str]:
    """Names by what the methods' names have in common once the value is taken out, else by the flags that differ."""
    stems = [{_stem(run.method, key, run.axes[key]) for run in runs} for runs in series]
    names = [next(iter(found)) if len(found) == 1 else "" for found in stems]
    if all(names) and len(set(names)) == len(names):
        return names
    flags = [options(runs[0].command) or {} for runs in series]
    different = [
        k for k in dict.fromkeys(k for each in flags for k in each) if len({each.get(k) for each in flags}) > 1
    ]
    made = []
    for name, each in zip(names, flags, strict=True):
        said = [_said(k, each.get(k)) for k in different if k != key]
        made.append(", ".join(part for part in [name, *said] if part) or "all else alike")
    return [f"{name} ({place})" if made.count(name) > 1 else name for place, name in enumerate(made, start=1)]


def _said(key: str, value: str | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        return "+".join(Path(file).stem for file in value)
    short = key.rpartition(".")[2]
    return f"{short} not set" if value is None else f"{short}={value}"


def _stem(method: str, key: str, value: str) -> str:
    """A method's name without the varied value."""
    rest = re.sub(rf"(?:{re.escape(key.rpartition('.')[2])}|{re.escape(key)})={re.escape(value)}", "", method)
    rest = re.sub(rf"(?<![\w.]){re.escape(value)}(?![\w.])|(?<=[_r\[(]){re.escape(value)}(?![\d.])", "", rest, count=1)
    rest = re.sub(r"\[\s*,?\s*\]", "", rest)
    return re.sub(r"([_\-,])\1+", r"\1", rest).strip(" _-,=[")
