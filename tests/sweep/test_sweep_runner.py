"""The sweep's runner: which cells run and what they leave."""

import json
from pathlib import Path

import pytest
from sweep_bench import FAKE_RUN, SWEEP

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import RESULT_COLUMNS, git_commit, read_outcomes, write_outcomes
from lori_pl.sweep.fields import SWEEP_COLUMNS
from lori_pl.sweep.summary import read_summary


def test_every_cell_is_run_and_leaves_a_full_row(bench):
    assert bench.run() == 0
    rows = bench.rows()
    assert list(rows[0]) == [*RESULT_COLUMNS, *SWEEP_COLUMNS, "model.rank", "loss", "accuracy_steps_3"]
    assert [(row["seed"], row["model.rank"], row["accuracy"]) for row in rows] == [
        *[("0", "4", "0.04"), ("0", "8", "0.08"), ("1", "4", "0.04"), ("1", "8", "0.08")],
    ]
    row = rows[1]
    assert (row["method"], row["status"], row["reason"], row["n"]) == ("lori[rank=8]", "ok", "", "50")
    assert (row["low"], row["high"], row["passes"], row["milliseconds"]) == ("0.01", "0.2", "6", "1.5")
    assert (row["loss"], row["accuracy_steps_3"], row["commit"]) == ("0.75", "0.25", git_commit())
    assert float(row["seconds"]) > 0
    assert float(row["peak_memory_mib"]) > 1
    assert row["command"] == (
        "python -m lori_pl fit --config=base.yaml --seed_everything=0 --model.rank=8 "
        f"--trainer.default_root_dir=out/cells/{row['cell']}"
    )
    assert "training with" in Path(f"out/cells/{row['cell']}/log.txt").read_text()
    assert [row["cell"] for row in rows] == bench.ran


def test_finished_runs_are_found_by_name(bench):
    bench.run(SWEEP, "grid.model.rank=[4, 13]", "seeds=[7]", "label='{method}/r {model.rank}'")
    (link,) = Path("out/by_name").iterdir()
    assert link.name == f"lori_r_4_{bench.rows()[0]['cell']}_seed7"
    assert (link / "summary.json").is_file()
    assert link.resolve() == Path("out/cells", bench.rows()[0]["cell"]).resolve()


def test_runs_of_one_name_and_seed_are_told_apart(bench):
    """Only the method's name, which nobody knows before the run, would tell these two apart."""
    Path("other.yaml").write_text("model: {a: 2}")

    def leave(folder):
        write_outcomes(folder / "correct.npz", ["p", "q"], [True, len(bench.ran) > 1], "lori", 3)

    bench.before = leave
    text = "configs: []\noutput: out\nfixed: {model.rank: 4}\ngrid: {config: [base.yaml, other.yaml]}\nseeds: [3]\n"
    bench.run(text + "label: '{method}'")
    first, second = bench.rows()
    assert (first["method"], second["method"]) == ("lori", f"lori [{second['cell']}]")
    outcomes = read_outcomes("out/correct.npz").bits
    assert {key: bits.tolist() for key, bits in outcomes.items()} == {
        ("lori", 3): [True, False],
        (second["method"], 3): [True, True],
    }
    assert len(list(Path("out/by_name").iterdir())) == 2
    assert "another cell's row in out/results.csv is called 'lori' with this seed" in bench.printed
    # the same cell, made anew, keeps its name
    bench.run(text + "label: '{method}'", "output=out")
    assert bench.ran == []


def test_results_that_cannot_be_written_are_told_before_anything_runs(bench):
    Path("taken").write_text("a file")
    with pytest.raises(LoriError, match="taken cannot be written"):
        bench.run(SWEEP, "results=taken")
    assert bench.ran == []


def test_a_failed_row_keeps_no_name_from_the_run_that_mends_it(bench):
    text = "configs: [base.yaml]\noutput: out\ngrid: {model.rank: [13]}\nseeds: [0]\nlabel: 'r{model.rank}'\n"
    assert bench.run(text) == 1
    Path("base.yaml").write_text("model: {a: 2}")  # another cell
    Path("fake_run.py").write_text(FAKE_RUN.replace("rank == 13", "rank == 14"))
    assert bench.run(text) == 0
    assert [(row["method"], row["status"]) for row in bench.rows()] == [("r13", "failed"), ("r13", "ok")]


def test_a_table_that_cannot_be_read_or_written_is_told_of(bench):
    Path("out/results.csv").mkdir(parents=True)
    with pytest.raises(LoriError, match=r"out/results\.csv cannot be read"):
        bench.run()
    assert bench.ran == []


def test_a_retry_that_another_worker_made_is_not_made_again(bench):
    flags = [SWEEP, "grid.model.rank=[13]", "seeds=[0]"]
    bench.run(*flags)
    cell = bench.sweep(*flags).cells[0]
    assert bench.run(*flags, retry_failed=True) == 1
    settled = bench.sweep(*flags).runner.settle(cell, seen=1)
    assert not settled.is_new
    assert settled.row == bench.rows()[-1]


def test_finished_cells_are_skipped_and_new_ones_run(bench):
    bench.run()
    first = bench.rows()
    assert bench.run() == 0
    assert bench.ran == []
    assert bench.rows() == first
    bench.run(SWEEP, "grid.model.rank=[8, 6, 4]", "seeds=[1]")
    assert [row["model.rank"] for row in bench.rows()[4:]] == ["6"]
    Path("base.yaml").write_text("model: {a: 2}")
    bench.run()
    assert len(bench.ran) == 4


def test_failed_cells_keep_a_row_with_the_reason_and_are_retried_only_on_demand(bench):
    text = SWEEP.replace("[4, 8]", "[13, 99, 77, 4]").replace("[0, 1]", "[0]")
    assert bench.run(text) == 3
    rows = bench.rows()
    assert [row["status"] for row in rows] == ["failed", "failed", "failed", "ok"]
    assert [row["reason"] for row in rows[:3]] == [
        "ValueError: rank 13 brings no luck",
        "ended by signal 9 (Killed, perhaps out of memory): training with ['config', 'model.rank', 'seed_everything', "
        "'trainer.default_root_dir']",
        "the run ended without a summary.json in its folder",
    ]
    assert rows[0]["method"] == "?[rank=13]"
    assert rows[0]["accuracy"] == ""
    assert bench.run(text) == 0
    assert bench.ran == []
    assert "3 failed before; --retry_failed runs them again" in bench.printed
    Path("fake_run.py").write_text(FAKE_RUN.replace("rank == 13", "rank == 14"))
    assert bench.run(text, retry_failed=True) == 2
    assert bench.ran == [row["cell"] for row in rows[:3]]
    assert [row["status"] for row in bench.rows()] == ["failed"] * 3 + ["ok", "ok"] + ["failed"] * 2
    assert bench.run(text) == 0
    assert bench.ran == []


def test_each_row_lands_before_the_next_run_starts(bench):
    landed = []

    def count(folder):
        path = Path("out/results.csv")
        landed.append(path.read_bytes().count(b"\n") if path.exists() else 0)

    bench.before = count
    bench.run()
    assert landed == [0, 2, 3, 4]


def test_only_runs_the_one_cell(bench):
    bench.run(only=3)
    assert [(row["seed"], row["model.rank"]) for row in bench.rows()] == [("1", "4")]
    for number in (0, 5):
        with pytest.raises(LoriError, match=f"there is no cell {number}; --only takes 1 to 4"):
            bench.run(only=number)


def test_a_second_sweep_leaves_the_cell_at_work_and_takes_the_others(bench):
    def second(folder):
        bench.before = lambda _: None
        assert bench.sweep(SWEEP).run() == 0
        assert "at work elsewhere (another worker, or a run that a killed one left behind): cells 1" in bench.said()

    bench.before = second
    assert bench.run() == 0
    assert len(bench.ran) == len(set(bench.ran)) == 4
    assert [row["status"] for row in bench.rows()] == ["ok"] * 4


def test_a_failure_elsewhere_is_not_counted_here(bench):
    def second(folder):
        bench.before = lambda _: None
        assert bench.sweep(SWEEP, "grid.model.rank=[4, 13]", "seeds=[0]").run() == 1

    bench.before = second
    assert bench.run(SWEEP, "grid.model.rank=[4, 13]", "seeds=[0]") == 0
    assert [row["status"] for row in bench.rows()] == ["failed", "ok"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "summary.json cannot be read"),
        ("[]", "must report one method under 'methods', got none"),
        ('{"methods": {}}', "must report one method under 'methods', got none"),
        ('{"methods": {"a": {}, "b": {}}}', "must report one method under 'methods', got a, b"),
        ('{"methods": {"a": {"n": 3}}}', "has no 'accuracy' of method 'a'"),
        ('{"methods": {"a": {"accuracy": "high"}}}', "has no 'accuracy' of method 'a'"),
    ],
)
def test_a_summary_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(LoriError, match=message):
        read_summary(tmp_path / "summary.json", [])


def test_a_metric_of_the_method_goes_before_the_runs(tmp_path):
    entry = {"accuracy": 1, "loss": 2, "other": 3, "zero": 0, "problems": "ab12"}
    whole = {"methods": {"a": entry}, "loss": 4, "rate": 5, "zero": 6, "sets": {"svamp": {"accuracy": 0.5}}}
    (tmp_path / "summary.json").write_text(json.dumps(whole))
    names = ["loss", "rate", "zero", "none", "sets.svamp.accuracy", "rate.none"]
    assert read_summary(tmp_path / "summary.json", names) == (
        "a",
        {"accuracy": 1, "loss": 2, "rate": 5, "zero": 0, "problems": "ab12", "sets.svamp.accuracy": 0.5},
    )
