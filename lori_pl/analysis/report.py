"""What an analysis leaves: numbers as JSON, pictures as PNG and in TensorBoard, tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from lori_pl.analysis.latent_figures import draw_agreement, draw_agreement_by_layer, draw_interventions, draw_lens
from lori_pl.analysis.latents import LatentPart
from lori_pl.analysis.rank import RankPart
from lori_pl.analysis.rank_figures import (
    draw_angles,
    draw_captured,
    draw_effective_ranks,
    draw_energy,
    draw_right_wrong,
    draw_spectra,
    label,
)
from lori_pl.evaluation.report import write_json
from lori_pl.tables import percent_above_interval, print_whole

JSON = "analysis.json"
TENSORBOARD = "tensorboard"
DPI = 130


def draw(rank: RankPart, learned: list[str], latents: LatentPart | None, tokens: str) -> dict[str, Figure]:
    """All pictures by name.

    Args:
        rank: The rank of reasoning.
        learned: Names of the factors that an alignment has fitted.
        latents: What latents hold, where there are any.
        tokens: Which tokens of a rationale make a trajectory.
    """
    figures: dict[str, Figure | None] = {
        "spectra": draw_spectra(rank, tokens),
        "energy": draw_energy(rank),
        "effective_rank": draw_effective_ranks(rank),
        "right_wrong": draw_right_wrong(rank),
        "angles": draw_angles(rank, learned),
        "captured_energy": draw_captured(rank, learned),
    }
    if latents is not None:
        figures["lens"] = draw_lens(latents)
        if (found := latents.agreement) is not None:
            top_k = latents.lens.tokens.shape[-1]
            figures["agreement"] = draw_agreement(found, top_k)
            figures["agreement_by_layer"] = draw_agreement_by_layer(found, top_k)
        figures["interventions"] = draw_interventions(latents)
    return {name: figure for name, figure in figures.items() if figure is not None}


def write(folder: Path, result: dict[str, Any], figures: dict[str, Figure]) -> None:
    """Writes numbers and pictures to a new folder."""
    folder.mkdir(parents=True)
    write_json(folder / JSON, _rounded(result))
    writer = SummaryWriter(str(folder / TENSORBOARD))
    try:
        for name, figure in figures.items():
            # drawn once for both
            figure.set_dpi(DPI)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())
            imsave(folder / f"{name}.png", pixels)
            writer.add_image(f"analysis/{name}", pixels, dataformats="HWC")
    finally:
        writer.close()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def tables(title: str, rank: RankPart, latents: LatentPart | None) -> list[Table]:
    """The figures in short: of the rank, and of the latents where there are any.

    Args:
        title: What was analysed.
        rank: Its rank.
        latents: What its latents hold.
    """
    found = [rank_table(title, rank)]
    if latents is not None:
        found += [agreement_table(latents)] if latents.agreement is not None else []
        found.append(interventions_table(latents))
    return found


def show(console: Console, made: list[Table], rank: RankPart, latents: LatentPart | None) -> None:
    """Prints the tables, and what was left out.

    Args:
        console: Where.
        made: The `tables`.
        rank: What the first is of.
        latents: What the others are of.
    """
    first, *others = made
    print_whole(first, console)
    for name, difference in rank.right_wrong.items():
        console.print(Text(f"{label(name)}: {difference}"))
    for note in [*rank.notes, *(latents.notes if latents is not None else [])]:
        console.print(Text(f"left out: {note}"))
    for each in others:
        print_whole(each, console)


def rank_table(title: str, rank: RankPart) -> Table:
    """Effective rank of each kind of states by mode."""
    caption = "effective rank by mode, of at most; directions that hold 90 % of the energy"
    table = Table(title=Text(title), caption=caption)
    for column in ("states", "tokens", "layer", "hidden", "position", "hidden 90 %"):
        table.add_column(column, justify="left" if column == "states" else "right", no_wrap=True)
    for name, each in rank.spectra.items():
        modes = (each.modes[mode] for mode in ("layer", "hidden", "position"))
        ranks = [f"{mode.effective_rank:.1f} of {len(mode.values)}" for mode in modes]
        table.add_row(Text(label(name)), str(each.tokens), *ranks, str(each.modes["hidden"].rank_for(0.9)))
    return table


def agreement_table(latents: LatentPart) -> Table:
    """For each step the latent that holds its result most clearly above chance, after the last layer."""
    found, results = latents.agreement, latents.results
    assert found is not None
    assert results is not None
    table = Table(
        title=f"result of a step in a latent's top {latents.lens.tokens.shape[-1]} after the last layer, in %"
    )
    if results.longer:
        table.caption = f"{results.longer} of {results.count} results have more than one token: the first is looked for"
    for column in ("step", "problems", "latent", "share", "chance", "difference", "95 % interval"):
        table.add_column(column, justify="right")
    for step, count in enumerate(found.problems.tolist()):
        if count:
            best = int((found.share[-1, step] - found.chance[-1, step]).argmax())
            share, chance = float(found.share[-1, step, best]), float(found.chance[-1, step, best])
            low, high = (100 * float(bound[-1, step, best]) for bound in found.bounds)
            values = (f"{100 * share:.1f}", f"{100 * chance:.1f}", f"{100 * (share - chance):+.1f}")
            table.add_row(str(step + 1), str(count), f"z{best + 1}", *values, f"{low:+.1f} to {high:+.1f}")
    return table


def interventions_table(latents: LatentPart) -> Table:
    """Accuracy by latent and intervention, each above its interval over problems."""
    names = sorted({each.name for each in latents.outcomes[1:]}, key=_by_rank)
    base = latents.outcomes[0]
    low, high = base.bounds
    without = f"{100 * base.correct.mean():.1f} ({100 * low:.1f}-{100 * high:.1f}) without a change"
    table = Table(title=f"accuracy in % with its 95 % interval; {without}")
    for column in ("latent", *("mean" if name == "rank 0" else name for name in names)):
        table.add_column(column, justify="right")
    accuracy = {
        (each.name, each.latent): percent_above_interval(float(each.correct.mean()), each.bounds)
        for each in latents.outcomes[1:]
    }
    for latent in (*range(latents.latents), None):
        shown = "all" if latent is None else f"z{latent + 1}"
        table.add_row(shown, *(accuracy.get((name, latent), "") for name in names))
    swapped = next((each for each in latents.outcomes if (each.name, each.latent) == ("swap", None)), None)
    before = base.donated
    if swapped is not None and swapped.donated is not None and before is not None:
        with_them, by_chance = 100 * swapped.donated.mean(), 100 * before.mean()
        table.caption = f"the other problem's answer: {with_them:.1f} after a swap of all, {by_chance:.1f} by chance"
    return table


def _by_rank(name: str) -> tuple[bool, int, str]:
    kind, _, rank = name.partition(" ")
    return kind == "rank", int(rank or 0), kind
