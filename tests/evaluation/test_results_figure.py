"""The README's table and picture of the full recipe, made from recorded results."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from lori_pl.evaluation.records import ResultTable, write_outcomes

SCRIPT = Path(__file__).parents[2] / "experiments" / "figures" / "results.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_table_differences_and_picture(tmp_path, monkeypatch, capsys):
    table = ResultTable(tmp_path / "results.csv")
    for method, right in (
        ("no_cot", (40, 44)),
        ("lori", (80, 90)),
        ("anchor_only", (70, 60)),
        ("latent_only", (50, 50)),
    ):
        for seed, count in enumerate(right):
            table.append(
                {"method": method, "seed": seed, "accuracy": count / 100, "n": 100, "passes": 9, "milliseconds": 1.5}
                | {"commit": "abc", "command": "x", "status": "ok", "accuracy_steps_3": 0.9, "accuracy_steps_4": 0.7}
            )
            bits = [i < count for i in range(100)]
            write_outcomes(tmp_path / "correct.npz", [str(i) for i in range(100)], bits, method, seed)
    run(monkeypatch, tmp_path, tmp_path / "picture.png")
    shown = capsys.readouterr().out
    # mean 85, sd 7.07, t of one degree of freedom 12.706
    assert "| LoRi | 85.0 (21.5 to 148.5) | 80.0 90.0 | 90.0 | 70.0 | 9.00 | 1.50 |" in shown
    assert "lori - anchor_only: +20.0 points" in shown
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_without_results_it_says_so(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"results\.csv has no finished run"):
        run(monkeypatch, tmp_path)
