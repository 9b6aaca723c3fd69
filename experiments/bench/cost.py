"""How a LoRi step's time and memory grow: one quantity at a time, the others as in the bars' model.

Run in the root of the repository: ``python experiments/bench/cost.py``. Each point is a process of its own, so that
its peak of memory is its own too. Leaves ``cost.csv`` beside this file, a row as each point is
measured, and goes on from there; at the end ``docs/images/cost.png``.
"""

from __future__ import annotations

import csv
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from matplotlib.figure import Figure

from lori_pl.alignment import LowRankAlignment
from lori_pl.evaluation.records import git_commit, write_rows
from lori_pl.files import replace_file

TABLE, PICTURE = Path("experiments/bench/cost.csv"), Path("docs/images/cost.png")
BASE = {"latents": 6, "batch": 8, "question": 96, "rationale": 32, "layers": 4, "hidden": 256, "rank": 32}
GRID = {
    "latents": [0, 3, 6, 12, 24],
    "batch": [4, 8, 16, 32, 64],
    "question": [32, 64, 96, 192, 384],
    "rationale": [16, 32, 64, 128],
    "layers": [2, 4, 8, 16],
    "hidden": [128, 256, 512, 768],
    "rank": [8, 32, 64, 128, 256],
}
NAMES = {
    "latents": "latents K",
    "batch": "problems a batch",
    "question": "question tokens",
    "rationale": "rationale tokens",
    "layers": "layers",
    "hidden": "hidden size",
    "rank": "rank of hidden size",
}
ROUNDS, BATCHES = 5, 2
MEMORY = "memory added at the peak, MiB (right)"


def point(values: dict[str, int], threads: int) -> dict[str, float]:
    """Milliseconds of a step from the cache and with a live teacher, and the memory that the first adds at its peak."""
    torch.set_num_threads(threads)
    common.SHAPES["llama"] |= {
        "hidden_size": values["hidden"],
        "intermediate_size": 4 * values["hidden"],
        "num_hidden_layers": values["layers"],
    }
    lengths = [(values["question"],) * 2, (values["rationale"],) * 2, common.ANSWER]
    encoded = common.problems(BATCHES * values["batch"], common.encoder(), lengths=lengths)
    batches = common.bucketed(encoded, values["batch"], BATCHES)
    found = {}
    for name, cached in (("cached", True), ("live", False)):
        # without latents there is no trajectory to align
        alignment = LowRankAlignment(rank_hidden=values["rank"]) if values["latents"] else None
        method = common.lori("llama", values["latents"], batches, cached, alignment=alignment)
        step = common.stepper(method)
        ctypes.CDLL(None).malloc_trim(0)  # what the building left behind would be taken again, and not seen
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the building
        (times,) = common.in_turns([lambda step=step: [step(batch) for batch in batches]], ROUNDS)
        found[name] = 1000 * common.median(times) / len(batches)
        found.setdefault("memory_mib", resident(peak=True) - before)
    return found


def resident(peak: bool = False) -> float:
    """Resident memory of this process in MiB, or its peak so far."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def draw(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, 4).flatten()
    for axis, (name, title) in zip(axes, NAMES.items(), strict=False):
        here = [row for row in rows if row["varied"] == name]
        x = [row[name] for row in here]
        axis.plot(x, [row["cached"] for row in here], marker="o", markersize=4, color="#c8641e", label="cached teacher")
        axis.plot(x, [row["live"] for row in here], marker="o", markersize=4, color="#2f6fb3", label="live teacher")
        axis.set_xlabel(title)
        axis.set_ylim(0)
        axis.set_xlim(0)
        twin = axis.twinx()
        twin.plot(x, [row["memory_mib"] for row in here], color="#8a97a3", linestyle=":", label=MEMORY)
        twin.set_ylim(0)
        twin.tick_params(colors="#8a97a3")
        axis.spines["top"].set_visible(False)
    axes[0].set_ylabel("ms a step")
    axes[4].set_ylabel("ms a step")
    axes[-1].axis("off")
    # of the figure: one of its axes would be made as wide as the legend
    figure.legend(handles=[*axes[0].get_lines(), *twin.get_lines()], loc="lower right", fontsize="small")
    return figure


def known() -> list[dict[str, Any]]:
    """The points that an earlier run has left; remove the table to measure anew."""
    if not TABLE.exists():
        return []
    texts = {"varied": str, "commit": str} | dict.fromkeys(BASE, int)
    lines = csv.DictReader(TABLE.read_text().splitlines())
    return [{key: texts.get(key, float)(value) for key, value in line.items()} for line in lines]


def main() -> None:
    options = common.parser(__doc__ or "", without=["shape", "batch", "rounds", "record"])
    options.add_argument("--point", help="measure one point, given as JSON, and print it")
    arguments = options.parse_args()
    if arguments.point:
        print(json.dumps(point(json.loads(arguments.point), arguments.threads)))
        return
    rows = known()
    for name, grid in GRID.items():
        for value in grid:
            values = {**BASE, name: value}
            if any(row["varied"] == name and row[name] == value for row in rows):
                continue
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--point", json.dumps(values)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = {key: round(number, 2) for key, number in json.loads(output.splitlines()[-1]).items()}
            rows.append({"varied": name, **values, **found, "commit": git_commit()})
            write_rows(TABLE, rows)
            print(f"{name} {value}: {found}", flush=True)
    replace_file(PICTURE, lambda file: draw(rows).savefig(file, format="png", dpi=110))
    for name in GRID:
        here = [row for row in rows if row["varied"] == name]
        x, y = np.array([row[name] for row in here]), np.array([row["cached"] for row in here])
        slope, offset = np.polyfit(x, y, 1)
        worst = float(np.abs(slope * x + offset - y).max() / y.max())
        print(f"{name:10} cached = {offset:.1f} + {slope:.3f} x  (worst deviation {100 * worst:.0f} % of the largest)")


if __name__ == "__main__":
    main()
