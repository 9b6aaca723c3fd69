"""The sweep's runner: which cells run and what they leave."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from sweep_bench import FAKE_RUN, SWEEP

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import RESULT_COLUMNS, ResultTable, git_commit, read_outcomes, write_outcomes
from lori_pl.machine import processor
from lori_pl.sweep import cell_runner, rows
from lori_pl.sweep.fields import SWEEP_COLUMNS
from lori_pl.sweep.looking import show_status
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


def test_a_retry_that_another_worker_made_is_not_made_again(bench):
    flags = [SWEEP, "grid.model.rank=[13]", "seeds=[0]"]
    bench.run(*flags)
    cell = bench.sweep(*flags).cells[0]
    assert bench.run(*flags, retry_failed=True) == 1
    settled = bench.sweep(*flags).runner.settle(cell, seen=1)
    assert not settled.is_new
    assert settled.row == bench.rows()[-1]


def test_a_signal_between_a_runs_end_and_its_row_waits_for_the_row(bench, monkeypatch):
    real = rows.read_summary

    def interrupted(path, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        return real(path, metrics)

    monkeypatch.setattr(rows, "read_summary", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run(SWEEP, "seeds=[0]")
    assert [row["status"] for row in bench.rows()] == ["ok"]


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


def test_a_failed_run_has_its_machine_in_its_row(bench):
    """As the run noted it before it trained, out of memory or not; what an earlier attempt noted is not its own."""
    flags = (SWEEP, "grid.model.rank=[13]", "seeds=[0]")
    keep_checkpoint(bench)
    leave = bench.before
    bench.before = lambda folder: (leave(folder), (folder / "machine.txt").write_text("NVIDIA H100\n"))
    bench.run(*flags)
    bench.before = lambda folder: None
    bench.run(*flags, retry_failed=True)
    assert (Path("out/cells") / bench.ran[0] / "checkpoints").exists()  # it went on in the same folder
    assert [(row["status"], row["machine"]) for row in bench.rows()] == [
        ("failed", "NVIDIA H100"),
        ("failed", f"{processor()}, no device taken yet"),
    ]


def keep_checkpoint(bench):
    def leave(folder):
        (folder / "checkpoints").mkdir(exist_ok=True)
        torch.save({"global_step": 3}, folder / "checkpoints" / "last.ckpt")

    bench.before = leave


def test_a_retry_that_goes_on_and_is_killed_is_not_blamed_on_the_first_error(bench):
    keep_checkpoint(bench)
    flags = (SWEEP, "grid.model.rank=[13]", "seeds=[0]")
    bench.run(*flags)
    Path("fake_run.py").write_text(FAKE_RUN.replace("rank == 99", "rank == 13").replace("raise", "pass  # raise"))
    bench.run(*flags, retry_failed=True)
    first, second = (row["reason"] for row in bench.rows())
    assert first == "ValueError: rank 13 brings no luck"
    assert second.startswith("ended by signal 9 (Killed, perhaps out of memory): training with")
    assert "no luck" in Path(f"out/cells/{bench.ran[0]}/log.txt").read_text()  # it went on in the same folder


def test_each_row_lands_before_the_next_run_starts(bench):
    landed = []

    def count(folder):
        path = Path("out/results.csv")
        landed.append(path.read_bytes().count(b"\n") if path.exists() else 0)

    bench.before = count
    bench.run()
    assert landed == [0, 2, 3, 4]


def interrupt_third(bench):
    """Stops the sweep in its third cell, whose run leaves something."""

    def interrupt(folder):
        if len(bench.ran) == 3:
            (folder / "summary.json").write_text('{"methods": {"lori": {"accuracy": 0.99}}}')
            (folder / "checkpoints").mkdir(exist_ok=True)
            torch.save({"global_step": 3}, folder / "checkpoints" / "last.ckpt")
            raise KeyboardInterrupt

    bench.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert len(bench.rows()) == 2
    assert "stopped in cell 3; the same command goes on from there" in bench.printed
    return bench.ran[2]


def test_an_interrupted_sweep_goes_on_from_a_clean_folder_under_other_code(bench, monkeypatch):
    monkeypatch.setattr(cell_runner, "code_digest", lambda: "before")
    interrupted = interrupt_third(bench)
    monkeypatch.setattr(cell_runner, "code_digest", lambda: "now")

    def is_clean(folder):
        assert [path.name for path in folder.iterdir()] == ["begun.json"]

    bench.before = is_clean
    assert bench.run() == 0
    assert len(bench.ran) == 2
    assert bench.ran[0] == interrupted
    assert [row["accuracy"] for row in bench.rows()] == ["0.04", "0.08", "0.04", "0.08"]
    # the work of days is not thrown away
    aside = Path(f"out/set_aside/{interrupted}_1")
    assert f"cell 3 begins anew: what stood there is of other code (commit {git_commit()})" in bench.printed
    assert f"is in {aside} now" in bench.printed
    assert torch.load(aside / "checkpoints" / "last.ckpt") == {"global_step": 3}


def test_what_cannot_be_removed_of_an_earlier_run_stops_no_sweep(bench, monkeypatch):
    """NFS keeps a file under another name while a process has it open."""
    bench.run(SWEEP, "grid.model.rank=[13]", "seeds=[0]")
    monkeypatch.setattr(cell_runner.shutil, "rmtree", lambda folder, ignore_errors: None)
    assert bench.run(SWEEP, "grid.model.rank=[13]", "seeds=[0]", retry_failed=True) == 1
    assert [row["reason"] for row in bench.rows()] == ["ValueError: rank 13 brings no luck"] * 2


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_run_goes_on_under_the_same_code(bench, monkeypatch, killed):
    """Whatever git says of it: a tree with changes of one's own, or no checkout at all."""
    monkeypatch.setattr(cell_runner, "git_commit", lambda: "unknown")
    interrupted = interrupt_third(bench)
    noted = Path(f"out/cells/{interrupted}/begun.json")
    content = json.loads(noted.read_text())
    assert content["since"] is None
    # one that is killed leaves what stood there when it began
    last = Path(f"out/cells/{interrupted}/checkpoints/last.ckpt").stat().st_mtime
    content |= {"seconds": 50, "since": last - 60} if killed else {"seconds": 100 + content["seconds"]}
    noted.write_text(json.dumps(content))
    lines = []
    real = bench.run_fake

    def look(line, log, keep_open=()):
        lines.append(line)
        assert (log.parent / "checkpoints").exists() == (log.parent.name == interrupted)
        return real(line, log)

    bench.before = lambda folder: None
    bench.run_fake = look
    assert bench.run() == 0
    assert bench.ran[0] == interrupted
    assert [line[-1] == "--ckpt_path=auto" for line in lines] == [True, False]
    rows = bench.rows()
    assert [row["accuracy"] for row in rows] == ["0.04", "0.08", "0.04", "0.08"]
    assert float(rows[2]["seconds"]) > 100 > float(rows[3]["seconds"])
    assert "--ckpt_path" not in rows[2]["command"]
    assert not noted.exists()


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew(bench, monkeypatch):
    interrupted = interrupt_third(bench)
    Path(f"out/cells/{interrupted}/checkpoints/last.ckpt").write_bytes(b"cut off")

    def is_clean(folder):
        assert [path.name for path in folder.iterdir()] == ["begun.json"]

    bench.before = is_clean
    assert bench.run() == 0
    assert bench.ran[0] == interrupted


def test_a_row_cut_by_a_crash_is_run_again(bench):
    bench.run()
    path = Path("out/results.csv")
    path.write_bytes(path.read_bytes()[:-5])
    bench.run()
    assert len(bench.ran) == 1
    assert [row["status"] for row in bench.rows()] == ["ok"] * 4


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
