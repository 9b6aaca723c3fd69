"""The picture of what latents hold, made from analyses and from the table that they leave."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from lori_pl.errors import LoriError

SCRIPT = Path(__file__).parents[2] / "experiments" / "figures" / "latents.py"
TABLE = Path("experiments/sweeps/order/latents.csv")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def analysis(folder: Path, share: list[list[float]]) -> Path:
    """Of two layers, the last of which counts."""
    folder.mkdir()
    agreement = {"share": [np.zeros_like(share).tolist(), share], "chance": [[[0.9] * 3] * 2, [[0.2] * 3] * 2]}
    agreement |= {"error": [[[0.0] * 3] * 2] * 2, "problems": [512, 264]}
    found = {"accuracy": {"value": 0.756}, "commit": "abc", "latents": {"agreement": agreement}}
    (folder / "analysis.json").write_text(json.dumps(found))
    return folder


def test_an_analysis_replaces_its_rows_and_all_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="has no row"):
        run(monkeypatch)
    first = analysis(tmp_path / "lori_seed0", [[0.2, 0.95, 0.1], [0.2, 0.2, 0.7]])
    other = analysis(tmp_path / "sim_cot_codi_seed3", [[0.5, 0.2, 0.2], [0.2, 0.6, 0.2]])
    run(monkeypatch, first, other)
    assert "lori, seed 0: step 1 in z2 (+75), 2 in z3 (+50)" in capsys.readouterr().out
    assert len(TABLE.read_text().splitlines()) == 1 + 2 * 6
    (first / "analysis.json").write_text((other / "analysis.json").read_text())
    run(monkeypatch, first)
    assert len(TABLE.read_text().splitlines()) == 1 + 2 * 6
    run(monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("lori, seed 0: step 1 in z1 (+30), 2 in z2 (+40)") == 2
    assert Path("docs/images/latents.png").stat().st_size > 5000


def test_a_folder_whose_name_says_no_seed_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoriError, match="call the folder LABEL_seedN"):
        run(monkeypatch, analysis(tmp_path / "mine", [[0.1] * 3] * 2))
