"""The README's table and picture of the full recipe, made from recorded results."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from lori_pl.evaluation.records import write_outcomes
from lori_pl.sweep.runner import Sweep
from lori_pl.sweep.specification import load_specification

SCRIPT = Path(__file__).parents[2] / "experiments" / "figures" / "results.py"
METHODS = {"no_cot": (40, 44), "lori": (80, 90), "anchor_only": (70, 60), "latent_only": (50, 50)}  # right of 100


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """Two seeds of four methods, of which none has run."""
    for name in METHODS:
        (tmp_path / f"{name}.yaml").write_text(f"model: {name}\n")
    files = ", ".join(f"{tmp_path}/{name}.yaml" for name in METHODS)
    (tmp_path / "sweep.yaml").write_text(
        f"name: full\noutput: {tmp_path}/runs\nresults: {tmp_path}\n"
        f"label: '{{method}}'\ngrid: {{config: [{files}]}}\nseeds: [0, 1]\n"
        "metrics: [accuracy_steps_3, accuracy_steps_4]\ncompare: [[lori, anchor_only]]\n"
    )
    return Sweep(load_specification(tmp_path / "sweep.yaml"))


def record(sweep: Sweep, cell: str, method: str, seed: int, right: int) -> None:
    sweep.table.append(
        {"cell": cell, "method": method, "seed": seed, "accuracy": right / 100, "n": 100, "passes": 9}
        | {"milliseconds": 4.0 - 2.5 * seed, "commit": "abc", "command": "x", "status": "ok"}
        | {"accuracy_steps_3": 0.9, "accuracy_steps_4": 0.7}
        | {"machine": f"{1 + seed} threads"}
    )
    ids, bits = [str(i) for i in range(100)], [i < right for i in range(100)]
    write_outcomes(sweep.specification.results / "correct.npz", ids, bits, method, seed)


def test_table_differences_and_picture(sweep, tmp_path, monkeypatch, capsys):
    for cell in sweep.cells:
        method = Path(cell.configs[0]).stem
        record(sweep, cell.id, method, cell.seed, METHODS[method][cell.seed])
    record(sweep, "of-an-older-file", "lori", 2, 1)
    run(monkeypatch, tmp_path / "sweep.yaml", tmp_path / "picture.png")
    shown = capsys.readouterr().out
    # mean 85, sd 7.07, t of one degree of freedom 12.706; no share is above 100
    assert "| LoRi | 85.0 (21.5 to 100.0) | 80.0 90.0 | 90.0 | 70.0 | 9.00 | 1.50 |" in shown
    assert "lori - anchor_only: +20.0 points" in shown
    assert "Milliseconds a question: 2 threads" in shown
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_without_results_it_says_so(sweep, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"results\.csv has no finished run of the sweep 'full'"):
        run(monkeypatch, tmp_path / "sweep.yaml")
