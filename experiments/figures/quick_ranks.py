"""Draws how methods stand on the quick recipe against the full one, and prints Kendall's tau of the two orders.

Run in the root of the repository: ``python experiments/figures/quick_ranks.py [FILE]``.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from lori_pl.evaluation.intervals import seed_interval

FILE = Path("experiments/sweeps/quick_ranks/agreement.png")
QUICK = ("experiments/sweeps/quick_ranks", "experiments/sweeps/order")
FULL = ("experiments/embedded", "experiments/methods")
SEEDS = ("0", "1", "2")
NAMES = {
    "sim_cot_codi": "SIM-CoT on CODI",
    "rationale_only": "rationale alone",
    "lori": "LoRi",
    "anchor_only": "anchor alone",
    "latent_only": "latents alone",
    "no_cot": "No-CoT",
}


def accuracies(folders: Sequence[str]) -> dict[str, list[float]]:
    """Each method's accuracy in percent by seed; of a method in several folders that of the first."""
    found: dict[str, dict[str, float]] = {}
    for folder in folders:
        with (Path(folder) / "results.csv").open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["status"] == "ok" and row["seed"] in SEEDS]
        here: dict[str, dict[str, float]] = {}
        for row in rows:
            here.setdefault(row["method"], {})[row["seed"]] = 100 * float(row["accuracy"])
        for method, by_seed in here.items():
            found.setdefault(method, by_seed)
    return {method: [found[method][seed] for seed in SEEDS] for method in NAMES}


def agreement(quick: dict[str, list[float]], full: dict[str, list[float]]) -> tuple[float, float]:
    """Kendall's tau of the methods' means, and its exact two-sided p-value."""
    tau = stats.kendalltau([np.mean(quick[name]) for name in NAMES], [np.mean(full[name]) for name in NAMES])
    return float(tau.statistic), float(tau.pvalue)


def draw(quick: dict[str, list[float]], full: dict[str, list[float]]) -> Figure:
    """Means with their t intervals over seeds, cut at 0 and 100."""
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    for name, title in NAMES.items():
        x, y = float(np.mean(quick[name])), float(np.mean(full[name]))
        across, along = seed_interval(quick[name]), seed_interval(full[name])
        assert across is not None
        assert along is not None
        axes.hlines(y, max(across[0], 0), min(across[1], 100), color="#9bb8e0", linewidth=1.2)
        axes.vlines(x, max(along[0], 0), min(along[1], 100), color="#9bb8e0", linewidth=1.2)
        axes.scatter(x, y, s=24, color="#2458a6", zorder=2)
        # on the right and above, but for the names that would cover one another
        left, below = name in ("sim_cot_codi", "rationale_only"), name in ("sim_cot_codi", "latent_only")
        place = (-5 if left else 6, -11 if below else 4)
        axes.annotate(title, (x, y), place, textcoords="offset points", fontsize=8, ha="right" if left else "left")
    axes.set(xlabel="quick: accuracy (%)", ylabel="full: accuracy (%)", xlim=(0, 103), ylim=(0, 103))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: Sequence[str]) -> None:
    quick, full = accuracies(QUICK), accuracies(FULL)
    tau, p = agreement(quick, full)
    print(f"Kendall's tau {tau:.2f} (p {p:.2f}) of {len(NAMES)} methods")
    file = Path(arguments[0]) if arguments else FILE
    draw(quick, full).savefig(file, dpi=120)
    print(file)


if __name__ == "__main__":
    main(sys.argv[1:])
