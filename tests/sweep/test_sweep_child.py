import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lori_pl.sweep import child
from lori_pl.sweep.child import CELL, PROGRESS, failure_reason, progress_file, run_child


def _python(code):
    return [sys.executable, "-S", "-c", code]


def test_a_run_is_timed_and_its_output_kept(tmp_path):
    code = "import sys, time; print('out'); print('err', file=sys.stderr); time.sleep(0.2)"
    result = run_child(_python(code), tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text() == "out\nerr\n"
    assert result.exit_code == 0
    assert 0.2 <= result.seconds < 10


def test_a_run_is_told_where_to_say_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Path("log.txt")
    write = f"open(os.environ[{PROGRESS!r}], 'w').write('1/2' if {CELL!r} in os.environ else 'no cell')"
    run_child(_python(f"import os; os.chdir('/'); {write}"), log)
    assert progress_file(log).read_text() == "1/2"
    assert progress_file(log).parent == tmp_path


@pytest.mark.slow
def test_a_run_has_no_place_in_the_job_of_its_sweep(tmp_path, monkeypatch):
    """Under srun a cell would wait for the job's other tasks, log nothing, or take one of its two GPUs."""
    for name in (
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
    ):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    ask = (
        "from lightning.pytorch import Trainer; from lightning.pytorch.utilities import rank_zero_only as first;"
        "t = Trainer(accelerator='cpu', devices=2, strategy='ddp', logger=False, enable_checkpointing=False);"
        "print(t.world_size, first.rank, type(t.strategy.cluster_environment).__name__)"
    )
    result = run_child(
        [sys.executable, "-c", f"import os; print(os.environ['CUDA_VISIBLE_DEVICES']); {ask}"], tmp_path / "log"
    )
    said = (tmp_path / "log").read_text()
    assert result.exit_code == 0, said
    assert said.startswith("1\n")
    assert "2 0 LightningEnvironment\n" in said


MEMORY = """
import pathlib, sys
import child
for mib in (150, 1):
    code = f"a = b'x' * ({mib} << 20)"
    print(child.run_child([sys.executable, "-S", "-c", code], pathlib.Path(sys.argv[1])).peak_memory_mib)
"""


def test_the_peak_memory_is_this_runs_not_its_predecessors(tmp_path):
    """From a small process: a run never shows less than what the process that starts it holds."""
    environment = {**os.environ, "PYTHONPATH": str(Path(child.__file__).parent)}
    command = [sys.executable, "-S", "-c", MEMORY, str(tmp_path / "log.txt")]
    large, small = map(float, subprocess.run(command, env=environment, check=True, capture_output=True).stdout.split())
    assert 150 < large < 250
    assert small < 100


def test_exit_codes_and_signals_are_told(tmp_path):
    assert run_child(_python("raise SystemExit(3)"), tmp_path / "log").exit_code == 3
    killed = run_child(_python("import os; os.kill(os.getpid(), 9)"), tmp_path / "log")
    assert killed.exit_code == -9


def _wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


FAMILY = """
import os, signal, sys, time
if {stubborn}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
pid = os.fork()
if pid == 0: time.sleep(60)
with open({path!r} + ".part", "w") as file: file.write(f"{{os.getpid()}} {{pid}}")
os.rename({path!r} + ".part", {path!r})
time.sleep({seconds})
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_ends_the_run_and_its_children(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(child, "GRACE", 0.2)
    path = tmp_path / "pids"

    def interrupt():
        _wait_for(path.exists)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_child(_python(FAMILY.format(path=str(path), seconds=60, stubborn=stubborn)), tmp_path / "log")
    thread.join()
    pids = path.read_text().split()
    assert len(pids) == 2
    _wait_for(lambda: not any(_is_alive(pid) for pid in pids))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_what_a_run_leaves_running_is_ended(tmp_path):
    path = tmp_path / "pids"
    run_child(_python(FAMILY.format(path=str(path), seconds=0, stubborn=False)), tmp_path / "log")
    _wait_for(lambda: not any(_is_alive(pid) for pid in path.read_text().split()))


@pytest.mark.parametrize(
    ("exit_code", "log", "reason"),
    [
        (1, "step 1\nTraceback (most recent call last):\n  File x\nValueError: boom\n\n", "ValueError: boom"),
        (
            1,
            "KeyError: 1\nanother: line\ntorch.OutOfMemoryError: CUDA out of memory.\n",
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            2,
            "usage: lori_pl fit\nlori_pl: error: Unknown key:\n  - model.x\n",
            "lori_pl: error: Unknown key: - model.x",
        ),
        (2, "a.yaml, field 'k': wrong\n", "a.yaml, field 'k': wrong"),
        (1, "\x1b[31mRuntimeError: red\x1b[0m\rEpoch 0: 10%\r", "RuntimeError: red Epoch 0: 10%"),
        (1, "5 errors were corrected\nlast words", "last words"),
        (-9, "Epoch 0: 10%\rEpoch 0: 20%", "ended by signal 9 (Killed, perhaps out of memory): Epoch 0: 20%"),
        (-11, "", "ended by signal 11 (Segmentation fault)"),
        (7, "", "exit status 7 without a message"),
        (1, "ValueError: " + "x" * 9999, "ValueError: " + "x" * 488),
    ],
)
def test_the_reason_is_one_line_from_the_log(tmp_path, exit_code, log, reason):
    (tmp_path / "log.txt").write_text(log)
    assert failure_reason(exit_code, tmp_path / "log.txt") == reason


def test_the_reason_is_this_attempts_and_not_an_earlier_ones(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("ValueError: earlier\n")
    start = log.stat().st_size
    assert failure_reason(-9, log, start) == "ended by signal 9 (Killed, perhaps out of memory)"
    with log.open("a") as file:
        file.write("going on\n")
    assert failure_reason(1, log, start) == "going on"
    assert failure_reason(1, log) == "ValueError: earlier going on"


def test_the_reason_is_found_at_the_end_of_a_long_log(tmp_path):
    (tmp_path / "log.txt").write_text("ValueError: old\n" + "é" * 200_000 + "\nTypeError: new\n")
    assert failure_reason(1, tmp_path / "log.txt") == "TypeError: new"
    assert failure_reason(1, tmp_path / "none.txt") == "exit status 1 without a message"
