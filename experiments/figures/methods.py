"""Draws docs/images/methods.png and prints the tables of all methods, from their recorded results.

Run in the root of the repository: ``python experiments/figures/methods.py [FOLDER] [FILE] [PAGE...]``; with pages the
tables are written into these as well, each where its marker stands, ``<!-- results:methods -->`` for the first.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lori_pl.evaluation.claims import Claim, Measured, adjust, claim, span
from lori_pl.evaluation.intervals import seed_interval
from lori_pl.files import replace_file
from lori_pl.report.markdown import as_markdown
from lori_pl.report.tables import Table, effect_at

FOLDER = Path("experiments/methods")
FILE = Path("docs/images/methods.png")
TENTH = 10
"""The costs are those of a tenth of a training."""
MEASURED = {
    "training_tflop": "measuring_tflop",
    "teacher_tflop": "measuring_tflop",
    "training_seconds": "measuring_seconds",
}
"""What a training's cost includes of what its terms measure before it, all of it the teacher's."""

NAMES = {
    "explicit_cot": ("explicit CoT", "#22303c"),
    "no_cot": ("No-CoT", "#8a97a3"),
    "pause": ("Pause", "#b9a18f"),
    "icot_si": ("iCoT-SI", "#6a8f2b"),
    "coconut": ("Coconut", "#3f9c9c"),
    "codi": ("CODI", "#2f6fb3"),
    "sim_cot_codi": ("SIM-CoT on CODI", "#b02f5c"),
    "sim_cot_coconut": ("SIM-CoT on Coconut", "#e08aa8"),
    "pccot": ("PCCoT", "#8b5fb0"),
    "kava": ("KaVa", "#c2a300"),
    "lori": ("LoRi", "#c8641e"),
    "lori_pccot": ("LoRi on PCCoT", "#e8a878"),
    "latent_only": ("latents alone", "#7fb2dd"),
    "anchor_only": ("anchor alone", "#b99fd0"),
}
OWN_START = "_own_start"
VARIANTS = {"": "", OWN_START: ", from random weights", "_equal_passes": ", 7 passes"}
STEP = "accuracy_steps_"
BLANK = "\n\n"
GAP = 3.2
"""Percent between two names in the picture."""


def rows_of(file: Path) -> dict[str, list[dict[str, str]]]:
    """The last finished row of each method and seed by method: full's methods first, then their variants."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        last = {(row["method"], row["seed"]): row for row in csv.DictReader(lines) if row["status"] == "ok"}
    names = [name + variant for variant in VARIANTS for name in NAMES]
    found = {name: [last[key] for key in sorted(last, key=lambda key: int(key[1])) if key[0] == name] for name in names}
    return {name: rows for name, rows in found.items() if rows}


def title(method: str) -> str:
    """A method's name for people."""
    for variant, words in VARIANTS.items():
        if (base := method.removesuffix(variant)) in NAMES and base + variant == method:
            return NAMES[base][0] + words
    return method


def mean(rows: Sequence[dict[str, str]], column: str, scale: float = 1.0) -> float | None:
    """A column's mean over seeds, where every row has it."""
    values = [row.get(column) or "" for row in rows]
    return scale * float(np.mean([float(value) for value in values])) if rows and all(values) else None


def whole(cost: Sequence[dict[str, str]], column: str) -> float | None:
    """What the whole training costs: ten times the tenth, and once what its terms measure before it."""
    tenth, before = mean(cost, column, TENTH), mean(cost, MEASURED[column])
    return None if tenth is None or before is None else tenth + before


def shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The t interval of a mean over seeds, in percent, as far as there are such shares."""
    bounds = seed_interval(values)
    return None if bounds is None else (max(0, 100 * bounds[0]), min(100, 100 * bounds[1]))


def as_table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown: the first line is the head."""
    head, *rest = [list(line) for line in lines]
    return as_markdown(Table(head, rest))


def with_interval(values: Sequence[float]) -> str:
    """A mean over seeds with its interval, in percent."""
    bounds = interval(values)
    alone = "one seed" if len(values) == 1 else "all alike"
    said = alone if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
    return f"{100 * np.mean(values):.1f} ({said})"


def table(results: dict[str, list[dict[str, str]]], costs: dict[str, list[dict[str, str]]]) -> str:
    """Each method's accuracy, with its interval over seeds, passes and time of an answer, arithmetic of a training."""
    lines = [["method", "accuracy (95 % interval over seeds)", "each seed", "passes", "ms", "training TFLOP"]]
    for name, rows in results.items():
        accuracies = [float(row["accuracy"]) for row in rows]
        each = " ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
        cost = costs.get(name, [])
        measured = [shown(mean(cost, "milliseconds"), 2), shown(whole(cost, "training_tflop"), 0)]
        lines.append([title(name), with_interval(accuracies), each, shown(mean(rows, "passes"), 1), *measured])
    return as_table(lines)


def steps_table(results: dict[str, list[dict[str, str]]], steps: Sequence[str]) -> str:
    """Each method's accuracy by the number of steps of the chain."""
    lines = [["method", *(f"{step.removeprefix(STEP)} steps" for step in steps)]]
    lines += [
        [title(name), *(with_interval([float(row[step]) for row in rows]) for step in steps)]
        for name, rows in results.items()
    ]
    return as_table(lines)


def effects_table(made: Sequence[Claim]) -> str:
    """The differences of the claims by the number of steps of the chain."""
    steps = sorted({step for each in made for step in each.by_steps})
    lines = [["LoRi less", *(f"{step} steps" for step in steps)]]
    lines += [[title(each.second), *(effect_at(each, step) for step in steps)] for each in made]
    return as_table(lines)


def cost_table(costs: dict[str, list[dict[str, str]]]) -> str:
    """What each method's training costs, and a question's answer."""
    lines = [["method", "problems seen", "training TFLOP", "of these teacher's", "training s", "peak MiB", "ms"]]
    for name, cost in costs.items():
        cells = [title(name), shown(mean(cost, "problems_seen", TENTH), 0)]
        cells += [shown(whole(cost, column), 0) for column in MEASURED]
        lines.append([*cells, shown(mean(cost, "peak_memory_mib"), 0), shown(mean(cost, "milliseconds"), 2)])
    return as_table(lines)


def claims(results: dict[str, list[dict[str, str]]], steps: Sequence[str]) -> list[Claim]:
    """LoRi against every other method of the table, corrected together."""
    measured = {
        (name, int(row["seed"])): Measured(
            float(row["accuracy"]), {int(step.removeprefix(STEP)): float(row[step]) for step in steps}
        )
        for name, rows in results.items()
        for row in rows
    }
    seeds = {seed for name, seed in measured if name == "lori"}
    others = [name for name in results if name in NAMES and name != "lori"]
    others = [name for name in others if seeds & {seed for method, seed in measured if method == name}]
    return adjust([claim("lori", name, measured) for name in others])


def told(each: Claim) -> str:
    """A claim in a line."""
    bounds, values = each.effect.bounds, " ".join(f"{100 * value:+.1f}" for value in each.differences.values())
    said = "" if bounds is None else f" ({span(bounds)})"
    p = "" if each.p is None or each.adjusted is None else f", p {each.p:.2g}, Holm {each.adjusted:.2g}"
    return f"LoRi less {title(each.second)}: {100 * each.effect.mean:+.1f}{said}; {values}{p}: {each.verdict}"


def apart(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Heights, names and colours of labels above one another, moved up until none covers the one below."""
    placed: list[tuple[float, str, str]] = []
    for height, name, colour in sorted(labels):
        placed.append((max(height, placed[-1][0] + GAP) if placed else height, name, colour))
    return placed


def draw(results: dict[str, list[dict[str, str]]], steps: Sequence[str]) -> Figure:
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.15))
    ranked = figure.add_subplot(grid[:, 0])
    by_length, by_passes = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    lengths = [int(step.removeprefix(STEP)) for step in steps]
    order = sorted(results, key=lambda name: np.mean([float(row["accuracy"]) for row in results[name]]))
    at_end: list[tuple[float, str, str]] = []
    at_passes: dict[int, list[tuple[float, str, str]]] = {}
    for place, name in enumerate(order):
        rows = results[name]
        accuracies = [100 * float(row["accuracy"]) for row in rows]
        base = next(base for base in NAMES if name in {base + variant for variant in VARIANTS})
        colour, face = NAMES[base][1], NAMES[base][1] if name == base else "white"
        if (bounds := interval([accuracy / 100 for accuracy in accuracies])) is not None:
            ranked.plot(bounds, (place, place), color=colour, linewidth=1, alpha=0.6)
        ranked.scatter(accuracies, [place] * len(rows), s=14, color=face, edgecolors=colour, linewidths=1, zorder=2)
        if name.endswith(OWN_START):  # as many passes as without it
            continue
        passes = np.mean([float(row["passes"]) for row in rows])
        by_passes.scatter(passes, np.mean(accuracies), s=34, color=face, edgecolors=colour, linewidths=1.4, zorder=2)
        by_passes.vlines(passes, min(accuracies), max(accuracies), color=colour, linewidth=1, alpha=0.6)
        at_passes.setdefault(round(float(passes)), []).append((float(np.mean(accuracies)), title(name), colour))
        if name in NAMES:  # the variants would be too many lines
            points = [100 * float(np.mean([float(row[step]) for row in rows])) for step in steps]
            by_length.plot(lengths, points, color=colour, marker="o", markersize=3, linewidth=1.2)
            at_end.append((points[-1], title(name), colour))
    for height, name, colour in apart(at_end):
        by_length.annotate(name, (lengths[-1] + 0.08, height), fontsize=7, color=colour, verticalalignment="center")
    for passes, names in at_passes.items():
        # no room on the right where others follow
        follows = any(passes < other < 2 * passes for other in at_passes)
        place, side = (passes / 1.06, "right") if follows else (passes * 1.06, "left")
        for height, name, colour in apart(names):
            by_passes.annotate(name, (place, height), fontsize=7, color=colour, ha=side, va="center")
    ranked.set_yticks(range(len(order)), [title(name) for name in order], fontsize=8)
    ranked.set(xlabel="accuracy (%): seeds, and the interval of their mean", xlim=(0, 103))
    by_length.set(
        xlabel="steps of the chain",
        ylabel="accuracy (%), mean over seeds (intervals: table)",
        ylim=(0, 106),
        xticks=lengths,
    )
    by_length.set_xlim(lengths[0] - 0.1, lengths[-1] + 1.3)
    by_passes.set(
        xlabel="sequential model passes an answer",
        ylabel="accuracy (%): mean and range of seeds",
        xscale="log",
        ylim=(0, 106),
    )
    by_passes.set_xlim(1.7, 75)
    by_passes.set_xticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    by_passes.minorticks_off()
    for axes in (ranked, by_length, by_passes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def put(pages: Sequence[Path], blocks: dict[str, str]) -> None:
    """Writes each block into the page that has its marker, in place of the one that stands below it.

    Raises:
        SystemExit: a marker does not stand in these pages, or not once.
    """
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for name, block in blocks.items():
        marker = f"<!-- {name}:methods -->\n\n"
        if (found := sum(text.count(marker) for text in texts.values())) != 1:
            places = ", ".join(map(str, pages))
            sys.exit(f"{places}: `{marker.strip()}` and an empty line must stand there once, and stand {found} times")
        for page, text in texts.items():
            if marker in text:
                before, after = text.split(marker)
                texts[page] = f"{before}{marker}{block}\n\n{after.split(BLANK, 1)[1]}"
    for page, text in texts.items():
        replace_file(page, lambda file, text=text: file.write(text.encode()))


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0]) if arguments else FOLDER
    file = Path(arguments[1]) if len(arguments) > 1 else FILE
    results = rows_of(folder / "results.csv")
    if not results:
        sys.exit(f"{folder / 'results.csv'} has no finished run: run `lori_pl sweep {folder}/full.yaml` first")
    columns = next(iter(results.values()))[0]
    steps = sorted((key for key in columns if key.startswith(STEP)), key=lambda key: int(key.removeprefix(STEP)))
    costs = rows_of(folder / "costs" / "results.csv")
    blocks = {"results": table(results, costs), "steps": steps_table(results, steps)}
    if costs:
        blocks["costs"] = cost_table(costs)
    made = claims(results, steps)
    blocks["claims"] = "\n".join(f"- {told(each)}" for each in made)
    blocks["effects"] = effects_table(made)
    print(BLANK.join(blocks.values()))
    print(f"\nCommits: {', '.join(sorted({row['commit'] for rows in results.values() for row in rows}))}")
    if pages := [Path(page) for page in arguments[2:]]:
        put(pages, blocks)
    file.parent.mkdir(parents=True, exist_ok=True)
    draw(results, steps).savefig(file, dpi=130)
    print(f"\n{file}")


if __name__ == "__main__":
    main(sys.argv[1:])
