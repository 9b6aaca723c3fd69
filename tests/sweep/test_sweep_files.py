"""The sweep files of experiments/sweeps and experiments/methods, and what their pages say of them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from lori_pl.sweep.runner import Sweep
from lori_pl.sweep.specification import load_specification

ROOT = Path(__file__).parents[2]
FOLDER, METHODS = ROOT / "experiments" / "sweeps", ROOT / "experiments" / "methods"
FILES, OF_METHODS = (sorted(str(path.relative_to(f)) for path in f.rglob("*.yaml")) for f in (FOLDER, METHODS))
ISSUE = ["rank", "latents", "statistics", "anchor", "subspace", "layers", "weights", "data_size", "cross_architecture"]
FULL_SECONDS = {"LoRi": "lori", "the rationale term alone": "rationale_only"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def rows_of_the_page(folder: Path = FOLDER) -> dict[str, list[str]]:
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {cell[0].strip("`"): cell[1:] for cell in cells}


def test_every_question_has_its_file_and_every_file_its_row():
    assert {f"{name}.yaml" for name in [*ISSUE, "teacher_quality", "terms_full", "keep"]} <= set(FILES)
    assert sorted(rows_of_the_page()) == FILES
    assert sorted(rows_of_the_page(METHODS)) == OF_METHODS


@pytest.mark.parametrize(
    ("folder", "name"), [*((FOLDER, name) for name in FILES), *((METHODS, name) for name in OF_METHODS)]
)
def test_the_page_says_how_many_cells_a_file_has_and_which_are_done(folder, name):
    sweep = Sweep(load_specification(folder / name))
    tests = sum(cell.test is not None for cell in sweep.cells)
    *_, seeds, cells, done = rows_of_the_page(folder)[name]
    count = f"{sweep.total - tests}" + (f" + {tests} tests" if tests else "")
    assert (seeds, cells) == (str(len(sweep.specification.seeds)), count)
    assert done == str(sum(row["status"] == "ok" for row in sweep.results().values()))


@pytest.mark.parametrize("name", [name for name in FILES if "compare:" in (FOLDER / name).read_text(encoding="utf-8")])
def test_what_is_compared_is_what_cells_are_called(name):
    """A name that no cell has would make no comparison, without a word."""
    sweep = load_specification(FOLDER / name)
    if "{method}" in sweep.label:  # which the runs say
        return
    labels = {cell.label(sweep.label, sweep.name, "") for cell in Sweep(sweep).cells}
    assert {label for pair in sweep.compare for label in pair} <= labels
    assert len(labels) == len(Sweep(sweep).cells) / len(sweep.seeds)


@pytest.mark.parametrize(
    "name", [name for name in FILES if "/" in name or name in ("terms_full.yaml", "keep.yaml", "keep_choices.yaml")]
)
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
    assert cells[0] == Sweep(load_specification(FOLDER / name)).total
    hours = float(re.search(r"([\d.]+) hours", comment)[1])
    assert hours == pytest.approx(cells[-1] * seconds / 3600, rel=0.02)
    if "/" in name:
        assert f"{hours:g} hours" in rows_of_the_page()[name][0]


@pytest.mark.parametrize(("name", "count"), [("terms_full", 9), ("keep", 6), ("keep_choices", 6)])
def test_rows_of_the_full_recipe_are_those_that_are_taken_over(name, count):
    """The very same runs: so many of the file's cells are recorded in experiments/embedded."""
    sweep = Sweep(load_specification(FOLDER / f"{name}.yaml"))
    with (ROOT / "experiments/embedded/results.csv").open(encoding="utf-8") as file:
        known = {row["cell"]: row["method"] for row in csv.DictReader(file) if row["status"] == "ok"}
    found = [(cell.point["variant"], known[cell.id]) for cell in sweep.cells if cell.id in known]
    assert len(found) == count
    assert all(variant == method for variant, method in found)


def cells_of(*names: str) -> int:
    """Trainings of so many files, over all seeds."""
    sweeps = [Sweep(load_specification(FOLDER / f"{name}.yaml")) for name in names]
    return sum(cell.test is None for sweep in sweeps for cell in sweep.cells)


def test_the_questions_stay_within_their_budget():
    """Those of one factor on quick; and those files of several seeds that follow, of which the page gives the sum."""
    quick = cells_of(*ISSUE, "rank_layers", "latents_none", "tokens", "teacher_quality")
    assert quick <= 80
    several = cells_of("keep", "keep_choices", "terms_full", "order_full", "order_parts")
    assert several <= 115
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{quick} trainings" in page
    assert f"quick has {quick + cells_of('quick_ranks', 'order', 'order_parts')} trainings" in page
    assert f"{several} cells, 34 of which stand elsewhere" in page


@pytest.mark.parametrize("name", ["more_seeds", "equal_passes"])
def test_a_method_is_the_same_in_all_files(name):
    """What these files repeat of full.yaml."""
    full, other = (load_specification(METHODS / f"{each}.yaml") for each in ("full", name))
    assert other.configs == full.configs
    assert other.variants == {method: full.variants[method] for method in other.variants}


def test_costs_are_those_of_the_methods_of_full():
    """Rates and weights change no cost; stages are a tenth as long, and explicit CoT starts from the teacher."""
    full, costs = (load_specification(METHODS / f"{each}.yaml") for each in ("full", "costs"))
    assert list(costs.variants) == list(full.variants)
    for method in set(full.variants) - {"explicit_cot"}:
        assert costs.variants[method]["config"] == full.variants[method]["config"], method


def test_pages_have_the_tables_that_their_rows_make(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "figures")
    import sweeps

    for path in sorted((ROOT / "experiments").glob("**/README.md")):
        page = path.read_text(encoding="utf-8")
        if "<!-- report:" in page:
            assert page == sweeps.put(page, sweeps.blocks(sweeps.section_of(path.parent.relative_to(ROOT))))


def test_a_block_takes_the_place_of_the_one_before(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "figures")
    import sweeps

    empty = "# x\n\n<!-- report:methods -->\n\ntext\n"
    once = sweeps.put(empty, {"methods": "| a |\n|---|\n| 1 |", "claims": "| b |"})
    assert once == "# x\n\n<!-- report:methods -->\n\n| a |\n|---|\n| 1 |\n\ntext\n"
    assert sweeps.put(once, {"methods": "| a |"}) == "# x\n\n<!-- report:methods -->\n\n| a |\n\ntext\n"
