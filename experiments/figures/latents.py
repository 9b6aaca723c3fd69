"""Draws docs/images/latents.png, which latent holds which step's result, from the table in experiments/sweeps/order.

Run in the root of the repository: ``python experiments/figures/latents.py [ANALYSIS ...]``. Folders that the command
`analyze` made are put into the table first, each under its name, a row's label and seed as in ``lori_seed0``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import read_rows, write_rows
from lori_pl.files import replace_file

TABLE = Path("experiments/sweeps/order/latents.csv")
FILE = Path("docs/images/latents.png")
PANELS = {
    "latent_only": "latents alone",
    "lori": "LoRi",
    "sim_cot_codi": "SIM-CoT on CODI",
    "stepwise_for_statistics": "each latent its step",
}


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The agreement after the last layer that an analysis found, a row for each step and latent."""
    named = re.fullmatch(r"(.+)_seed(\d+)", folder.name)
    if named is None:
        raise LoriError(f"{folder}: call the folder LABEL_seedN, after the run that it analyses")
    found = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    agreement = found["latents"]["agreement"]
    last = {key: np.array(agreement[key])[-1] for key in ("share", "chance", "error")}
    common = {"method": named[1], "seed": named[2], "accuracy": f"{found['accuracy']['value']:.4f}"}
    return [
        {
            **common,
            "step": str(step + 1),
            "latent": str(latent + 1),
            **{key: f"{values[step, latent]:.4f}" for key, values in last.items()},
            "problems": str(agreement["problems"][step]),
            "commit": found["commit"],
        }
        for step, latent in np.ndindex(last["share"].shape)
    ]


def differences(rows: Sequence[dict[str, str]]) -> np.ndarray:
    """Points above chance, (steps, latents), of one student's rows."""
    steps, latents = (max(int(row[key]) for row in rows) for key in ("step", "latent"))
    found = np.full((steps, latents), np.nan)
    for row in rows:
        found[int(row["step"]) - 1, int(row["latent"]) - 1] = 100 * (float(row["share"]) - float(row["chance"]))
    return found


def draw(students: dict[tuple[str, str], list[dict[str, str]]]) -> Figure:
    """A panel a student: the first seed of each method, and of LoRi all."""
    shown = [key for method in PANELS for key in sorted(students) if key[0] == method]
    shown = [key for key in shown if key[0] == "lori" or key[1] == min(s for m, s in students if m == key[0])]
    figure = Figure(figsize=(1.9 * len(shown) + 0.8, 2.7), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, shown, strict=True):
        values = differences(students[key])
        image = axes.imshow(values, cmap="RdBu_r", vmin=-80, vmax=80)
        for (step, latent), value in np.ndenumerate(values):
            ink = "white" if abs(value) > 50 else "black"
            axes.text(latent, step, f"{value:+.0f}", ha="center", va="center", fontsize=7, color=ink)
        accuracy = 100 * float(students[key][0]["accuracy"])
        several = sum(method == key[0] for method, _ in shown) > 1
        axes.set_title(f"{PANELS[key[0]]}{f', seed {key[1]}' if several else ''}\n{accuracy:.1f} %", fontsize=8)
        axes.set_xticks(range(values.shape[1]), [f"z{k + 1}" for k in range(values.shape[1])], fontsize=8)
        axes.set_yticks(range(values.shape[0]), [str(k + 1) for k in range(values.shape[0])], fontsize=8)
    panels[0].set_ylabel("result of step", fontsize=8)
    bar = figure.colorbar(image, ax=panels, shrink=0.9)
    bar.set_label("points above chance", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def main(arguments: Sequence[str]) -> None:
    rows = read_rows(TABLE)
    for folder in arguments:
        made = rows_of(Path(folder))
        rows = [row for row in rows if (row["method"], row["seed"]) != (made[0]["method"], made[0]["seed"])] + made
    if not rows:
        sys.exit(f"{TABLE} has no row: give the folders of analyses")
    if arguments:
        write_rows(TABLE, rows)
    students: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        students.setdefault((row["method"], row["seed"]), []).append(row)
    for (method, seed), found in students.items():
        values = differences(found)
        best = ", ".join(f"{k + 1} in z{int(v.argmax()) + 1} ({v.max():+.0f})" for k, v in enumerate(values))
        print(f"{method}, seed {seed}: step {best}")
    replace_file(FILE, lambda file: draw(students).savefig(file, dpi=130, format="png"))
    print(FILE)


if __name__ == "__main__":
    main(sys.argv[1:])
