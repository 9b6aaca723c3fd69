"""Faults of the machine in a run: one line that names the part and the remedy, and no checkpoint is lost."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from failing import fails
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from tiny_world import BACKBONE, BASE, checkpoint

import lori_pl.data.datamodule as datamodule
from lori_pl.alignment import AnchorAlignment
from lori_pl.callbacks.same_start import SameStart
from lori_pl.cli import main
from lori_pl.commands import processes
from lori_pl.commands.failures import explanation
from lori_pl.commands.lightning import LoriCLI
from lori_pl.commands.processes import FIRST, end_after, ending_together
from lori_pl.data.loading import collate_pairs
from lori_pl.files import lock_folder
from lori_pl.methods import LoRi
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.models.teacher import FrozenTeacher
from lori_pl.models.thought import RecurrentThought

MEMORY = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB"

pytestmark = pytest.mark.faults
FLAGS = ["--trainer.val_check_interval", "1", "--data.eval_batch_size", "8"]


def no_memory(monkeypatch, owner, name: str, call: int) -> None:
    """Has a call of a function, counted from 1, ask for more memory than there is."""
    original = getattr(owner, name)
    calls = []

    def asking(*arguments, **keywords):
        calls.append(None)
        if len(calls) == call:
            raise torch.OutOfMemoryError(MEMORY)
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, asking)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "x"}, ["1 were started", "SLURM", "--ntasks-per-node=2", "srun"]),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"}, ["4 were started", "TorchElastic", "set trainer.devices"]),
    ],
)
def test_another_number_of_processes_than_of_devices_is_refused(world, capsys, monkeypatch, variables, words):
    """One task that asks for two devices would train on one, and say nothing."""
    places = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "1", "RANK": "0"}
    for name, value in {**places, "LOCAL_RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    flags = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    fails(
        world,
        capsys,
        "trainer.devices 2 on trainer.num_nodes 1 are 2 processes",
        *words,
        flags=flags,
        backbone=BACKBONE,
    )


@pytest.mark.parametrize(
    ("owner", "name", "call", "part", "remedy"),
    [
        (FrozenTeacher, "forward", 8, "teacher", "model.cache"),
        pytest.param(AnchorAlignment, "forward", 2, "alignment", "model.layers", marks=pytest.mark.slow),
        pytest.param(RecurrentThought, "extend", 1, "latents", "data.batch_size", marks=pytest.mark.slow),
        (LatentReasoner, "generate", 1, "evaluation", "data.eval_batch_size"),
        pytest.param(torch.optim.AdamW, "_init_group", 5, "optimiser", "model.backbone.lora", marks=pytest.mark.slow),
        pytest.param(torch.Tensor, "backward", 2, "backward", "gradient_checkpointing", marks=pytest.mark.slow),
        pytest.param(LoRi, "load_teacher", 1, "loading the models", "model.backbone.lora", marks=pytest.mark.slow),
    ],
)
def test_out_of_memory_names_the_part(world, capsys, lori_args, monkeypatch, owner, name, call, part, remedy):
    no_memory(monkeypatch, owner, name, call)
    words = [f"out of memory in {part} \\(asked for 2.50 GiB\\)", remedy]
    goes_on = [] if call == 1 or part == "teacher" else ["go on with --ckpt_path last"]
    fails(world, capsys, *words, *goes_on, method="LoRi", flags=FLAGS, **lori_args)
    assert (world.folder / "run" / "checkpoints").exists() == bool(goes_on)


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)",
        "not enough memory: you tried to allocate 12 bytes.",
    ],
)
def test_a_processors_memory_is_memory_too(text):
    assert "out of memory in the step" in explanation(RuntimeError(text))


def test_an_error_of_another_kind_keeps_its_traceback():
    assert explanation(RuntimeError("shapes do not match")) == ""
    assert explanation(OSError("no number")) == ""


def test_a_data_worker_that_lost_mapped_memory():
    text = "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's workers are"
    line = explanation(RuntimeError(text))
    assert line.startswith("a data worker (pid 4711) lost memory that it had mapped: a file of model.cache")


def test_a_killed_data_worker(world, capsys, monkeypatch):
    def collating(split):
        collate = collate_pairs(split)
        calls = []

        def killed(rows):
            calls.append(None)
            if split.name == "train" and len(calls) == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return collate(rows)

        return killed

    monkeypatch.setattr("lori_pl.data.loading.collate_pairs", collating)
    monkeypatch.setattr(datamodule, "collate_pairs", collating)
    flags = [*FLAGS, "--data.num_workers", "1", "--trainer.max_steps", "8"]
    fails(world, capsys, r"a data worker \(pid \d+\) was killed", "data.num_workers", flags=flags, backbone=BACKBONE)
    assert checkpoint(world.folder / "run")["global_step"] >= 1


def test_two_trainings_in_one_folder(world, capsys):
    with lock_folder(world.folder / "run", "test"):
        fails(world, capsys, "another training works here", backbone=BACKBONE)
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0


def test_a_training_that_came_between_is_told(world, capsys, monkeypatch):
    """It wrote its checkpoint, and let go of the folder, after this one had found none there."""
    original = LoriCLI.instantiate_trainer

    def slow(self, **keywords):
        (world.folder / "run" / "checkpoints").mkdir(parents=True)
        (world.folder / "run" / "checkpoints" / "last.ckpt").write_bytes(b"theirs")
        return original(self, **keywords)

    monkeypatch.setattr(LoriCLI, "instantiate_trainer", slow)
    fails(world, capsys, "another training wrote checkpoints here", flags=["--ckpt_path=auto"], backbone=BACKBONE)
    assert (world.folder / "run" / "checkpoints" / "last.ckpt").read_bytes() == b"theirs"


def test_what_a_killed_run_left_half_written_goes(world):
    half = world.folder / "run" / "checkpoints" / ".last.ckpt.x1y2"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    (world.folder / "run" / ".student.x1" / "new").mkdir(parents=True)
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    assert not half.exists()
    assert not (world.folder / "run" / ".student.x1").exists()


def test_a_damaged_checkpoint_is_passed_over(world, caplog):
    flags = ["--trainer.val_check_interval", "2", "--test_after_fit", "false"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    folder = world.folder / "run" / "checkpoints"
    (folder / "last.ckpt").replace(folder / "best.ckpt")
    (folder / "last.ckpt").write_bytes((folder / "best.ckpt").read_bytes()[:-5000])
    assert world.fit("ExplicitCoT", "run", *flags, "--ckpt_path=last", "--trainer.max_steps=6", backbone=BACKBONE) == 0
    assert "last.ckpt is damaged" in caplog.text
    assert "passed over for best.ckpt of step 4" in caplog.text
    assert checkpoint(world.folder / "run")["global_step"] == 6


def test_the_disk_is_full(world, capsys, monkeypatch):
    original = torch.save
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    fails(world, capsys, r"last.ckpt|best.ckpt", "No space left", "--ckpt_path last", backbone=BACKBONE)
    monkeypatch.setattr(torch, "save", original)
    assert not list((world.folder / "run" / "checkpoints").glob("*"))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_dies_and_the_others_end_within_a_minute_with_the_reason(world, victim, strategy):
    script = world.folder / "dies.py"  # the launcher starts the others with the same file
    script.write_text(
        "import os, signal, sys, time\n"
        "from lori_pl.cli import main\n"
        "from lori_pl.methods import ExplicitCoT\n"
        "original = ExplicitCoT.training_step\n"
        "def dies(self, batch, index):\n"
        f"    if self.trainer.local_rank == {victim} and self.trainer.global_step == 4:\n"
        f"        open({str(world.folder / 'told')!r}, 'w').write(str(time.time()))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(self, batch, index)\n"
        "ExplicitCoT.training_step = dies\n"
        "sys.exit(main())\n"
    )
    run = ["fit", "--config", world.config("base", BASE), "--config", world.method("ExplicitCoT", backbone=BACKBONE)]
    run += ["--trainer.max_steps=100000", "--trainer.val_check_interval=2", "--data.batch_size=4"]
    run += [f"--trainer.strategy={strategy}", "--trainer.devices=2"]
    run += [f"--trainer.default_root_dir={world.folder / 'two'}"]
    told = world.folder / "told"
    with (world.folder / "said").open("w+") as said:
        process = subprocess.Popen([sys.executable, str(script), *run], stdout=said, stderr=said)
        assert process.wait(timeout=300) != 0
        while _alive(str(script)) and time.time() - float(told.read_text()) < 60:
            time.sleep(0.2)
        assert not _alive(str(script))
        assert time.time() - float(told.read_text()) < 60
        said.seek(0)
        text = said.read()
    reasons = ["another process of this run ended", "the first process of this run has ended"]
    if victim:  # what the launcher says
        reasons.append("terminated with code -9")
    assert any(reason in text for reason in reasons), text
    assert "Traceback" not in text, text
    assert checkpoint(world.folder / "two")["global_step"] == 4


def test_processes_compare_the_checkpoint_that_they_take_up(world, monkeypatch):
    flags = ["--trainer.max_steps=2", "--test_after_fit=false"]
    seen = []
    monkeypatch.setattr(SameStart, "setup", lambda self, *_, **__: seen.append(self.path))
    assert world.fit("ExplicitCoT", "run", *flags, "--ckpt_path=auto", backbone=BACKBONE) == 0
    assert world.fit("ExplicitCoT", "run", *flags, "--ckpt_path=last", backbone=BACKBONE) == 0
    assert seen == [None, str(world.folder / "run" / "checkpoints" / "last.ckpt")]


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_that_take_up_different_checkpoints_are_told(world):
    """The second finds another, as where a file system lags behind."""
    run = ["fit", "--config", world.config("base", BASE), "--config", world.method("ExplicitCoT", backbone=BACKBONE)]
    run += ["--trainer.max_steps=3", "--trainer.val_check_interval=1", "--data.batch_size=4"]
    run += ["--test_after_fit=false", f"--trainer.default_root_dir={world.folder / 'two'}"]
    assert main(run) == 0
    folder = world.folder / "two" / "checkpoints"
    shutil.copy(folder / "best.ckpt", folder / "other.ckpt")
    script = world.folder / "lags.py"
    script.write_text(
        "import os, sys\n"
        "from lori_pl.cli import main\n"
        "if os.environ.get('LOCAL_RANK') == '1':\n"
        f"    sys.argv[-1] = '--ckpt_path={folder / 'other.ckpt'}'\n"
        "sys.exit(main())\n"
    )
    two = [
        "--trainer.strategy=ddp",
        "--trainer.devices=2",
        "--data.batch_size=2",
        f"--ckpt_path={folder / 'last.ckpt'}",
    ]
    done = subprocess.run([sys.executable, str(script), *run, *two], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "process 0 would go on from" in done.stderr
    assert "other.ckpt" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_those_that_the_first_process_started_watch_it(monkeypatch):
    """Others may well live on when who started them is gone, such as a shell."""
    watched = threading.Event()
    monkeypatch.setattr(processes, "end_after", lambda first: watched.set() if first == 77 else None)
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), 2, 1)
    for has in (None, launcher):
        with ending_together(SimpleNamespace(strategy=SimpleNamespace(launcher=has))):
            assert os.environ.get(FIRST) == (None if has is None else str(os.getpid()))
        assert FIRST not in os.environ
    assert not watched.is_set()
    monkeypatch.setenv(FIRST, "77")
    with ending_together(SimpleNamespace(strategy=SimpleNamespace(launcher=None))):
        assert watched.wait(10)
    assert os.environ[FIRST] == "77"


def test_a_process_that_waits_ends_after_its_parent(tmp_path):
    """Also in a call that lets no handler of Python run."""
    context = multiprocessing.get_context("fork")
    waiting = context.Queue()

    def first():
        if (child := os.fork()) == 0:
            watch = {"grace": 0.1, "interval": 0.05}
            threading.Thread(target=end_after, args=(os.getppid(),), kwargs=watch, daemon=True).start()
            signal.sigwait([signal.SIGUSR2])
        waiting.put(child)
        time.sleep(60)

    parent = context.Process(target=first)
    parent.start()
    child = waiting.get(timeout=30)
    time.sleep(0.5)
    assert _runs(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it waits on")


def _runs(process: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and "Z" not in found.stdout


def _alive(word: str) -> bool:
    return subprocess.run(["pgrep", "-f", word], capture_output=True, check=False).returncode == 0


def test_a_message_for_a_process_that_lost_another():
    gone = "another process of this run ended, its own message says why"
    assert explanation(torch.distributed.DistBackendError("Connection closed by peer [127.0.0.1]:1234")).startswith(
        gone
    )
    # as autograd passes it on from DDP's hooks
    text = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2345"
    assert explanation(RuntimeError(text)).startswith(gone)
    assert explanation(RuntimeError("NCCL error: ncclRemoteError: socket closed")).startswith(gone)
    # whatever raises it in a collective
    place = str(Path(torch.distributed.__file__).parent / "distributed_c10d.py")
    assert explanation(raised("RuntimeError('Connection reset by peer')", place)).startswith(gone)


@pytest.mark.parametrize(
    "error",
    [
        "ConnectionResetError(104, 'Connection reset by peer')",
        "BrokenPipeError(32, 'Broken pipe')",
        "TimeoutError('HTTPSConnectionPool(host=huggingface.co): Read timeout')",
        "RuntimeError('wandb: connection refused')",
        "RuntimeError('shapes do not match')",
    ],
)
def test_a_connection_of_another_kind_is_no_lost_process(monkeypatch, error):
    """A logger's, or the hub's, in a run of several processes."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert explanation(raised(error, "/somewhere/logger.py")) == ""


def raised(error: str, place: str) -> BaseException:
    """An error with the traceback that it has when a file raises it."""
    try:
        exec(compile(f"raise {error}", place, "exec"))
    except (RuntimeError, OSError) as found:
        return found
    raise AssertionError
