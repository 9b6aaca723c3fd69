"""The rows of a sweep: renewed when its file asks for more, told of where they cannot be, refused where damaged."""

import csv
from pathlib import Path

import pytest
from sweep_bench import SWEEP

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import ResultTable, read_outcomes, write_outcomes
from lori_pl.sweep.looking import show_plan, show_status

ONE_SEED = SWEEP.replace("seeds: [0, 1]", "seeds: [0]")


def change(column, value, line=0):
    """Edits the table as a person would."""
    with Path("out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[line][column] = value
    with Path("out/results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_a_metric_that_is_asked_for_later_comes_from_the_runs(bench):
    bench.run(ONE_SEED, "metrics=[]")
    assert [row.get("loss") for row in bench.rows()] == [None] * 2
    bench.run(ONE_SEED, "metrics=[loss, other]")
    assert bench.ran == []
    assert [row["loss"] for row in bench.rows()] == ["", "", "0.75", "0.75"]
    assert [row["cell"] for row in bench.rows()[2:]] == [row["cell"] for row in bench.rows()[:2]]
    assert "[1/2] rank=4 seed=0  the row of 'lori[rank=4]' is with its loss" in bench.printed
    assert "cells 1, 2: their rows have no other, and no summary.json at hand has it" in bench.printed
    bench.run(ONE_SEED, "metrics=[loss]")
    assert len(bench.rows()) == 4
    assert "their rows" not in bench.printed


@pytest.mark.parametrize("content", [None, "{", '{"methods": {"lori": {"accuracy": 0.9}}, "loss": 1}'])
def test_what_is_not_that_runs_says_nothing_of_it(bench, content):
    bench.run(ONE_SEED, "grid.model.rank=[4]", "metrics=[]", "label='{method}'")
    (path,) = Path("out/cells").glob("*/summary.json")
    path.unlink()
    if content is not None:
        path.write_text(content)
    bench.run(ONE_SEED, "grid.model.rank=[4]", "metrics=[loss]", "label='{method} {model.rank}'")
    (row,) = bench.rows()
    assert row["method"] == "lori"
    assert "cell 1: their rows have no loss" in bench.printed


def test_another_label_names_finished_runs_anew(bench):
    bench.before = lambda folder: write_outcomes(folder / "correct.npz", ["p", "q"], [True, False], "lori", 0)
    bench.run(ONE_SEED)
    renamed = ["label='{method}_{model.rank}'", "compare=[[lori_8, lori_4]]"]
    bench.run(ONE_SEED, *renamed)
    assert bench.ran == []
    assert [row["method"] for row in bench.rows()] == ["lori[rank=4]", "lori[rank=8]", "lori_4", "lori_8"]
    assert read_outcomes("out/correct.npz").bits.keys() >= {("lori_4", 0), ("lori_8", 0)}
    assert "the row of 'lori[rank=4]' is called 'lori_4' now" in bench.printed
    assert "lori_8 - lori_4: +0.0 points" in bench.printed
    assert Path("out/by_name/lori_4_seed0/summary.json").exists()
    bench.run(ONE_SEED, *renamed)
    assert len(bench.rows()) == 4
    # names may change places: one waits for the other
    swapped = ["variants={lori_4: {model.rank: 8}, lori_8: {model.rank: 4}}", "grid={}", "label='{variant}'"]
    bench.run(ONE_SEED, *swapped)
    last = {row["cell"]: row for row in bench.rows()}
    assert {row["accuracy"]: row["method"] for row in last.values()} == {"0.08": "lori_4", "0.04": "lori_8"}
    assert bench.ran == []


def test_a_name_is_one_line(bench):
    """As YAML's `label: >` ends, and as a table holds it."""
    folded = SWEEP.replace("seeds: [0, 1]", 'seeds: [0]\nlabel: "{method}_{model.rank}\\n"')
    for _ in range(2):
        bench.run(folded)
        assert [row["method"] for row in bench.rows()] == ["lori_4", "lori_8"]
    with pytest.raises(LoriError, match="gives cells 1 and 2 the same name"):
        bench.run(SWEEP, "grid={model.sep: [' ', \"\\n\"]}", "label='a{model.sep}b'", "fixed={model.rank: 4}")


def test_a_row_that_was_taken_over_is_renewed_from_where_its_run_lies(bench):
    bench.run(ONE_SEED, "metrics=[]")
    more = ["output=more", "reuse=[out]"]
    bench.run(ONE_SEED, *more, "metrics=[]")
    bench.run(ONE_SEED, *more, "metrics=[loss]")
    assert bench.ran == []
    assert [row["loss"] for row in ResultTable("more/results.csv").rows()] == ["", "", "0.75", "0.75"]


def test_a_name_that_another_cell_has_is_given_once(bench):
    for name in "ab":
        Path(name).mkdir()
        Path(name, "m.yaml").write_text(f"model: {name}\n")
    text = "output: out\nlabel: '{method}'\nfixed: {model.rank: 5}\ngrid: {config: [a/m.yaml, b/m.yaml]}"
    bench.run(text)
    names = [row["method"] for row in bench.rows()]
    assert names == ["lori", f"lori [{bench.rows()[1]['cell']}]"]
    bench.run(text)
    assert [row["method"] for row in bench.rows()] == names


def test_rows_that_are_not_taken_over_for_a_metric_are_told(bench):
    bench.run(ONE_SEED, "metrics=[]")
    bench.run(ONE_SEED, "output=more", "reuse=[out]", "metrics=[loss]")
    assert len(bench.ran) == 2
    assert "cells 1, 2: run here, since out/results.csv has their row without loss" in bench.printed


def test_rows_of_cells_that_the_file_does_not_have_are_told(bench):
    bench.run(ONE_SEED)
    assert "other cells" not in bench.printed
    bench.run(ONE_SEED, "grid.model.rank=[4]")
    assert "out/results.csv has rows of 1 other cells, which this file does not have" in bench.printed


def test_a_run_whose_row_was_taken_out_is_made_anew(bench):
    bench.before = lambda folder: (folder / "checkpoints").mkdir()
    bench.run(ONE_SEED, "grid.model.rank=[4]")
    lines = Path("out/results.csv").read_text().splitlines(keepends=True)
    Path("out/results.csv").write_text(lines[0])
    bench.run(ONE_SEED, "grid.model.rank=[4]")
    assert len(bench.ran) == 1
    assert "cell 1 begins anew: its run had ended well, but has no row any more" in bench.printed


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("status", "", "'status': expected 'ok' or 'failed', got ''"),
        ("seconds", "long", "'seconds': expected a number, got 'long'"),
        ("seconds", "", "'seconds': expected a number, got ''"),
        ("seed", "0.5", "'seed': expected a whole number, got '0.5'"),
        ("accuracy", "nan", "'accuracy': expected a number, got 'nan'"),
        ("validation", "good", "'validation': expected a number, got 'good'"),
        ("low", "l", "'low': expected a number, got 'l'"),
    ],
)
def test_a_damaged_row_is_told_by_line_and_column(bench, column, value, message):
    text = ONE_SEED.replace("[loss,", "[validation,")
    bench.run(text)
    change(column, value, line=1)
    for look in (bench.run, lambda text: show_status(bench.sweep(text)), lambda text: show_plan(bench.sweep(text))):
        with pytest.raises(LoriError) as caught:
            look(text)
        assert f"out/results.csv, line 3, column {message}; mend it, or take the line out" in str(caught.value)
    assert bench.ran == []
    # what is no cell's is nobody's fault
    change("cell", "", line=1)
    show_status(bench.sweep(text))
