"""Folders as sweeps, runs, analyses and benchmarks leave them, with names that attack a page."""

from __future__ import annotations

import csv
import functools
import json
import shlex
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lori_pl.evaluation.records import ResultTable, write_outcomes
from lori_pl.report.material import Material, gather
from lori_pl.report.page import Report, compose

EVIL = "<script>alert(1)</script>"
N = 60
IDS = [f"world/{i}" for i in range(N)]
STEPS = np.arange(N) % 3 + 2


def answers(share: float, seed: int) -> np.ndarray:
    """Outcomes of N problems with about that share of right ones."""
    return np.random.default_rng([seed, round(1000 * share)]).uniform(size=N) < share


def command(folder: str, seed: int, **flags: Any) -> str:
    parts = [f"--{key}={value}" for key, value in flags.items()]
    seeded = [f"--seed_everything={seed}", *parts, f"--trainer.default_root_dir={folder}"]
    return shlex.join(["python", "-m", "lori_pl", "fit", "--config=configs/method/lori.yaml", *seeded])


def row(method: str, seed: int, bits: np.ndarray, cell: str = "", **axes: Any) -> dict[str, Any]:
    """A row of results.csv."""
    return {
        "method": method,
        "seed": seed,
        "accuracy": float(bits.mean()),
        "n": N,
        "passes": 9.0,
        "milliseconds": 1.5 + seed / 10,
        "commit": "abc1234",
        "command": command(f"runs/cells/{cell}", seed, **axes),
        "cell": cell,
        "status": "ok",
        "validation": float(bits[:30].mean()),
        **{f"accuracy_steps_{k}": float(bits[k == STEPS].mean()) for k in (2, 3, 4)},
        **axes,
    }


def cell(method: str, seed: int) -> str:
    return f"{zlib.crc32(method.encode()):x}_{seed}"


def sweep(folder: Path, shares: dict[str, float], seeds: int, **axes: Any) -> Path:
    """A folder of results: each method with so many seeds, and all outcomes."""
    bits = {(method, seed): answers(share, seed) for method, share in shares.items() for seed in range(seeds)}
    rows = [row(method, seed, each, cell(method, seed), **axes) for (method, seed), each in bits.items()]
    ResultTable(folder / "results.csv", [*rows[0], "reason"]).append(rows[0])
    with (folder / "results.csv").open("a", newline="") as file:  # at once: each append would wait for the disk
        csv.DictWriter(file, [*rows[0], "reason"], lineterminator="\n").writerows(rows[1:])
    arrays = {f"{method}/{seed}": each for (method, seed), each in bits.items()}
    np.savez(folder / "correct.npz", ids=np.array(IDS), steps=STEPS, **arrays)
    return folder


def run(folder: Path, method: str, seed: int, bits: np.ndarray, ids: list[str] = IDS, logs: bool = False) -> Path:
    """A run's folder."""
    folder.mkdir(parents=True)
    entry = {"accuracy": float(bits.mean()), "n": len(bits), "passes": 7.0, "milliseconds": 2.0}
    entry |= {f"accuracy_steps_{k}": float(bits[k == STEPS].mean()) for k in (2, 3, 4)} if len(bits) == N else {}
    sets = {"test": entry, "svamp": {"accuracy": 0.25}}
    summary = {"methods": {method: entry}, "test_sets": sets, "commit": "def5678", "seed": seed, "validation": 0.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(f"seed_everything: {seed}\nmodel:\n  note: {EVIL}\n")
    write_outcomes(folder / "correct.npz", ids, bits, method, seed, np.resize(STEPS, len(bits)))
    if logs:
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for step in range(0, 100, 10):
                writer.add_scalar("train/loss", 3.0 / (step + 1), step)
                writer.add_scalar("val/accuracy", step / 200, step)
    return folder


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Figure(figsize=(2, 1)).savefig(path, dpi=40)
    return path


def analysis(folder: Path) -> Path:
    """An analysis' folder."""
    for name in ("spectra", "lens", "something_else"):
        png(folder / f"{name}.png")
    ranks = {"title": f"lori {EVIL}", "caption": "of at most 3", "heads": ["states", "layer"]}
    ranks["rows"] = [[f"teacher {EVIL}", "1.5 of 3"], ["student", "2.0 of 3 (1.9-2.1)"]]
    damaged = [None, {"title": "t"}, {**ranks, "rows": [["too", "many", "cells"]]}, {**ranks, "heads": 3}]
    content = {"method": f"lori {EVIL}", "problems": 16, "split": "test", "tables": [ranks, *damaged]}
    (folder / "analysis.json").write_text(json.dumps(content))
    (folder / "tensorboard").mkdir()
    return folder


def benchmark(folder: Path) -> Path:
    """A benchmark's folder."""
    folder.mkdir()
    timed = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "milliseconds": {"median": 3.0, "quartiles": [2.5, 4.0]}}
    content = {"sets": {"test": {"lori": {"1": timed}, EVIL: {"1": timed | {"accuracy": 0.45}}, "broken": {}}}}
    (folder / "benchmark.json").write_text(json.dumps(content))
    return folder


@functools.cache
def everything() -> Material:
    """All kinds of folders together, read once; nothing of them is needed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return _everything(Path(folder))


def _everything(root: Path) -> Material:
    results = sweep(root / "results", {"lori": 0.9, EVIL: 0.5, "no_cot $x$ _a": 0.4}, 5)
    table = ResultTable(results / "results.csv")
    for lr in (0.001, 0.002):
        table.append(row(f"tuned_{lr}", 0, answers(lr * 300, 0), f"t{lr}", **{"model.lr": lr}))
    for weights in ('{"mean": 1}', f'{{"mean": "{EVIL}"}}'):
        table.append(row(f"weighed_{weights}", 0, answers(0.5, 1), weights, **{"model.weights": weights}))
    failed = row("lori", 9, answers(0.5, 9), "dead") | {"status": "failed", "reason": f"killed {EVIL} " + "x" * 3000}
    table.append({**failed, "accuracy": None})
    chosen = sweep(root / "chosen", {"lori_a": 0.5, "lori_b": 0.6}, 1)
    # it has what the row of lori, seed 0, is told by
    own = run(root / "cells" / cell("lori", 0), "lori", 0, answers(0.9, 0), logs=True)
    png(own / "spectrum.png")
    loose = run(root / "loose", f"loose {EVIL}", 3, answers(0.3, 3))
    return gather(
        [results, own, loose, analysis(root / "analyses"), benchmark(root / "timed")],
        [chosen],
        [("lori", EVIL), ("lori", "no_cot $x$ _a")],
    )


@functools.cache
def whole_report() -> Report:
    """The report of all that."""
    return compose(everything(), f"Report {EVIL}")


def only(material):
    (section,) = material.sections
    return section


def notes(material):
    return " ".join([*material.notes, *(note for s in material.sections for note in s.group.notes)])
