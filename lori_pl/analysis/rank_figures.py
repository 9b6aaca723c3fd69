"""Pictures of the rank of reasoning."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lori_pl.analysis.rank import RankPart
from lori_pl.analysis.spectra import Spectrum, TrajectorySpectra

TEACHER = ("#1f5fa8", "#6ba3dc", "#10375f")
STUDENT = ("#c4531a", "#e9975f", "#7a2f08", "#f3c39e")
LEARNED = ("#2b8a3e", "#7bbf87")
RANDOM = "#8a8a8a"
CONTROLS = {"permuted": ((0, (1, 1.5)), "entries permuted"), "shuffled": ((0, (4, 2)), "tokens in random order")}


def label(name: str) -> str:
    """What states are called in a picture: ``teacher/rationale/permuted`` as words."""
    side, *rest = name.split("/")
    if len(rest) < 2:
        return f"{side}: {' '.join(rest)}"
    extra = CONTROLS[rest[1]][1] if rest[1] in CONTROLS else rest[1]
    return f"{side}: {rest[0]}, {extra}"


def colours(part: RankPart, learned: list[str]) -> dict[str, str]:
    """A colour for each set of states: blue is the teacher's, orange the student's, green what was learned."""
    found: dict[str, str] = {}
    for side, palette in (("teacher", TEACHER), ("student", STUDENT)):
        names = [name for name in part.compared if name.startswith(f"{side}/")]
        found |= {name: palette[i % len(palette)] for i, name in enumerate(names)}
    return {**found, **{name: LEARNED[i % len(LEARNED)] for i, name in enumerate(learned)}}


def _tidy(axes: Axes, **settings: Any) -> None:
    axes.set(**settings)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _curve(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    shares = 100 * spectrum.shares.cumsum(0).cpu().numpy()
    return np.arange(1, len(shares) + 1), shares


def draw_spectra(part: RankPart, tokens: str) -> Figure:
    """Cumulative energy by rank, a panel a mode, a curve for each set of states and its controls.

    Args:
        part: What was measured.
        tokens: Which tokens of a rationale make a trajectory.
    """
    figure = Figure(figsize=(12.5, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    tint = colours(part, [])
    of = {"layer": "layers", "hidden": "hidden entries", "position": "positions"}
    for axes, mode in zip(panels, ("layer", "hidden", "position"), strict=True):
        for name, each in part.spectra.items():
            owner, _, kind = name.rpartition("/") if name.count("/") == 2 else (name, "", "")
            if kind in ("right", "wrong"):
                continue
            ranks, energy = _curve(each.modes[mode])
            style = CONTROLS[kind][0] if kind else "-"
            marker = "." if len(ranks) <= 12 else ""
            axes.plot(ranks, energy, color=tint[owner], linestyle=style, marker=marker, lw=1.6, label=label(name))
        most = max(len(each.modes[mode].values) for each in part.spectra.values())
        _tidy(axes, xlabel=f"rank (of at most {most} {of[mode]})", ylim=(0, 102), title=f"{mode} mode")
        if most > 16:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("cumulative energy (%)")
    what = f"centred, every layer at unit size; rationale tokens: {tokens.replace('_', ' ')}"
    figure.suptitle(f"How many directions hold the energy of the states ({what})", fontsize=11)
    _legend_below(figure, panels[1], 4)
    return figure


def draw_energy(part: RankPart) -> Figure:
    """Cumulative energy by rank within each layer and at each position, a column of panels for each set of states."""
    names = part.compared
    figure = Figure(figsize=(1.6 + 3.6 * len(names), 7.4), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False)
    for column, name in zip(panels.T, names, strict=True):
        each = part.spectra[name]
        places, along = _positions(each)
        layers = np.arange(1, len(each.by_layer) + 1)
        rows = ((each.by_layer, layers, "layer (of those selected)"), (each.by_position, places, along))
        for axes, (spectra, values, what) in zip(column, rows, strict=True):
            scale = ScalarMappable(Normalize(values[0], max(values[-1], values[0] + 1)), "viridis")
            for spectrum, value in zip(spectra, values, strict=True):
                axes.plot(*_curve(spectrum), color=scale.to_rgba(value), lw=1.3)
            _tidy(axes, xlabel="rank (directions)", ylim=(0, 102))
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            figure.colorbar(scale, ax=axes, label=what, ticks=MaxNLocator(integer=True))
        column[0].set_title(label(name))
    for axes in panels[:, 0]:
        axes.set_ylabel("cumulative energy (%)")
    figure.suptitle("How many directions hold the energy of the states of one layer, and at one position", fontsize=11)
    return figure


def _positions(each: TrajectorySpectra) -> tuple[np.ndarray, str]:
    """Where the entries by position stand, and what that is: numbers of tokens, or percent of each trajectory."""
    count = len(each.by_position)
    if each.is_by_token:
        return np.arange(1, count + 1), "position (number of the token)"
    return 100 * (np.arange(count) + 0.5) / count, "position (% of the trajectory)"


def draw_effective_ranks(part: RankPart) -> Figure:
    """Effective rank by layer and by position: by token for short trajectories, by part for long ones."""
    shown = {name: each for name, each in part.spectra.items() if name.rpartition("/")[2] not in ("right", "wrong")}
    along = list(dict.fromkeys(_positions(each)[1] for each in shown.values()))
    figure = Figure(figsize=(5.5 * (1 + len(along)), 4.8), layout="constrained")
    by_layer, *panels = figure.subplots(1, 1 + len(along), sharey=True)
    by_position: dict[str, Axes] = dict(zip(along, panels, strict=True))
    tint = colours(part, [])
    for name, each in shown.items():
        owner, _, kind = name.rpartition("/") if name.count("/") == 2 else (name, "", "")
        look: dict[str, Any] = {
            "color": tint[owner],
            "linestyle": CONTROLS[kind][0] if kind else "-",
            "marker": "o",
            "ms": 3.5,
            "label": label(name),
        }
        layers = [spectrum.effective_rank for spectrum in each.by_layer]
        by_layer.plot(range(1, len(layers) + 1), layers, **look)
        parts = [spectrum.effective_rank for spectrum in each.by_position]
        places, text = _positions(each)
        by_position[text].plot(places, parts, **look)
    _tidy(by_layer, xlabel="layer (of those selected)", ylabel="effective rank (directions)", title="by layer")
    by_layer.xaxis.get_major_locator().set_params(integer=True)
    for text, axes in by_position.items():
        _tidy(axes, xlabel=text, title="by position, over problems and layers")
        if "%" in text:
            axes.set_xlim(0, 100)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_layer.set_ylim(bottom=0)
    figure.suptitle("Effective rank of the states (exponential of the entropy of the singular values)")
    _legend_below(figure, by_layer, 4)
    return figure


def draw_right_wrong(part: RankPart) -> Figure | None:
    """Spectra over problems that the student answers right against those that it answers wrong; ``None`` without."""
    names = [name for name in part.reasoning.values() if f"{name}/right" in part.spectra]
    if not names:
        return None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    energy, by_layer = figure.subplots(1, 2)
    tint = colours(part, [])
    for name in names:
        for kind, style in (("right", "-"), ("wrong", (0, (4, 2)))):
            each = part.spectra[f"{name}/{kind}"]
            look: dict[str, Any] = {"color": tint[name], "linestyle": style, "label": label(f"{name}/{kind}")}
            energy.plot(*_curve(each.modes["hidden"]), **look)
            ranks = [spectrum.effective_rank for spectrum in each.by_layer]
            by_layer.plot(range(1, len(ranks) + 1), ranks, marker="o", ms=3.5, **look)
    _tidy(energy, xlabel="rank (directions)", ylabel="cumulative energy (%)", ylim=(0, 102), title="hidden mode")
    energy.set_xscale("log", base=2)
    energy.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    _tidy(by_layer, xlabel="layer (of those selected)", ylabel="effective rank (directions)", title="by layer")
    by_layer.xaxis.get_major_locator().set_params(integer=True)
    by_layer.set_ylim(bottom=0)
    said = [f"{label(name)}: {difference}" for name, difference in part.right_wrong.items()]
    what = "Problems that the student answers right, and as many that it answers wrong"
    figure.suptitle("\n".join([what, *said]), fontsize=10)
    _legend_below(figure, energy, 4)
    return figure


def draw_angles(part: RankPart, learned: list[str]) -> Figure | None:
    """Principal angles of hidden-mode subspaces with those in which both sides reason; ``None`` without a pair."""
    pairs = part.angles["hidden"]
    if not pairs:
        return None
    centres = list(part.reasoning.values())
    figure = Figure(figsize=(5.6 * len(centres), 5.2), layout="constrained")
    panels = figure.subplots(1, len(centres), squeeze=False)[0]
    tint = colours(part, learned)
    for axes, centre in zip(panels, centres, strict=True):
        drawn: set[tuple[int, ...]] = set()
        for pair, found in pairs.items():
            names = pair.split(" | ")
            if centre not in names:
                continue
            other = names[1 - names.index(centre)]
            count = np.arange(1, len(found["angles"]) + 1)
            ranks = tuple(found["ranks"][:: 1 if names[0] == centre else -1])
            axes.plot(count, found["angles"], color=tint[other], marker=".", label=f"{label(other)} (rank {ranks[1]})")
            if ranks not in drawn:
                drawn.add(ranks)
                text = f"random subspaces (ranks {ranks[0]}, {ranks[1]})"
                axes.plot(count, found["random"], color=RANDOM, linestyle=(0, (1, 1.5 * len(drawn))), label=text)
        _tidy(axes, title=f"with {label(centre)}", xlabel="principal angle, by number", ylim=(-2, 92))
        axes.set_yticks(range(0, 91, 15))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    panels[0].set_ylabel("angle (degrees; 0 is a shared direction)")
    figure.suptitle("Principal angles between hidden-mode subspaces")
    return figure


def draw_captured(part: RankPart, learned: list[str]) -> Figure:
    """How much of the energy of the states of reasoning lies in the first directions of other subspaces."""
    centres = list(part.reasoning.values())
    figure = Figure(figsize=(5.6 * len(centres), 5.2), layout="constrained")
    panels = figure.subplots(1, len(centres), squeeze=False)[0]
    tint = colours(part, learned)
    for axes, centre in zip(panels, centres, strict=True):
        dimension = len(part.spectra[centre].modes["hidden"].values)
        for pair, shares in part.captured.items():
            name, other = pair.split(" | ")
            if name != centre:
                continue
            text = "its own directions (the most possible)" if other == centre else label(other)
            look: dict[str, Any] = {"color": "black" if other == centre else tint[other], "label": text}
            # shared factors lie on the teacher's own
            look["linestyle"] = (0, (4, 2)) if other in learned else "-"
            axes.plot(range(1, len(shares) + 1), 100 * np.array(shares), **look)
        ranks = np.arange(1, dimension + 1)
        axes.plot(ranks, 100 * ranks / dimension, color=RANDOM, linestyle=":", label="random directions, on average")
        _tidy(axes, title=f"energy of {label(centre)}", xlabel="rank: first directions of ...", ylim=(0, 102))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    panels[0].set_ylabel("energy held (%)")
    figure.suptitle("How much of the energy lies in other subspaces")
    return figure
