"""Rows that are taken over from other sweeps, and the students of runs, tested anew."""

from pathlib import Path

import pytest
from sweep_bench import SWEEP

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import ResultTable, read_outcomes, write_outcomes
from lori_pl.sweep import cell_runner
from lori_pl.sweep.looking import show_status


def test_the_very_same_runs_of_another_sweep_are_taken_over(bench):
    def leave(folder):
        write_outcomes(folder / "correct.npz", ["p", "q"], [True, len(bench.ran) > 1], "lori", 3)

    bench.before = leave
    bench.run(SWEEP, "seeds=[3]", "label='{method}_{model.rank}'")
    other = ["seeds=[3]", "label='{method}_{model.rank}'", "grid.model.rank=[8, 9]", "output=more"]
    with pytest.raises(LoriError, match=r"field 'reuse': nowhere holds no results\.csv"):
        bench.run(SWEEP, *other, "reuse=[nowhere, out]")
    bench.run(SWEEP, *other, "reuse=[out]")
    assert len(bench.ran) == 1
    rows = ResultTable("more/results.csv").rows()
    first = {row["model.rank"]: row for row in bench.rows()}["8"]
    assert rows[0] == first
    assert rows[1]["model.rank"] == "9"
    taken, given = (read_outcomes(f"{folder}/correct.npz").bits["lori_8", 3] for folder in ("more", "out"))
    assert list(taken) == list(given) == [True, True]
    assert "as lori_8 in out" in bench.printed


def test_rows_are_taken_over_only_with_all_metrics_and_a_name_of_their_own(bench):
    bench.run(SWEEP, "seeds=[3]", "label='{method}_{model.rank}'")
    more = ["seeds=[3]", "label='{method}_{model.rank}'", "output=more", "reuse=[out]"]
    bench.run(SWEEP, *more, "metrics=[loss, other]")
    assert len(bench.ran) == 2
    Path("taken").mkdir()
    table = Path("out/results.csv").read_text()
    Path("taken/results.csv").write_text(table.replace("lori_8", "lori_4"))
    with pytest.raises(LoriError, match=r"taken has this run as 'lori_4', but another cell's row in .* 'lori_4'"):
        bench.run(SWEEP, "seeds=[3]", "label='{method}_{model.rank}'", "output=third", "reuse=[taken]")


def test_a_row_that_is_taken_over_has_the_name_by_which_this_file_compares_it(bench):
    def leave(folder):
        write_outcomes(folder / "correct.npz", ["p", "q"], [True, len(bench.ran) > 1], "lori", 3)

    bench.before = leave
    bench.run(SWEEP, "seeds=[3]", "label='{method}'", "grid.model.rank=[8]")
    compared = ["label='rank {model.rank}'", "compare=[['rank 8', 'rank 4']]"]
    bench.run(SWEEP, "seeds=[3]", *compared, "output=more", "reuse=[out]")
    assert [row["method"] for row in ResultTable("more/results.csv").rows()] == ["rank 4", "rank 8"]
    assert read_outcomes("more/correct.npz").bits.keys() == {("rank 4", 3), ("rank 8", 3)}
    assert "accuracy 0.0800  as lori in out" in bench.printed
    assert "rank 8 - rank 4: +0.0 points" in bench.printed


TESTS = ["seeds=[0]", "tests={latents: [1, 2]}"]


def test_the_student_of_a_run_is_tested_anew_in_rows_of_its_own(bench):
    def leave(folder):
        write_outcomes(folder / "correct.npz", ["p", "q"], [True, False], "lori", 0)

    bench.before = leave
    assert bench.run(SWEEP, *TESTS) == 0
    rows = bench.rows()
    assert [(row["method"], row["latents"], row["accuracy"]) for row in rows] == [
        *[
            ("lori[rank=4]", "", "0.04"),
            ("lori[rank=4][latents=1]", "1", "0.05"),
            ("lori[rank=4][latents=2]", "2", "0.06"),
        ],
        *[
            ("lori[rank=8]", "", "0.08"),
            ("lori[rank=8][latents=1]", "1", "0.09"),
            ("lori[rank=8][latents=2]", "2", "0.1"),
        ],
    ]
    assert [row["model.rank"] for row in rows] == ["4"] * 3 + ["8"] * 3
    # a test has no metric of the training, and that is no fault
    assert [row["loss"] for row in rows] == ["0.75", "", ""] * 2
    assert "no loss" not in bench.printed
    assert "test --config=base.yaml" in rows[1]["command"]
    assert ("lori[rank=8][latents=2]", 0) in read_outcomes("out/correct.npz").bits
    # what is there is not done again, also when the sweep grows
    bench.run(SWEEP, "seeds=[0]", "tests={latents: [2, 7, 1]}")
    assert [row["latents"] for row in bench.rows()[6:]] == ["7", "7"]
    assert len(bench.ran) == 2
    # rows of tests are taken over, too, though they lack the training's metrics
    bench.run(SWEEP, *TESTS, "output=more", "reuse=[out]")
    assert bench.ran == []
    assert [row["latents"] for row in ResultTable("more/results.csv").rows()] == ["", "1", "2"] * 2
    # nothing is chosen by a test
    show_status(sweep := bench.sweep(SWEEP, *TESTS))
    assert sweep.total == 6
    assert (
        "best: lori[rank=8], test accuracy 0.08 (95 % interval over problems 0.01 to 0.2) over 1 seed" in bench.said()
    )


REUSING = [*TESTS, "output=more", "reuse=[out]"]


def students_tested(folder):
    """What the recorded tests took, by the value that is tested."""
    rows = ResultTable(f"{folder}/results.csv").rows()
    return [(row["latents"], row["command"].split("--ckpt_path=")[1].split()[0]) for row in rows if row["latents"]]


@pytest.mark.parametrize("taken_before", [False, True])
def test_the_student_of_a_run_that_was_taken_over_is_tested_where_it_lies(bench, taken_before):
    bench.run(SWEEP, "seeds=[0]")
    students = [f"out/cells/{row['cell']}/student" for row in bench.rows()]
    if taken_before:
        bench.run(SWEEP, "seeds=[0]", "output=more", "reuse=[out]")
        assert bench.ran == []
    assert bench.run(SWEEP, *REUSING) == 0
    assert len(bench.ran) == 4
    taken = [("1", students[0]), ("2", students[0]), ("1", students[1]), ("2", students[1])]
    assert sorted(students_tested("more")) == sorted(taken)
    accuracies = {row["accuracy"] for row in ResultTable("more/results.csv").rows() if row["latents"]}
    assert accuracies == {"0.05", "0.06", "0.09", "0.1"}


@pytest.mark.parametrize("taken_before", [False, True])
def test_a_reused_run_without_its_student_is_told_before_anything_runs(bench, taken_before):
    bench.run(SWEEP, "seeds=[0]", "grid.model.rank=[8]")
    if taken_before:
        bench.run(SWEEP, "seeds=[0]", "output=more", "reuse=[out]", "grid.model.rank=[8]")
    Path("out/cells").rename("elsewhere")
    # 4 would be run, and before the test
    with pytest.raises(
        LoriError, match=r"field 'tests': cell 5 tests the student of run .* none in out/cells/.*/student"
    ):
        bench.run(SWEEP, *REUSING)
    assert bench.ran == []
    # what stays without tests, or has a test recorded, needs no student
    assert bench.run(SWEEP, *REUSING, only=1) == 0
    assert len(bench.ran) == 1
    Path("elsewhere").rename("out/cells")
    assert bench.run(SWEEP, *REUSING) == 0
    assert len(bench.ran) == 4


def test_a_run_whose_row_came_without_its_student_is_told_before_anything_runs(bench):
    """As in a clone, which has the table and no runs."""
    bench.run(SWEEP, "seeds=[0]")
    Path("out/cells").rename("elsewhere")
    rows = bench.rows()
    with pytest.raises(
        LoriError, match=r"stands in out/results\.csv, and there is none in out/cells/.*/student; bring"
    ):
        bench.run(SWEEP, *TESTS)
    assert (bench.ran, bench.rows()) == ([], rows)
    assert bench.run(SWEEP, *TESTS, "output=new") == 0
    assert len(bench.ran) == 6


def test_a_folder_of_results_that_was_moved_with_its_runs_has_their_students(bench):
    bench.run(SWEEP, "seeds=[0]", "grid.model.rank=[8]")
    Path("out").rename("moved")
    assert bench.run(SWEEP, *TESTS, "output=more", "reuse=[moved]", "grid.model.rank=[8]") == 0
    (cell,) = [path.name for path in Path("moved/cells").iterdir()]
    assert students_tested("more") == [("1", f"moved/cells/{cell}/student"), ("2", f"moved/cells/{cell}/student")]


def test_a_student_that_is_not_there_yet_is_not_tested(bench):
    flags = [*TESTS, "grid.model.rank=[13, 8]"]
    assert bench.run(SWEEP, *flags, only=2) == 0
    assert bench.ran == []
    assert "not tested, since the run of their student has not come to its end: cells 2" in bench.printed
    assert bench.run(SWEEP, *flags) == 1
    assert "not tested, since the run of their student has not come to its end: cells 2, 3" in bench.printed
    assert [row["status"] for row in bench.rows()] == ["failed", "ok", "ok", "ok"]
    # a run that left no student: the reason stands in the row
    assert bench.run(SWEEP, "seeds=[1]", "tests={latents: [1]}", "grid.model.rank=[50]") == 1
    assert "No such file" in bench.rows()[-1]["reason"]


def test_a_test_that_was_stopped_is_made_again_and_not_gone_on_with(bench, monkeypatch):
    flags = [*TESTS, "grid.model.rank=[8]"]
    bench.run(SWEEP, *flags, only=1)

    def interrupt(folder):
        raise KeyboardInterrupt

    bench.before = interrupt
    monkeypatch.setattr(cell_runner, "git_commit", lambda: "abc")
    with pytest.raises(KeyboardInterrupt):
        bench.run(SWEEP, *flags)
    bench.before = lambda folder: None
    seen = []
    real = bench.run_fake
    monkeypatch.setattr(bench, "run_fake", lambda line, log, keep_open=(): (seen.append(line), real(line, log))[1])
    assert bench.run(SWEEP, *flags) == 0
    assert "--ckpt_path=auto" not in seen[0]
