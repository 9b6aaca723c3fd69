"""What is recorded in experiments/ and said of it: the bars of the full recipe, and the numbers on pages."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lori_pl.evaluation.intervals import seed_interval
from lori_pl.evaluation.records import read_outcomes

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "experiments" / "embedded"
METHODS = ["explicit_cot", "no_cot", "pause", "latent_only", "anchor_only", "rationale_only", "lori"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (EMBEDDED / "results.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "ok"]


def test_every_method_has_as_many_problems_and_the_same_seeds(rows):
    assert {row["method"] for row in rows} == set(METHODS)
    for method in METHODS:
        assert sorted(int(row["seed"]) for row in rows if row["method"] == method) == [0, 1, 2]
    assert {row["n"] for row in rows} == {"4096"}


def test_accuracies_are_those_of_the_recorded_outcomes(rows):
    outcomes = read_outcomes(EMBEDDED / "correct.npz")
    assert len(outcomes.ids) == 4096
    for row in rows:
        assert outcomes.bits[row["method"], int(row["seed"])].mean() == pytest.approx(float(row["accuracy"]))


def test_the_full_recipe_meets_its_bars(rows):
    mean = {m: 100 * np.mean([float(row["accuracy"]) for row in rows if row["method"] == m]) for m in METHODS}
    assert mean["explicit_cot"] >= 97
    assert mean["no_cot"] <= mean["explicit_cot"] - 30
    assert mean["pause"] <= mean["explicit_cot"] - 30
    assert mean["lori"] - mean["no_cot"] >= 0.7 * (mean["explicit_cot"] - mean["no_cot"])
    assert mean["lori"] >= mean["latent_only"] + 10
    world, latents = (
        yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))
        for name in ("data/synthetic.yaml", "experiment/embedded/latents.yaml")
    )
    assert latents["model"]["init_args"]["latents"] <= world["data"]["source"]["init_args"]["max_steps"]


def test_the_pages_have_the_rows_and_differences_that_the_results_give(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    script, source = ROOT / "experiments" / "figures" / "methods.py", ROOT / "experiments" / "methods"
    monkeypatch.setattr(sys, "argv", [str(script), str(source), str(tmp_path / "picture.png")])
    runpy.run_path(str(script), run_name="__main__")
    made = capsys.readouterr().out.splitlines()
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", source / "README.md"))
    written = []
    for marker in ("results", "steps", "costs", "claims", "effects"):
        assert pages.count(f"<!-- {marker}:methods -->") == 1
        written += pages.split(f"<!-- {marker}:methods -->")[1].split("\n\n", 2)[1].splitlines()
    assert len(written) > 30
    assert written == [line for line in made if line.startswith(("|", "- "))]


def test_the_readme_has_the_rationale_alone_as_recorded(rows):
    """Which is none of the table's methods."""
    found = [float(row["accuracy"]) for row in rows if row["method"] == "rationale_only"]
    low, high = seed_interval(found)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    each = " ".join(f"{100 * accuracy:.1f}" for accuracy in found)
    assert (
        f"LoRi without the anchor has {100 * np.mean(found):.1f} ({100 * low:.1f} to {min(100, 100 * high):.1f}; {each}"
        in readme
    )


def test_the_page_has_how_quick_ranks_methods_against_full(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "experiments" / "figures")
    import quick_ranks

    quick, full = quick_ranks.accuracies(quick_ranks.QUICK), quick_ranks.accuracies(quick_ranks.FULL)
    page = (ROOT / "experiments/sweeps/quick_ranks/README.md").read_text(encoding="utf-8")
    tau, p = quick_ranks.agreement(quick, full)
    assert f"of six methods Kendall's tau is {tau:.2f} (p {p:.2f})" in page
    monkeypatch.delitem(quick_ranks.NAMES, "sim_cot_codi")
    tau, p = quick_ranks.agreement(quick, full)
    assert f"without SIM-CoT on CODI {tau:.2f} (p {p:.2f})" in page


def test_the_page_of_analyses_has_their_tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "figures")
    import analyses

    folder = ROOT / "experiments" / "analysis"
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page.count("<!-- analysis:") == 3
    assert page == analyses.put(page, folder)
