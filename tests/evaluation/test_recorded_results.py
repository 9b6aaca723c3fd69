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


def test_the_readme_has_the_terms_alone_as_recorded():
    """Which are none of the table's methods."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    with (ROOT / "experiments/sweeps/terms_full/results.csv").open(encoding="utf-8") as file:
        accuracies = {(row["method"], int(row["seed"])): float(row["accuracy"]) for row in csv.DictReader(file)}
    found = {
        name: np.array([accuracies[name, seed] for seed in range(5)])
        for name in ("lori", "mean_only", "covariance_only", "rationale_only")
    }

    def told(values: np.ndarray, sign: str = "") -> tuple[str, str]:
        low, high = seed_interval(values.tolist())
        return f"{100 * values.mean():{sign}.1f}", f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"

    assert (
        "the mean alone has {} ({}), the covariance alone {} ({})".format(
            *told(found["mean_only"]), *told(found["covariance_only"])
        )
        in readme
    )
    assert "than the covariance alone (by {}, {};".format(*told(found["lori"] - found["covariance_only"])) in readme
    less = {name: told(found["lori"] - found[name], "+") for name in ("mean_only", "rationale_only")}
    assert "adds anything to the mean is not shown ({}, {})".format(*less["mean_only"]) in readme
    assert "nor that the anchor adds to both ({}, {})".format(*less["rationale_only"]) in readme


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
