"""Draws docs/images/results.png and prints the README's table of the full recipe, both from its recorded results.

Run in the root of the repository: ``python experiments/figures/results.py [SWEEP] [FILE]``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lori_pl.evaluation.intervals import seed_interval
from lori_pl.sweep.runner import Sweep
from lori_pl.sweep.specification import load_specification

SWEEP = Path("experiments/embedded/full.yaml")
FILE = Path("docs/images/results.png")

NAMES = {
    "explicit_cot": ("explicit CoT", "#22303c"),
    "no_cot": ("No-CoT", "#8a97a3"),
    "pause": ("Pause", "#b9a18f"),
    "latent_only": ("latents alone", "#2f6fb3"),
    "rationale_only": ("rationale only", "#3d8c5f"),
    "anchor_only": ("anchor only", "#8b5fb0"),
    "lori": ("LoRi", "#c8641e"),
}
STEP = "accuracy_steps_"


def finished(sweep: Sweep) -> dict[str, list[dict[str, str]]]:
    """The rows of the finished runs by method, in the order of NAMES."""
    rows = [row for row in sweep.results().values() if row["status"] == "ok"]
    return {name: [row for row in rows if row["method"] == name] for name in NAMES}


def interval(values: Sequence[float]) -> str:
    """The t interval of a mean over seeds, in percent, as far as there are such shares."""
    bounds = seed_interval(values)
    if bounds is None:
        return "one seed" if len(values) == 1 else "all alike"
    return f"{max(0, 100 * bounds[0]):.1f} to {min(100, 100 * bounds[1]):.1f}"


def timed_on(results: dict[str, list[dict[str, str]]]) -> str:
    """The machine whose times are shown: the last by name on which every method has run, or "" for none."""
    machines = [{row.get("machine", "") for row in rows} for rows in results.values() if rows]
    return max(set.intersection(*machines), default="")


def table(results: dict[str, list[dict[str, str]]], steps: Sequence[str]) -> str:
    heads = [
        "method",
        "accuracy (95 % interval over seeds)",
        "each seed",
        *[f"{s.removeprefix(STEP)} steps" for s in steps],
    ]
    lines = ["| " + " | ".join([*heads, "passes", "ms"]) + " |", "|" + "---|" * (len(heads) + 2)]
    machine = timed_on(results)
    for name, rows in results.items():
        if not rows:
            continue
        accuracies = [float(row["accuracy"]) for row in rows]
        cells = [NAMES[name][0], f"{100 * np.mean(accuracies):.1f} ({interval(accuracies)})"]
        cells.append(" ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies))
        cells += [f"{100 * np.mean([float(row[step]) for row in rows]):.1f}" for step in steps]
        cells.append(f"{np.mean([float(row['passes']) for row in rows]):.2f}")
        times = [float(row["milliseconds"]) for row in rows if row.get("machine", "") == machine]
        cells.append(f"{np.mean(times):.2f}" if times else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict[str, list[dict[str, str]]], steps: Sequence[str]) -> Figure:
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    by_length, by_passes = figure.subplots(1, 2)
    lengths = [int(step.removeprefix(STEP)) for step in steps]
    for name, rows in results.items():
        if not rows:
            continue
        label, colour = NAMES[name]
        points = np.array([[100 * float(row[step]) for step in steps] for row in rows])
        by_length.plot(lengths, points.mean(0), color=colour, label=label, marker="o", markersize=4)
        by_length.fill_between(lengths, points.min(0), points.max(0), color=colour, alpha=0.15, linewidth=0)
        by_passes.scatter(
            [float(row["passes"]) for row in rows],
            [100 * float(row["accuracy"]) for row in rows],
            color=colour,
            label=label,
            s=26,
        )
    by_length.set(xlabel="steps of the chain", ylabel="accuracy (%)", ylim=(0, 103), xticks=lengths)
    by_passes.set(xlabel="sequential model passes an answer", ylim=(0, 103), xscale="log")
    by_passes.set_xticks([2, 5, 10, 20, 35], ["2", "5", "10", "20", "35"])
    by_passes.minorticks_off()
    by_passes.legend(*by_length.get_legend_handles_labels(), fontsize=8, loc="center right")
    for axes in (by_length, by_passes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: Sequence[str]) -> None:
    sweep = Sweep(load_specification(arguments[0] if arguments else SWEEP))
    file = Path(arguments[1]) if len(arguments) > 1 else FILE
    results = finished(sweep)
    if not any(results.values()):
        sys.exit(f"{sweep.table.path} has no finished run of the sweep '{sweep.specification.name}': run it first")
    first = next(rows for rows in results.values() if rows)[0]
    steps = sorted((key for key in first if key.startswith(STEP)), key=lambda key: int(key.removeprefix(STEP)))
    print(table(results, steps))
    print(f"\nMilliseconds a question: {timed_on(results) or 'of no machine that has all'}")
    print(f"Commits: {', '.join(sorted({row['commit'] for rows in results.values() for row in rows}))}\n")
    for line in sweep.comparisons():
        print(f"- {line}")
    file.parent.mkdir(parents=True, exist_ok=True)
    draw(results, steps).savefig(file, dpi=130)
    print(f"\n{file}")


if __name__ == "__main__":
    main(sys.argv[1:])
