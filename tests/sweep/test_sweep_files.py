"""The sweep files of experiments/sweeps, and what their page says of them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from lori_pl.sweep.runner import Sweep
from lori_pl.sweep.specification import load_specification

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "sweeps"
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml"))
ISSUE = ["rank", "latents", "statistics", "anchor", "subspace", "layers", "weights", "data_size", "cross_architecture"]
FULL_SECONDS = {"LoRi": "lori", "the rationale term alone": "rationale_only"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def rows_of_the_page() -> dict[str, list[str]]:
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {cell[0].strip("`"): cell[1:] for cell in cells}


def test_every_question_has_its_file_and_every_file_its_row():
    assert {f"{name}.yaml" for name in [*ISSUE, "teacher_quality", "terms_full", "keep"]} <= set(FILES)
    assert sorted(rows_of_the_page()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_page_says_how_many_cells_a_file_has_and_which_are_done(name):
    sweep = Sweep(load_specification(FOLDER / name))
    runs = [cell for cell in sweep.cells if cell.test is None]
    tests = len(sweep.cells) - len(runs)
    _, _, seeds, cells, done = rows_of_the_page()[name]
    assert (seeds, cells) == (str(len({c.seed for c in runs})), f"{len(runs)}" + (f" + {tests} tests" if tests else ""))
    assert done == str(sum(row["status"] == "ok" for row in sweep.results().values()))


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name or name == "terms_full.yaml"])
def test_the_hours_of_a_file_are_those_of_recorded_seconds(name):
    """Its comment names the row of experiments/embedded whose seconds it multiplies."""
    comment = " ".join(line.strip("# ") for line in (FOLDER / name).read_text().splitlines() if line.startswith("#"))
    seconds = int(re.search(r"(\d+) s each", comment)[1])
    method = next(
        method for shown, method in FULL_SECONDS.items() if f"({shown}" in comment or f"each, {shown}" in comment
    )
    with (ROOT / "experiments/embedded/results.csv").open(encoding="utf-8") as file:
        (row,) = (row for row in csv.DictReader(file) if (row["method"], row["seed"]) == (method, "2"))
    assert round(float(row["seconds"])) == seconds
    cells = [int(number) for number in re.findall(r"(\d+)(?: cells| are [\d.]+ hours)", comment)]
    assert cells[0] == len(Sweep(load_specification(FOLDER / name)).cells)
    hours = float(re.search(r"([\d.]+) hours", comment)[1])
    assert hours == pytest.approx(cells[-1] * seconds / 3600, rel=0.02)
    if "/" in name:
        assert f"{hours:g} hours" in rows_of_the_page()[name][0]


def test_rows_of_the_full_recipe_are_those_that_the_terms_take_over():
    """The very same runs: nine of the file's cells are recorded in experiments/embedded."""
    sweep = Sweep(load_specification(FOLDER / "terms_full.yaml"))
    with (ROOT / "experiments/embedded/results.csv").open(encoding="utf-8") as file:
        known = {row["cell"]: row["method"] for row in csv.DictReader(file) if row["status"] == "ok"}
    found = [(cell.point["variant"], known[cell.id]) for cell in sweep.cells if cell.id in known]
    assert len(found) == 9
    assert all(variant == method for variant, method in found)


def test_what_is_left_for_two_cores_stays_within_its_budget():
    """Those files with several seeds that are not run yet, of which the page gives the sum."""
    names = ("keep", "keep_chains", "terms_full", "order_full", "order_parts")
    counted = [len(Sweep(load_specification(FOLDER / f"{name}.yaml")).cells) for name in names]
    assert sum(counted) <= 90
    assert f"{sum(counted)} cells, 12 of which stand elsewhere (14 when" in (FOLDER / "README.md").read_text()
