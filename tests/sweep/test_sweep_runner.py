import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lori_pl.errors import LoriError
from lori_pl.evaluation.records import RESULT_COLUMNS, ResultTable, git_commit, read_outcomes, write_outcomes
from lori_pl.sweep import command, runner
from lori_pl.sweep.child import ChildResult, progress_file, run_child
from lori_pl.sweep.runner import Sweep, read_summary
from lori_pl.sweep.specification import SWEEP_COLUMNS, load_specification

SWEEP = (
    "configs: [base.yaml]\noutput: out\ngrid: {model.rank: [4, 8]}\nseeds: [0, 1]\nmetrics: [loss, accuracy_steps_3]"
)

# Stands for the command line: reads the flags of a cell, leaves what a run leaves, or fails.
FAKE_RUN = """
import json, pathlib, sys
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
folder, rank = pathlib.Path(flags["trainer.default_root_dir"]), int(flags["model.rank"])
print("training with", sorted(flags))
if rank == 13:
    raise ValueError("rank 13 brings no luck")
if rank == 99:
    import os; os.kill(os.getpid(), 9)
entry = {"accuracy": rank / 100, "low": 0.01, "high": 0.2, "n": 50, "passes": 6, "milliseconds": 1.5,
         "accuracy_steps_3": 0.25}
if rank != 77:
    (folder / "summary.json").write_text(json.dumps({"methods": {"lori": entry}, "loss": 0.75}))
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


class Bench:
    """A folder with a sweep file and a fake run; counts the runs."""

    def __init__(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        Path("base.yaml").write_text("model: {a: 1}")
        Path("fake_run.py").write_text(FAKE_RUN)
        self.ran = []
        self.before = lambda cell_folder: None
        self.printed = ""
        self.terminal = False

    def sweep(self, text=SWEEP, *overrides):
        Path("sweep.yaml").write_text(text)
        self._stream = io.StringIO()
        console = Console(file=self._stream, width=200, force_terminal=self.terminal, color_system=None)
        return Sweep(load_specification("sweep.yaml", overrides), runner=self.run_fake, console=console)

    def run_fake(self, line, log):
        folder = log.parent
        assert line[:4] == [sys.executable, "-m", "lori_pl", "fit"]
        self.ran.append(folder.name)
        self.before(folder)
        return run_child([sys.executable, "-S", "fake_run.py", *line[4:]], log)

    def run(self, text=SWEEP, *overrides, **options):
        self.ran.clear()
        sweep = self.sweep(text, *overrides)
        try:
            return sweep.run(**options)
        finally:
            self.printed = self._stream.getvalue()

    def rows(self):
        return ResultTable("out/results.csv").rows()


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


def test_progress_and_table_are_shown(bench):
    bench.run(SWEEP, "grid.model.rank=[4, 13]", "seeds=[3]", "metrics=[loss, typo]")
    assert "sweep sweep: 2 of 2 cells to run in out" in bench.printed
    assert re.search(
        r"\[1/2\] rank=4 seed=3  accuracy 0\.0400 \(no typo in summary\.json\)  \d+\.\d s  ETA \d+\.\d s", bench.printed
    )
    assert re.search(r"\[2/2\] rank=13 seed=3  failed: ValueError: rank 13 brings no luck  \d+\.\d s\n", bench.printed)
    table = bench.printed.split("out/results.csv")[1]
    assert re.search(r"lori\[rank=4\] .* 3 .* 0\.04 \[0\.01, 0\.2\] .* 50 .* 6 .* 1\.5 .* 0\.75 ", table)
    assert re.search(r"\?\[rank=13\] .* 3 .* failed ", table)


def test_the_eta_is_the_mean_time_of_a_finished_run_for_each_that_waits(bench):
    seconds = iter([60.0, 180.0, 5400.0])

    def run(line, log):
        (log.parent / "summary.json").write_text('{"methods": {"lori": {"accuracy": 0.5}}}')
        return ChildResult(0, next(seconds), 1.0)

    bench.run_fake = run
    bench.run(SWEEP, "seeds=[0]", "grid.model.rank=[1, 2, 3]")
    lines = [line for line in bench.printed.splitlines() if "rank=" in line]
    assert lines[0].endswith("  accuracy 0.5000 (no loss, accuracy_steps_3 in summary.json)  1 min  ETA 2 min")
    assert lines[1].endswith("  3 min  ETA 2 min")
    assert lines[2].endswith("  1 h 30 min")


def say_progress(bench, text="120/1400"):
    def before(folder):
        progress_file(folder / "log.txt").write_text(text)
        time.sleep(0.6)

    bench.before = before


def test_a_terminal_shows_the_running_step(bench):
    bench.terminal = True
    say_progress(bench)
    bench.run(only=2)
    assert re.search(r"\[2/4\] rank=8 seed=0 .* 120/1400 +--:--", bench.printed)
    say_progress(bench, "120/")
    assert bench.run(only=1) == 0
    assert " 0/?" in bench.printed


def test_elsewhere_there_is_one_line_a_run(bench):
    say_progress(bench)
    bench.run(only=2)
    assert "120/1400" not in bench.printed
    before, _ = bench.printed.split("out/results.csv")
    lines = [line for line in before.splitlines() if line.strip()]
    assert len(lines) == 2
    assert lines[0].startswith("sweep sweep: 1 of 1 cells to run")
    assert lines[1].startswith("[2/4] rank=8 seed=0  accuracy")
    assert "\x1b" not in bench.printed


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


def test_an_interrupted_sweep_goes_on_from_a_clean_folder(bench):
    def interrupt(folder):
        if len(bench.ran) == 3:
            (folder / "summary.json").write_text('{"methods": {"lori": {"accuracy": 0.99}}}')
            (folder / "half_a_checkpoint").touch()
            raise KeyboardInterrupt

    bench.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert len(bench.rows()) == 2
    assert "stopped in cell 3; the same command goes on from there" in bench.printed
    interrupted = bench.ran[2]

    def is_clean(folder):
        assert list(folder.iterdir()) == []

    bench.before = is_clean
    assert bench.run() == 0
    assert len(bench.ran) == 2
    assert bench.ran[0] == interrupted
    assert [row["accuracy"] for row in bench.rows()] == ["0.04", "0.08", "0.04", "0.08"]


def test_a_row_cut_by_a_crash_is_run_again(bench):
    bench.run()
    path = Path("out/results.csv")
    path.write_bytes(path.read_bytes()[:-5])
    bench.run()
    assert len(bench.ran) == 1
    assert [row["status"] for row in bench.rows()] == ["ok"] * 4


def test_a_dry_run_lists_cells_with_status_and_command_and_touches_nothing(bench):
    bench.sweep().show_plan()
    assert not Path("out").exists()
    bench.run(SWEEP, "grid.model.rank=[4, 13]", "seeds=[0]")
    before = Path("out/results.csv").read_bytes()
    bench.ran.clear()
    sweep = bench.sweep(SWEEP, "grid.model.rank=[4, 13, 8]", "seeds=[0]")
    sweep.show_plan()
    lines = bench._stream.getvalue().splitlines()
    ids = [cell.id for cell in sweep.cells]
    assert lines[::2] == [
        f"[1/3] {ids[0]}  ok  rank=4 seed=0",
        f"[2/3] {ids[1]}  failed  rank=13 seed=0",
        f"[3/3] {ids[2]}  to run  rank=8 seed=0",
    ]
    assert lines[5] == (
        "    python -m lori_pl fit --config=base.yaml --seed_everything=0 --model.rank=8 "
        f"--trainer.default_root_dir=out/cells/{ids[2]}"
    )
    assert bench.ran == []
    assert Path("out/results.csv").read_bytes() == before


def test_only_runs_the_one_cell(bench):
    bench.run(only=3)
    assert [(row["seed"], row["model.rank"]) for row in bench.rows()] == [("1", "4")]
    for number in (0, 5):
        with pytest.raises(LoriError, match=f"there is no cell {number}; --only takes 1 to 4"):
            bench.run(only=number)


def test_two_sweeps_never_work_in_one_folder(bench):
    def second(folder):
        with pytest.raises(LoriError, match="another sweep, or a run that a killed one left behind"):
            bench.sweep(SWEEP).run()

    bench.before = second
    assert bench.run(only=1) == 0
    assert len(bench.ran) == 1


def test_outcomes_of_the_runs_are_collected(bench):
    ids = {"ids": ["a", "b"]}

    def leave(folder):
        write_outcomes(folder / "correct.npz", ids["ids"], [True, False], "lori", 0)

    bench.before = leave
    bench.run(SWEEP, "grid.model.rank=[4]")
    outcomes = read_outcomes("out/correct.npz")
    assert outcomes.ids == ["a", "b"]
    assert {key: bits.tolist() for key, bits in outcomes.bits.items()} == {
        ("lori[rank=4]", 0): [True, False],
        ("lori[rank=4]", 1): [True, False],
    }
    ids["ids"] = ["c", "d"]
    assert bench.run(SWEEP, "grid.model.rank=[5]", "seeds=[0]") == 0
    assert "the outcomes stay in out/cells/" in bench.printed
    assert len(read_outcomes("out/correct.npz").bits) == 2
    assert bench.rows()[-1]["status"] == "ok"
    bench.before = lambda folder: np.savez(folder / "correct.npz", ids=np.array([0]))
    assert bench.run(SWEEP, "grid.model.rank=[6]", "seeds=[0]") == 1
    assert "0 outcomes, but a cell is one run of one method" in bench.rows()[-1]["reason"]
    assert bench.rows()[-1]["accuracy"] == ""


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
    entry = {"accuracy": 1, "loss": 2, "other": 3, "zero": 0}
    whole = {"methods": {"a": entry}, "loss": 4, "rate": 5, "zero": 6, "sets": {"svamp": {"accuracy": 0.5}}}
    (tmp_path / "summary.json").write_text(json.dumps(whole))
    names = ["loss", "rate", "zero", "none", "sets.svamp.accuracy", "rate.none"]
    assert read_summary(tmp_path / "summary.json", names) == (
        "a",
        {"accuracy": 1, "loss": 2, "rate": 5, "zero": 0, "sets.svamp.accuracy": 0.5},
    )


# --- the sub-command --------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_runs(bench, monkeypatch):
    """The sub-command with fake runs; returns the bench."""
    monkeypatch.setattr(runner, "run_child", lambda line, log, keep_open: bench.run_fake(line, log))
    Path("sweep.yaml").write_text(SWEEP)
    return bench


def test_the_sub_command_runs_overrides_and_tells_failure(fake_runs, capsys):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert command.main(["sweep.yaml", "--dry_run", "--only", "2"]) == 0
    assert "[2/4]" in capsys.readouterr().out
    assert fake_runs.ran == []
    assert command.main(["sweep.yaml", "--override", "seeds=[5]", "grid.model.rank=[4,13]"]) == 1
    assert [(row["seed"], row["status"]) for row in fake_runs.rows()] == [("5", "ok"), ("5", "failed")]
    overrides = ["--override", "seeds=[5]", "--override", "grid.model.rank=[4,13]"]
    assert command.main(["sweep.yaml", *overrides]) == 0
    assert command.main(["sweep.yaml", *overrides, "--retry_failed"]) == 1
    assert len(fake_runs.ran) == 3
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_sub_command_ends_on_a_signal_without_a_row(fake_runs, number):
    fake_runs.before = lambda folder: (os.kill(os.getpid(), number), time.sleep(5))
    assert command.main(["sweep.yaml"]) == 130
    assert not Path("out/results.csv").exists()


def test_the_sub_command_leaves_a_signal_ignored_that_was(fake_runs):
    """As under nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fake_runs.before = lambda folder: os.kill(os.getpid(), signal.SIGHUP)
        assert command.main(["sweep.yaml"]) == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_the_sub_command_refuses_a_bad_file(fake_runs):
    with pytest.raises(LoriError, match=r"none\.yaml: cannot read this sweep file"):
        command.main(["none.yaml"])


# A real parent and a real child, which waits to be killed.
PARENT = """
import sys
from lori_pl.sweep import cells, command
def fake(self, folder):
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    return [sys.executable, "-S", "-c", code, str(folder / "started")]
cells.Cell.command = fake
sys.exit(command.main(["sweep.yaml"]))
"""


def _start_parent():
    environment = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not (found := [path for path in Path("out").glob("cells/*/started") if path.read_text()]):
        assert time.monotonic() < end, "the run did not start"
        assert parent.poll() is None, "the sweep ended"
        time.sleep(0.02)
    return parent, int(found[0].read_text())


def test_a_terminated_sweep_takes_its_run_along(bench):
    Path("sweep.yaml").write_text(SWEEP)
    parent, child = _start_parent()
    parent.terminate()
    assert parent.wait(timeout=20) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not Path("out/results.csv").exists()
    assert bench.run() == 0
    assert len(bench.ran) == 4


def test_the_orphan_of_a_killed_sweep_keeps_the_folder_until_it_ends(bench):
    Path("sweep.yaml").write_text(SWEEP)
    parent, orphan = _start_parent()
    try:
        parent.kill()
        parent.wait()
        with pytest.raises(LoriError, match="a run that a killed one left behind, works here"):
            bench.run()
    finally:
        os.kill(orphan, signal.SIGKILL)
    end = time.monotonic() + 10
    while True:
        try:
            assert bench.run() == 0
            break
        except LoriError:
            assert time.monotonic() < end, "the lock outlives the run"
    assert [row["status"] for row in bench.rows()] == ["ok"] * 4
