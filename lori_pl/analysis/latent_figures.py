"""Pictures of what latents hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lori_pl.analysis.agreement import NORMAL_95, Agreement
from lori_pl.analysis.latents import EXAMPLES, LatentPart

LONGEST_TEXT = 9


def _latent_ticks(axes: Axes, count: int) -> None:
    step = max(1, -(-count // 24))
    axes.set_xticks(range(0, count, step), [f"z{i + 1}" for i in range(0, count, step)])


def _write(axes: Axes, row: int, column: int, text: str, value: Any, limits: tuple[float, float], **look: Any) -> None:
    dark = (float(value) - limits[0]) / max(limits[1] - limits[0], 1e-9) > 0.6
    # what stands in data is no mathematics
    axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", parse_math=False, **look)


def draw_lens(part: LatentPart) -> Figure:
    """The likeliest token of each latent after each layer, for some problems."""
    layers, latents = part.lens.tokens.shape[1:3]
    count = min(EXAMPLES, len(part.problems))
    figure = Figure(figsize=(1.8 + 0.95 * latents, (0.9 + 0.32 * layers) * count + 0.6), layout="constrained")
    panels = figure.subplots(count, 1, squeeze=False)[:, 0]
    for axes, problem, tokens, shares in zip(
        panels, part.problems, part.lens.tokens, part.lens.probabilities, strict=False
    ):
        image = axes.imshow(shares[..., 0].numpy(), vmin=0, vmax=1, cmap="Blues", origin="lower", aspect="auto")
        for layer in range(layers):
            for latent in range(latents):
                text = part.tokens[int(tokens[layer, latent, 0])]
                text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
                _write(axes, layer, latent, text, float(shares[layer, latent, 0]), (0, 1), fontsize=8)
        steps = " ".join(problem.steps)
        steps = steps if len(steps) <= 14 * latents else steps[: 14 * latents - 1] + "…"
        axes.set_title(f"{steps} → {problem.answer}", fontsize=8, parse_math=False)
        axes.set_ylabel("layer")
        every = max(1, layers // 12)
        axes.set_yticks(range(0, layers, every), ["input", *map(str, range(every, layers, every))])
        _latent_ticks(axes, latents)
    panels[-1].set_xlabel("latent")
    figure.colorbar(image, ax=list(panels), label="probability of the likeliest token", shrink=0.8)
    figure.suptitle("Logit lens: the likeliest token of a latent after each layer", fontsize=10)
    return figure


def draw_agreement(found: Agreement, top_k: int) -> Figure:
    """Step by latent after the last layer: how often the result is in the top k, by chance, and the difference."""
    tables = {"result in the top k": found.share[-1], "by chance": found.chance[-1]}
    steps, latents = found.share.shape[1:]
    figure = Figure(figsize=(3.6 + 1.55 * latents, 2.0 + 0.45 * steps), layout="constrained")
    panels = figure.subplots(1, 3)
    labels = [f"{i + 1} (n = {n})" for i, n in enumerate(found.problems.tolist())]
    for axes, (title, table) in zip(panels, tables.items(), strict=False):
        _heat(axes, 100 * table.numpy(), (0, 100), "Blues", "{:.0f}")
        axes.set(title=title, xlabel="latent")
    difference = 100 * (found.share[-1] - found.chance[-1]).numpy()
    bound = _bound(difference)
    _heat(panels[2], difference, (-bound, bound), "RdBu_r", "{:+.0f}", 100 * NORMAL_95 * found.error[-1].numpy())
    panels[2].set(title="difference", xlabel="latent")
    for axes in panels:
        axes.set_yticks(range(steps), labels if axes is panels[0] else [""] * steps)
    panels[0].set_ylabel("step of the rationale")
    for axes in (panels[0], panels[2]):
        figure.colorbar(axes.images[0], ax=axes, label="% of problems" if axes is panels[0] else "points")
    figure.suptitle(
        f"Is a step's result among the {top_k} likeliest tokens of a latent after the last layer?\n"
        "chance: the result of the same step of other problems of as many steps; ± the 95 % interval",
        fontsize=10,
    )
    return figure


def draw_agreement_by_layer(found: Agreement, top_k: int) -> Figure:
    """The difference to chance after every layer, or after some of a deep model."""
    layers, steps, latents = found.share.shape
    shown = np.unique(np.linspace(0, layers - 1, min(layers, 12)).round().astype(int))
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    size = (1.6 + (0.8 + 0.34 * latents) * columns, 1.2 + (0.7 + 0.28 * steps) * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    difference = 100 * (found.share - found.chance).numpy()
    bound = _bound(difference)
    for axes, layer in zip(panels, shown, strict=False):
        _heat(axes, difference[layer], (-bound, bound), "RdBu_r", None)
        axes.set_title("input" if layer == 0 else f"after layer {layer}", fontsize=9)
        axes.set_yticks(range(steps), [str(i + 1) for i in range(steps)])
        axes.tick_params(labelsize=7)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("step", fontsize=8)
    colours = ScalarMappable(Normalize(-bound, bound), "RdBu_r")
    figure.colorbar(colours, ax=list(panels), label="points above chance")
    halves = 100 * NORMAL_95 * found.error
    halves = halves[halves.isfinite()]
    title = f"Result of a step in the top {top_k} of a latent, above chance, by layer"
    if len(halves):
        median, most = float(halves.median()), float(halves.max())
        title += f"\n95 % intervals: ± {median:.0f} points in the median, ± {most:.0f} at most"
    figure.suptitle(title, fontsize=10)
    return figure


def _bound(difference: np.ndarray) -> float:
    """End of the colour scale: never so near that a weak agreement looks like a strong one."""
    return float(np.abs(difference[np.isfinite(difference)]).max(initial=50.0))


def _heat(
    axes: Axes,
    table: np.ndarray,
    limits: tuple[float, float],
    colours: str,
    form: str | None,
    halves: np.ndarray | None = None,
) -> None:
    """Draws a table, its values in its fields; below them half the width of their intervals, where it is given."""
    axes.imshow(table, vmin=limits[0], vmax=limits[1], cmap=colours, aspect="auto")
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        if form is not None and np.isfinite(value):
            size = abs(value) if limits[0] < 0 else value
            text = form.format(value) + ("" if halves is None else f"\n±{halves[row, column]:.0f}")
            _write(axes, row, column, text, size, (0, limits[1]), fontsize=7 if halves is None else 6)
    _latent_ticks(axes, table.shape[1])


def draw_interventions(part: LatentPart) -> Figure:
    """Accuracy by latent and intervention, and under projections of all latents by rank."""
    base = part.outcomes[0].correct
    names = list(dict.fromkeys(each.name for each in part.outcomes[1:] if each.latent is not None))
    rows = [*range(part.latents), None]
    table = np.full((len(rows), len(names)), np.nan)
    texts = {}
    for each in part.outcomes[1:]:
        if each.name in names:
            place = rows.index(each.latent), names.index(each.name)
            table[place] = 100 * each.correct.mean()
            low, high = each.bounds
            texts[place] = f"{table[place]:.0f}\n({100 * low:.0f}-{100 * high:.0f})"
    figure = Figure(figsize=(4.8 + 0.75 * len(names) + 4.2, 1.8 + 0.42 * len(rows)), layout="constrained")
    heat, curve = figure.subplots(1, 2, width_ratios=[1 + 0.75 * len(names), 4.2])
    accuracy = 100 * base.mean()
    top = max(accuracy, np.nanmax(table))
    image = heat.imshow(table, vmin=0, vmax=top, cmap="Greens", aspect="auto")
    for place, text in texts.items():
        _write(heat, *place, text, table[place], (0, top), fontsize=7)
    named = ["mean" if name == "rank 0" else name for name in names]
    heat.set_xticks(range(len(names)), named, rotation=30, ha="right")
    heat.set_yticks(range(len(rows)), [f"z{i + 1}" for i in range(part.latents)] + ["all"])
    low, high = part.outcomes[0].bounds
    without = f"without a change {accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"
    heat.set(title=f"accuracy (%) with its 95 % interval\n{without}", ylabel="latent", xlabel="intervention")
    figure.colorbar(image, ax=heat, label="accuracy (%)")
    projected = [each for each in part.outcomes if each.latent is None and each.name.startswith("rank ")]
    ranks = [int(each.name.split()[1]) for each in projected]
    bounds = np.array([each.bounds for each in projected]) * 100
    places = range(len(ranks))
    curve.fill_between(places, bounds[:, 0], bounds[:, 1], color="#2b8a3e", alpha=0.2, label="95 % interval")
    curve.plot(places, [100 * each.correct.mean() for each in projected], "o-", color="#2b8a3e", label="projected")
    curve.axhline(accuracy, color="black", lw=1, ls=":", label="without a change")
    curve.set_xticks(places, ["0\n(mean)", *map(str, ranks[1:])])
    curve.set(title="all latents projected", xlabel="rank of the subspace", ylabel="accuracy (%)", ylim=(0, 102))
    curve.grid(alpha=0.25)
    curve.spines[["top", "right"]].set_visible(False)
    curve.legend(fontsize=8)
    return figure
