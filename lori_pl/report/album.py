"""All pictures of a report, in the order of its page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeVar

from lori_pl.report import drawings
from lori_pl.report.ablations import Ablation, Series
from lori_pl.report.files import Found
from lori_pl.report.material import Material, Section
from lori_pl.report.pictures import COLOURS, Picture, picture
from lori_pl.report.records import Estimate, clean
from lori_pl.sweep.fields import VARIANT_AXIS

T = TypeVar("T")
_AT_ONCE = len(COLOURS)
_SEEDS = (
    "Filled points with the 95 % t interval over seeds; hollow ones, of one seed or of seeds that do not differ, with "
    "the 95 % interval over problems."
)
_STEPS = (
    "Filled points with the 95 % t interval over seeds; hollow ones, of one seed or of seeds that do not differ, with "
    "the 95 % interval over problems where outcomes are recorded with numbers of steps."
)
_CHOSEN = " Ringed: the value with the best validation, where all have one."
_VARIANTS = "Sets of flags that the sweep names, of the same config files; they may differ in several flags."
_LEARNING = {
    "validation": "A line a run.",
    "loss": "A line a run. Methods whose losses have other terms are not to be compared by them.",
}
_ALT = 700


def of_section(section: Section, place: int) -> dict[str, list[Picture]]:
    """The pictures of one group: by chapter (``results``, ``claims``, ``ablations``, ``learning``).

    Args:
        section: The group.
        place: Its place in the report, from 1, for the names of the files.
    """
    methods = section.group.methods
    made: dict[str, list[Picture]] = {"results": [], "claims": [], "ablations": [], "learning": []}
    if methods:
        each = [f"{name} {_percent(drawings.accuracy(runs))}" for name, runs in methods.items()]
        made["results"].append(
            picture(
                f"{place}_accuracy",
                "Accuracy",
                _alt("Accuracy by method", each),
                partial(drawings.accuracies, methods),
                _SEEDS + (" Small points are the seeds." if any(len(runs) > 1 for runs in methods.values()) else ""),
            )
        )
    made["results"] += _steps(section, place)
    timed = len(section.group.machines) <= 1
    priced = {
        name: runs for name, runs in methods.items() if any(run.passes or (timed and run.milliseconds) for run in runs)
    }
    if priced:
        said = "Milliseconds are those of large batches; compare them between runs of one machine only."
        each = [f"{name} {_percent(drawings.accuracy(runs))}{_price(runs)}" for name, runs in priced.items()]
        made["results"].append(
            picture(
                f"{place}_accuracy_against_latency",
                "Accuracy against latency",
                _alt(f"Accuracy against model passes{' and milliseconds' * timed} a question", each),
                partial(drawings.against_latency, priced, milliseconds=timed),
                f"{_SEEDS} {said if timed else 'Milliseconds are left out: they were measured on several machines.'}",
            )
        )
    shown = [claim for claim in section.claims if claim.by_steps]
    for part, number, of in _parts(shown):
        each = [f"{c.first} minus {c.second}, {_effects(c)}" for c in part]
        made["claims"].append(
            picture(
                f"{place}_difference_by_steps{number}",
                f"Difference by number of steps{of}",
                _alt("Difference in accuracy by number of steps, in points", each),
                partial(drawings.effects, part),
                _STEPS,
            )
        )
    for ablation in section.ablations:
        made["ablations"] += _ablation(ablation, place)
    for what, title in (("validation", "Validation accuracy"), ("loss", "Training loss")):
        curves = section.curves.get(what, {})
        for names, number, of in _parts(list(curves)):
            learned = {name: curves[name] for name in names}
            each = [f"{n} ends at {curve[1, -1]:.3g}" for n, found in learned.items() for curve in found]
            made["learning"].append(
                picture(
                    f"{place}_{what}{number}",
                    title + of,
                    _alt(f"{title} by training step, a line a run", each),
                    partial(drawings.learning, learned, what),
                    _LEARNING[what],
                )
            )
    return made


def of_timings(material: Material) -> list[Picture]:
    """The pictures of the benchmarks."""
    made = []
    for place, (title, students) in enumerate(material.timings.items(), start=1):
        each = [f"{s.name} {100 * s.accuracy[0]:.1f} % in {s.milliseconds[0]:.3g} ms" for s in students]
        made.append(
            picture(
                f"latency_{place}_{_slug(title)}",
                f"Latency of one question: {title}",
                _alt("Accuracy against milliseconds for one question alone", each),
                partial(drawings.timings, {title: students}),
                "Medians with quartiles; accuracy with the 95 % interval over problems.",
            )
        )
    return made


def of_files(found: Sequence[Found], kind: str) -> list[Picture]:
    """The pictures that were found in files, as they are."""
    return [
        Picture(
            f"{kind}_{place}_{_slug(each.title)}",
            each.title,
            f"{each.title}. Its figures stand in the tables below the pictures." if each.is_told else each.title,
            *(each.note, each.content),
            width=each.width,
        )
        for place, each in enumerate(found, start=1)
    ]


def _steps(section: Section, place: int) -> list[Picture]:
    methods = {m: runs for m, runs in section.group.methods.items() if any(run.by_steps for run in runs)}
    made = []
    for names, number, of in _parts(list(methods)):
        part = {name: methods[name] for name in names}
        each = []
        for name, runs in part.items():
            steps = sorted({k for run in runs for k in run.by_steps})
            means = [[run.by_steps[k] for run in runs if k in run.by_steps] for k in steps]
            shares = [f"{k}: {100 * sum(v) / len(v):.1f} %" for k, v in zip(steps, means, strict=True)]
            each.append(f"{name} {', '.join(shares)}")
        made.append(
            picture(
                f"{place}_accuracy_by_steps{number}",
                f"Accuracy by number of steps{of}",
                _alt("Accuracy by number of rationale steps", each),
                partial(drawings.by_steps, part),
                _STEPS,
            )
        )
    return made


def _ablation(ablation: Ablation, place: int) -> list[Picture]:
    name, title = f"{place}_ablation_{_slug(ablation.key)}", clean(ablation.key, 120)
    if ablation.numeric:
        made = []
        for part, number, of in _parts(ablation.series):
            some = Ablation(ablation.key, tuple(part), True)
            each = [f"{series.name}: {_points(series)}" for series in part]
            made.append(
                picture(
                    f"{name}{number}",
                    title + of,
                    _alt(f"Accuracy by {title}", each),
                    partial(drawings.curves, some),
                    " ".join(["All else alike within a line.", *_remarks(part), _SEEDS]) + _CHOSEN,
                )
            )
        return made
    return [
        picture(
            f"{name}_{number}",
            title + (f": {clean(series.name, 120)}" if len(ablation.series) > 1 else ""),
            _alt(f"Accuracy by {title}", [_points(series)]),
            partial(drawings.choices, ablation, series),
            " ".join([_VARIANTS if ablation.key == VARIANT_AXIS else "All else alike.", *_remarks([series]), _SEEDS])
            + _CHOSEN,
        )
        for number, series in enumerate(ablation.series, start=1)
    ]


def _remarks(those: Sequence[Series]) -> list[str]:
    return list(dict.fromkeys(clean(each.remark, 300) for each in those if each.remark))


def _points(series: Series) -> str:
    return ", ".join(f"{point.value} gives {_percent(point.accuracy)}" for point in series.points)


def _percent(found: Estimate) -> str:
    text = f"{100 * found.mean:.1f} %"
    return text if found.bounds is None else f"{text} ({100 * found.bounds[0]:.1f} to {100 * found.bounds[1]:.1f})"


def _price(runs: Sequence[drawings.Run]) -> str:
    passes = [run.passes for run in runs if run.passes]
    return f" in {sum(passes) / len(passes):.1f} passes" if passes else ""


def _effects(claim: drawings.Claim) -> str:
    return ", ".join(f"{k} steps: {100 * effect.mean:+.1f}" for k, effect in claim.by_steps.items())


def _alt(what: str, each: Sequence[str]) -> str:
    return clean(f"{what}. {'; '.join(each)}.", _ALT)


def _parts(items: Sequence[T]) -> Iterator[tuple[list[T], str, str]]:
    """As many items as one picture takes at once; what its file's name and its title say of there being several."""
    count = -(-len(items) // _AT_ONCE)
    for number in range(1, count + 1):
        part = list(items[(number - 1) * _AT_ONCE : number * _AT_ONCE])
        yield part, f"_{number}" if count > 1 else "", f" ({number} of {count})" if count > 1 else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60] or "picture"
