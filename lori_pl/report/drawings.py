"""What a report draws of its runs: accuracies, their price, what was varied, and how they were learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lori_pl.evaluation.claims import FEWEST_SEEDS, Claim
from lori_pl.report.ablations import Ablation, Series
from lori_pl.report.files import Timed
from lori_pl.report.pictures import COLOURS, INK, PAPER, WIDTH, legend, look, panels, plain, shortened
from lori_pl.report.records import Estimate, Run, estimate

Methods = Mapping[str, Sequence[Run]]


def accuracies(methods: Methods) -> Figure:
    """A line a method: mean accuracy, its interval, and each seed as a small point."""
    figure = Figure(figsize=(WIDTH, 0.75 + 0.3 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for place, runs in enumerate(methods.values()):
        values = [100 * run.accuracy for run in runs if run.accuracy is not None]
        if len(values) > 1:
            axes.plot(values, [place] * len(values), "o", color=INK, alpha=0.45, markersize=3, zorder=3)
        _bar(axes, accuracy(runs), float(place), COLOURS[0], across=True)
    axes.set_yticks(range(len(methods)), shortened(list(methods)))
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set(xlabel="accuracy (%)")
    axes.grid(False, axis="y")
    return figure


def by_steps(methods: Methods) -> Figure:
    """A line a method: accuracy among the problems of each number of steps, with the interval over seeds."""
    figure, (axes,) = panels(1, list(methods))
    lines = []
    for place, runs in enumerate(methods.values()):
        steps = sorted({k for run in runs for k in run.by_steps})
        found = [at_steps(runs, k) for k in steps]
        lines.append(_line(axes, beside(steps, place, len(methods)), found, look(place)))
    _whole_ticks(axes, sorted({k for runs in methods.values() for run in runs for k in run.by_steps}))
    axes.set(xlabel="steps of the rationale", ylabel="accuracy (%)", ylim=(-2, 102))
    legend(figure, lines, list(methods))
    return figure


def against_latency(methods: Methods, milliseconds: bool = True) -> Figure:
    """Accuracy against model passes and milliseconds a question, a point a method.

    Args:
        methods: The runs by method.
        milliseconds: Whether these compare: they are of one machine.
    """
    measures: dict[str, Callable[[Run], float | None]] = {"model passes a question": lambda run: run.passes}
    if milliseconds:
        measures["milliseconds a question, in batches"] = lambda run: run.milliseconds
    shown = {name: of for name, of in measures.items() if any(of(run) for runs in methods.values() for run in runs)}
    figure, all_axes = panels(len(shown), list(methods), height=2.6)
    handles: dict[str, object] = {}
    for axes, (name, of) in zip(all_axes, shown.items(), strict=True):
        for place, (method, runs) in enumerate(methods.items()):
            those = [run for run in runs if of(run)]
            if those:
                values = [value for run in those if (value := of(run)) is not None]
                # two seeds say too little of a time to draw it
                x = estimate(values, share=False) if len(values) >= FEWEST_SEEDS else Estimate(float(np.mean(values)))
                handles[method] = _cross(axes, x, accuracy(those), look(place))
        axes.set(xlabel=name, ylabel="accuracy (%)", ylim=(-2, 102))
        _scale(axes)
    legend(figure, list(handles.values()), list(handles))
    return figure


def timings(sets: Mapping[str, Sequence[Timed]]) -> Figure:
    """Accuracy against the time of one question alone, with quartiles and the interval over problems.

    Args:
        sets: The students by test set, a panel each.
    """
    names = list(dict.fromkeys(student.name for students in sets.values() for student in students))
    figure, all_axes = panels(len(sets), names)
    handles: dict[str, object] = {}
    for axes, (title, students) in zip(all_axes, sets.items(), strict=True):
        for student in students:
            milliseconds = Estimate(student.milliseconds[0], student.milliseconds[1:], "quartiles")
            answered = Estimate(student.accuracy[0], student.accuracy[1:], "problems")
            handles[student.name] = _cross(axes, milliseconds, answered, look(names.index(student.name)))
        axes.set(xlabel="milliseconds for one question alone", ylabel="accuracy (%)", ylim=(-2, 102))
        _scale(axes)
        if len(sets) > 1:
            axes.set_title(plain(title))
    legend(figure, [handles[name] for name in names], names)
    return figure


def curves(ablation: Ablation) -> Figure:
    """A line a series: accuracy by the varied number, with intervals; the value that validation chose is ringed."""
    figure, (axes,) = panels(1, [series.name for series in ablation.series])
    lines = []
    for place, series in enumerate(ablation.series):
        x = [float(point.value) for point in series.points]
        lines.append(_line(axes, x, [point.accuracy for point in series.points], look(place)))
        if (chosen := series.chosen) is not None:
            axes.plot(
                float(chosen.value), 100 * chosen.accuracy.mean, "o", markersize=11, color=INK, fillstyle="none", lw=0
            )
    values = sorted({float(point.value) for series in ablation.series for point in series.points})
    if values[0] > 0 and values[-1] >= 8 * values[0]:
        axes.set_xscale("log")
    if len(values) <= 7:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.set(xlabel=plain(ablation.key, 50), ylabel="accuracy (%)")
    legend(figure, lines, [series.name for series in ablation.series])
    return figure


def choices(ablation: Ablation, series: Series) -> Figure:
    """A line a value that is no number: accuracy with its interval, the choice of validation ringed."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.5 * len(series.points)), layout="constrained")
    axes = figure.subplots()
    for place, point in enumerate(series.points):
        _bar(axes, point.accuracy, place + 0.18, COLOURS[0], across=True)
        if point is series.chosen:
            axes.plot(
                100 * point.accuracy.mean, place + 0.18, "o", markersize=11, color=INK, fillstyle="none", lw=0, zorder=4
            )
        axes.annotate(plain(point.value, 58), (0, place - 0.16), xycoords=("axes fraction", "data"), fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(len(series.points) - 0.5, -0.5)
    axes.set(xlabel="accuracy (%)")
    axes.grid(False, axis="y")
    return figure


def effects(claims: Sequence[Claim]) -> Figure:
    """A line a claim: the difference by number of steps, with the interval over seeds."""
    figure, (axes,) = panels(1, [], rows=len(claims))
    steps = sorted({k for claim in claims for k in claim.by_steps})
    lines = []
    for place, claim in enumerate(claims):
        found = [Estimate(effect.mean, effect.bounds, effect.unit) for effect in claim.by_steps.values()]
        lines.append(_line(axes, beside(list(claim.by_steps), place, len(claims)), found, look(place)))
    axes.axhline(0, color=INK, linewidth=0.9)
    _whole_ticks(axes, steps)
    axes.set(xlabel="steps of the rationale", ylabel="difference (points)")
    names = [f"{plain(claim.first)} − {plain(claim.second)}" for claim in claims]
    if len(claims) > 1:
        figure.legend(lines, names, loc="outside lower center", ncols=1)
    else:
        axes.set_title(names[0], fontsize=8)
    return figure


def learning(methods: Mapping[str, Sequence[np.ndarray]], what: str) -> Figure:
    """A line a run, coloured by method: a learning curve.

    Args:
        methods: Each method's curves, shape (2, n): steps and values.
        what: ``validation`` or ``loss``.
    """
    figure, (axes,) = panels(1, list(methods))
    lines = []
    for place, runs in enumerate(methods.values()):
        style = look(place) | ({"marker": "none"} if what == "loss" else {"markersize": 3})
        drawn = [axes.plot(x, 100 * y if what == "validation" else y, alpha=0.85, lw=1.1, **style) for x, y in runs]
        lines.append(drawn[0][0])
    axes.set(xlabel="training steps", ylabel="validation accuracy (%)" if what == "validation" else "training loss")
    if what == "validation":
        axes.set_ylim(-2, 102)
    elif all((y > 0).all() for runs in methods.values() for _, y in runs):
        axes.set_yscale("log", subs=[])
        lowest, highest = axes.dataLim.intervaly
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 300 * lowest else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
    legend(figure, lines, list(methods))
    return figure


def accuracy(runs: Sequence[Run]) -> Estimate:
    """A method's accuracy over its seeds."""
    return estimate([run.accuracy for run in runs if run.accuracy is not None], runs[0].n)


def beside(steps: Sequence[int], place: int, count: int) -> list[float]:
    """Numbers of steps, moved a little for each line, so that intervals do not hide each other."""
    return [k + 0.3 * (place - (count - 1) / 2) / max(count, 3) for k in steps]


def at_steps(runs: Sequence[Run], steps: int) -> Estimate:
    """A method's accuracy over its seeds among the problems of a number of steps, of which some run has one."""
    those = [run for run in runs if steps in run.by_steps]
    return estimate([run.by_steps[steps] for run in those], those[0].step_counts.get(steps))


def _line(axes: Axes, x: Sequence[float], found: Sequence[Estimate], style: dict[str, Any]) -> Any:
    """Means as a line and their intervals as bars; a hollow point's interval is not over seeds."""
    (line,) = axes.plot(x, [100 * each.mean for each in found], **style)
    for place, each in zip(x, found, strict=True):
        _bar(axes, each, place, style["color"], style["marker"])
    return line


def _bar(axes: Axes, found: Estimate, place: float, colour: str, marker: str = "o", across: bool = False) -> None:
    mean = 100 * found.mean
    error = _arms(mean, found)
    point: dict[str, Any] = {"x": mean, "y": place, "xerr": error} if across else {"x": place, "y": mean, "yerr": error}
    face = colour if found.unit == "seeds" else PAPER
    axes.errorbar(**point, fmt=marker, color=colour, markerfacecolor=face, capsize=2.5, elinewidth=1.3, zorder=3)


def _cross(axes: Axes, x: Estimate, y: Estimate, style: dict[str, Any]) -> ErrorbarContainer:
    mean = 100 * y.mean
    across = None if x.bounds is None else [[x.mean - max(x.bounds[0], x.mean / 20)], [x.bounds[1] - x.mean]]
    return axes.errorbar(
        x.mean,
        mean,
        xerr=across,
        yerr=_arms(mean, y),
        fmt=style["marker"],
        color=style["color"],
        markerfacecolor=style["color"] if y.unit == "seeds" else PAPER,
        capsize=2,
        elinewidth=1.1,
    )


def _arms(mean: float, found: Estimate) -> list[list[float]] | None:
    """Lengths of an interval's two sides in percent; rounding leaves none below 0."""
    if found.bounds is None:
        return None
    return [[max(mean - 100 * found.bounds[0], 0.0)], [max(100 * found.bounds[1] - mean, 0.0)]]


def _scale(axes: Axes) -> None:
    """A horizontal axis of costs: logarithmic where they differ much, else from 0, so that little looks like little."""
    low, high = axes.dataLim.intervalx
    if low > 0 and high > 8 * low:
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
    elif high > 0:
        axes.set_xlim(0, 1.08 * high)


def _whole_ticks(axes: Axes, steps: Sequence[int]) -> None:
    if len(steps) <= 12:
        axes.set_xticks(steps)
