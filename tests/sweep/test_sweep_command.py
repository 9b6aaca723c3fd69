"""The sub-command: its options, and what signals do to a sweep and its run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_bench import SWEEP

from lori_pl.errors import LoriError
from lori_pl.sweep import command, runner


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
