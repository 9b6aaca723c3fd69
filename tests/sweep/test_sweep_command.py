"""The sub-command: its options, and what signals do to a sweep and its run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sweep_bench import SWEEP

from lori_pl.errors import LoriError
from lori_pl.sweep import command, runner, workers


@pytest.fixture
def fake_runs(bench, monkeypatch):
    """The sub-command with fake runs; returns the bench."""
    monkeypatch.setattr(runner, "run_child", lambda line, log, keep_open: bench.run_fake(line, log))
    monkeypatch.setattr(command, "look_at", lambda *_: None)  # no run takes the fakes' options
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


def test_which_cells_are_looked_at_before_any_is_run(fake_runs, monkeypatch):
    looked = []
    monkeypatch.setattr(command, "look_at", lambda sweep, cells: looked.append([cell.number for cell in cells]))
    overrides = ["--override", "seeds=[5]", "grid.model.rank=[4,13]"]
    assert command.main(["sweep.yaml", *overrides, "--only", "1"]) == 0
    assert command.main(["sweep.yaml", *overrides]) == 1
    assert command.main(["sweep.yaml", *overrides]) == 0
    assert command.main(["sweep.yaml", *overrides, "--retry_failed"]) == 1
    assert command.main(["sweep.yaml", *overrides, "--dry_run"]) == 0
    monkeypatch.setenv(workers.WORKER, "1")
    assert command.main(["sweep.yaml", *overrides, "--retry_failed"]) == 1
    assert looked == [[1], [2], [], [2], [1, 2]]
    # whose rows are elsewhere
    monkeypatch.delenv(workers.WORKER)
    reuse = ["--override", "reuse=[out]", "output=more"]
    assert command.main(["sweep.yaml", *overrides, *reuse]) == 1
    assert looked[-1] == [2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_sub_command_ends_on_a_signal_without_a_row(fake_runs, number):
    fake_runs.before = lambda folder: (os.kill(os.getpid(), number), time.sleep(5))
    before = signal.getsignal(number)
    if before == signal.SIG_IGN:  # under nohup
        signal.signal(number, signal.SIG_DFL)
    try:
        assert command.main(["sweep.yaml"]) == 130
    finally:
        signal.signal(number, before)
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
command.look_at = lambda *_: None
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_orphan_of_a_killed_sweep_keeps_its_cell_until_it_ends(bench):
    Path("sweep.yaml").write_text(SWEEP)
    parent, orphan = _start_parent()
    try:
        parent.kill()
        parent.wait()
        assert bench.run() == 0
        assert "a run that a killed one left behind): cells 1" in bench.printed
        assert len(bench.rows()) == 3
    finally:
        os.kill(orphan, signal.SIGKILL)
    end = time.monotonic() + 10
    while len(bench.rows()) < 4:
        assert time.monotonic() < end, "the lock outlives the run"
        assert bench.run() == 0
    assert [row["status"] for row in bench.rows()] == ["ok"] * 4


# A sweep of real processes whose runs are fake and take a moment.
WORKING = """
import sys
from lori_pl.sweep import cells, command
def fake(self, folder):
    flags = {"model.rank": 4, **self.fixed, **self.point, "trainer.default_root_dir": folder}
    code = "import time; time.sleep(0.3); exec(open('fake_run.py').read())"
    return [sys.executable, "-S", "-c", code, *(f"--{key}={value}" for key, value in flags.items())]
cells.Cell.command = fake
command.look_at = lambda *_: None
sys.exit(command.main(sys.argv[1:]))
"""


def _work(*flags):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", WORKING, "sweep.yaml", *flags], env=environment, text=True)


SEARCH = """
configs: [base.yaml]
output: out
search: {trials: 8, metric: accuracy, on_test: true, space: {model.rank: {low: 20, high: 70}}}
seeds: [0, 1]
"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(SWEEP, id="grid"),
        pytest.param(SEARCH, id="search", marks=pytest.mark.slow),
    ],
)
def test_two_workers_at_once_share_the_cells(bench, text):
    Path("sweep.yaml").write_text(text)
    workers = [_work(), _work()]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    rows = bench.rows()
    assert len({row["cell"] for row in rows}) == len(rows)
    assert all(row["status"] == "ok" for row in rows)
    points = {row["model.rank"] for row in rows}
    if text == SEARCH:  # an integer may be drawn twice
        assert 3 <= len(points) <= 8
        assert len(rows) == 2 * len(points)
        (study,) = bench.sweep(SEARCH).studies()
        trials = study.trials()
        assert [trial.state for trial in trials] == ["complete"] * 8
        assert {str(trial.point["model.rank"]) for trial in trials} == points
        assert all(trial.value == trial.point["model.rank"] / 100 for trial in trials)
    else:
        assert len(rows) == 4


@pytest.mark.slow
def test_workers_of_one_command_show_their_lines_and_one_table(fake_runs, monkeypatch, capfd):
    real = subprocess.Popen

    def start(line, **settings):
        if line[1:4] != ["-m", "lori_pl", "sweep"]:
            return real(line, **settings)
        settings["env"]["PYTHONPATH"] = os.pathsep.join(sys.path)
        return real([line[0], "-c", WORKING, *line[4:]], **settings)

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    assert command.main(["sweep.yaml", "--workers", "2"]) == 0
    out = capfd.readouterr().out
    assert "worker 1: sweep sweep" in out
    assert "worker 2: sweep sweep" in out
    assert out.count("out/results.csv") == 1
    assert len(fake_runs.rows()) == 4
    assert command.main(["sweep.yaml", "--workers=2", "--override", "grid.model.rank=[13]"]) == 1
    with pytest.raises(LoriError, match="--workers is 0"):
        command.main(["sweep.yaml", "--workers", "0"])


def test_a_worker_starts_no_workers(fake_runs, monkeypatch):
    monkeypatch.setenv(workers.WORKER, "1")
    monkeypatch.setattr(command, "run_workers", lambda *_: pytest.fail("a worker started workers"))
    assert command.main(["sweep.yaml", "--workers", "3"]) == 0
    with pytest.raises(LoriError, match="unrecognized arguments: --work 3; see `python -m lori_pl sweep --help`"):
        command.main(["sweep.yaml", "--work", "3"])


def test_workers_need_locks(fake_runs, monkeypatch):
    monkeypatch.setattr(command, "has_locks", lambda _: False)
    with pytest.raises(LoriError, match="this file system has no locks"):
        command.main(["sweep.yaml", "--workers", "2"])
    Path("search.yaml").write_text(SEARCH)
    with pytest.raises(LoriError, match="out: this file system has no locks, by which a search tells"):
        command.main(["search.yaml"])


@pytest.mark.slow
def test_a_terminated_command_takes_its_workers_and_their_runs_along(bench):
    Path("sweep.yaml").write_text(SWEEP)
    parent = subprocess.Popen(
        [sys.executable, "-c", WORKERS], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    end = time.monotonic() + 60
    while len(found := [path for path in Path("out").glob("cells/*/started") if path.read_text()]) < 2:
        assert time.monotonic() < end, "the runs did not start"
        time.sleep(0.05)
    parent.terminate()
    assert parent.wait(timeout=60) == 130
    for path in found:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    assert not Path("out/results.csv").exists()


# A command whose two workers have runs that wait to be killed.
WORKERS = """
import subprocess, sys
from lori_pl.sweep import command, workers
real = subprocess.Popen
def start(line, **settings):
    return real([line[0], "-c", PARENT, *line[4:]], **settings)
workers.subprocess.Popen = start
command.look_at = lambda *_: None
sys.exit(command.main(["sweep.yaml", "--workers", "2"]))
""".replace("PARENT", repr(PARENT))


def test_a_worker_has_a_gpu_and_a_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = workers.environment(1, 4)
    assert (found["OMP_NUM_THREADS"], found["LORI_PL_WORKER"]) == ("2", "2")
    assert "CUDA_VISIBLE_DEVICES" not in found
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [workers.environment(i, 4)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = workers.environment(1, 2)
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("7", "3")
