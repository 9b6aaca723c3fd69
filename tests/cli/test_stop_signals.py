"""A run that is told to stop ends with a checkpoint, and goes on from it as if nothing had been."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
from failing import fails
from lightning.pytorch.callbacks import timer
from test_processes import start
from tiny_world import BACKBONE, BASE, assert_same, checkpoint
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from watching import logged

import lori_pl.commands.lightning as commands_lightning
from lori_pl.callbacks import stop_signals
from lori_pl.callbacks.stop_signals import StopSignals
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.errors import LoriError
from lori_pl.methods import ExplicitCoT
from lori_pl.sweep.child import CELL

FLAGS = ["--model.schedule.decay", "none", "--model.schedule.warmup", "0", "--test_after_fit", "false"]

pytestmark = pytest.mark.faults
STEPS = ["--trainer.max_steps", "11"]


def tell(
    monkeypatch, hook: str, call: int, number: int = signal.SIGTERM, again: bool = False, kind=ExplicitCoT
) -> None:
    """Has the process get a signal in the ``call``-th call of a method's hook."""
    original = getattr(kind, hook)
    calls = []

    def told(self, *batch):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
            if again:
                os.kill(os.getpid(), number)
        return original(self, *batch)

    monkeypatch.setattr(kind, hook, told)


@pytest.fixture
def uninterrupted(world):
    """Weights of a run that nothing stopped, by its further flags."""

    def run(*flags: str) -> dict:
        assert world.fit("ExplicitCoT", "whole", *FLAGS, *STEPS, *flags, backbone=BACKBONE) == 0
        return checkpoint(world.folder / "whole")

    return run


@pytest.mark.parametrize(
    ("hook", "call", "step"),
    [
        ("training_step", 4, 4),
        pytest.param("training_step", 6, 6, marks=pytest.mark.slow),  # a validation is due: it is not begun
        pytest.param("training_step", 8, 9, marks=pytest.mark.slow),  # the last batch of the epoch: in the next one
        pytest.param("training_step", 11, 11, marks=pytest.mark.slow),  # the last of all
        pytest.param("validation_step", 1, 3, marks=pytest.mark.slow),
        pytest.param("validation_step", 4, 6, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_equals_an_uninterrupted_one(world, uninterrupted, monkeypatch, caplog, hook, call, step):
    flags = ["--trainer.val_check_interval", "3", "--data.eval_batch_size", "8"]
    whole = uninterrupted(*flags)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        tell(patch, hook, call)
        assert world.fit("ExplicitCoT", "parts", *FLAGS, *STEPS, *flags, backbone=BACKBONE) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"stopped by SIGTERM after step {step}; go on with --ckpt_path last" in caplog.text
    assert checkpoint(world.folder / "parts")["global_step"] == step
    assert not (world.folder / "parts" / "student").exists()
    validations = []
    original = ExplicitCoT.on_validation_epoch_end

    def counted(self):
        validations.append(self.trainer.global_step)
        return original(self)

    monkeypatch.setattr(ExplicitCoT, "on_validation_epoch_end", counted)
    assert world.fit("ExplicitCoT", "parts", *FLAGS, *STEPS, *flags, "--ckpt_path", "last", backbone=BACKBONE) == 0
    parts = checkpoint(world.folder / "parts")
    assert parts["global_step"] == 11
    assert_same(whole["state_dict"], parts["state_dict"])
    one, two = (logged(world.folder / name) for name in ("whole", "parts"))
    assert {step for step, _ in one} == set(range(11))
    assert two == one
    # every validation was done: that which the signal broke off once more, and none twice
    assert validations == [done for done in (3, 6, 9, 11) if done >= step]
    assert (world.folder / "parts" / "student").is_dir()
    best = [checkpoint(world.folder / name, "best.ckpt") for name in ("whole", "parts")]
    assert best[0]["global_step"] == best[1]["global_step"]
    assert_same(*(saved["state_dict"] for saved in best))


@pytest.mark.parametrize(
    ("kind", "hook"),
    [
        (ExplicitCoT, "configure_model"),
        (ExplicitCoT, "on_fit_start"),
        (PairedDataModule, "train_dataloader"),  # behind Lightning's handlers, before the first step
    ],
)
def test_a_signal_before_the_first_step_ends_the_run_at_once(world, monkeypatch, caplog, kind, hook):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        tell(patch, hook, 1, kind=kind)
        assert world.fit("ExplicitCoT", "run", *FLAGS, *STEPS, backbone=BACKBONE) == 143
    assert "stopped by SIGTERM outside the training's steps; there is no checkpoint yet" in caplog.text
    assert "Received SIGTERM" not in caplog.text  # as Lightning says, which would speak to the others then
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (world.folder / "run" / "checkpoints").exists()


def test_a_signal_in_the_export_leaves_the_training(world, monkeypatch, caplog):
    flags = [*FLAGS, "--trainer.max_steps", "2", "--test_after_fit", "true"]

    def told(student, part, seed):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(commands_lightning, "save_reasoner", told)
        assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 143
    assert "outside the training's steps; go on with --ckpt_path last" in caplog.text
    assert not list((world.folder / "run").glob("*student*"))
    assert world.fit("ExplicitCoT", "run", *flags, "--ckpt_path", "last", backbone=BACKBONE) == 0
    assert (world.folder / "run" / "summary.json").is_file()


def test_a_summary_never_outlives_its_student(world, monkeypatch, capsys):
    """A run that goes on puts another student in the place of that which the summary tells of."""
    flags = [*FLAGS, "--trainer.max_steps", "2", "--test_after_fit", "true"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    assert (world.folder / "run" / "summary.json").is_file()

    def fails_then(place, write):
        raise LoriError("no more")

    monkeypatch.setattr(commands_lightning, "replace_folder", fails_then)
    more = ["--ckpt_path", "last", "--trainer.max_steps", "3"]
    assert world.fit("ExplicitCoT", "run", *flags, *more, backbone=BACKBONE) == 2
    assert not (world.folder / "run" / "summary.json").exists()


@pytest.mark.slow
def test_accumulated_gradients_are_not_lost(world, uninterrupted, monkeypatch):
    flags = ["--trainer.accumulate_grad_batches", "3", "--trainer.max_steps", "4", "--trainer.val_check_interval", "9"]
    whole = uninterrupted(*flags)
    with monkeypatch.context() as patch:
        tell(patch, "training_step", 7)  # the first batch of the third step
        assert world.fit("ExplicitCoT", "parts", *FLAGS, *STEPS, *flags, backbone=BACKBONE) == 143
    assert checkpoint(world.folder / "parts")["global_step"] == 3
    assert world.fit("ExplicitCoT", "parts", *FLAGS, *STEPS, *flags, "--ckpt_path", "last", backbone=BACKBONE) == 0
    assert_same(whole["state_dict"], checkpoint(world.folder / "parts")["state_dict"])


def test_a_validation_falls_between_two_steps(world, monkeypatch, capsys):
    flags = ["--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "4"]
    assert world.fit("ExplicitCoT", "run", *FLAGS, *flags, "--trainer.val_check_interval", "3", backbone=BACKBONE) == 2
    assert "val_check_interval is 3 batches, in the middle of a step of 2" in capsys.readouterr().err
    seen = []
    original = ExplicitCoT.on_validation_start

    def look(self):
        seen.append(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        return original(self)

    monkeypatch.setattr(ExplicitCoT, "on_validation_start", look)
    share = ["--trainer.val_check_interval", "0.4"]  # of 8 batches: 3
    assert world.fit("ExplicitCoT", "run", *FLAGS, *flags, *share, backbone=BACKBONE) == 0
    assert seen == [2, 4, 6, 8]


def test_the_test_behind_a_training_stops_at_once(world, monkeypatch, caplog):
    flags = [*FLAGS, "--test_after_fit", "true", "--trainer.max_steps", "2"]
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        tell(patch, "test_step", 1)
        assert world.fit("ExplicitCoT", "run", *flags, "--data.eval_batch_size", "8", backbone=BACKBONE) == 143
    assert "stopped by SIGTERM in the test; go on with --ckpt_path last" in caplog.text
    assert not (world.folder / "run" / "summary.json").exists()
    assert world.fit("ExplicitCoT", "run", *flags, "--ckpt_path", "last", backbone=BACKBONE) == 0
    assert (world.folder / "run" / "summary.json").is_file()


def test_data_workers_leave_the_signal_to_the_training(world, monkeypatch):
    """A signal to the whole group of processes reaches them too."""
    original = ExplicitCoT.training_step
    before = {child.pid for child in multiprocessing.active_children()}

    def workers():
        return [child for child in multiprocessing.active_children() if child.pid not in before]

    def told(self, *batch):
        if self.trainer.global_step == 3:
            for child in workers():
                os.kill(child.pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *batch)

    monkeypatch.setattr(ExplicitCoT, "training_step", told)
    flags = [*FLAGS, *STEPS, "--data.num_workers", "1"]
    try:
        assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 143
        assert checkpoint(world.folder / "run")["global_step"] == 4
    finally:
        # this process goes on, unlike a run's, and would wait for workers, which ignore SIGTERM, at its end
        for iterator in [each for each in gc.get_objects() if isinstance(each, _MultiProcessingDataLoaderIter)]:
            iterator._shutdown_workers()
    assert not workers()


def test_going_on_with_batches_of_other_sizes_is_refused(world, capsys):
    flags = [*FLAGS, "--trainer.max_steps", "3", "--trainer.val_check_interval", "3"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    capsys.readouterr()
    more = ["--ckpt_path", "last", "--trainer.max_steps", "6", "--data.batch_size", "4"]
    for change, words in (([], "problems a batch 8, and this run has 4"),):
        assert world.fit("ExplicitCoT", "run", *flags, *more, *change, backbone=BACKBONE) == 2
        assert words in capsys.readouterr().err


def test_an_interrupt_stops_with_a_checkpoint_and_a_second_one_at_once(world, monkeypatch):
    with monkeypatch.context() as patch:
        tell(patch, "training_step", 2, signal.SIGINT)
        assert world.fit("ExplicitCoT", "once", *FLAGS, *STEPS, backbone=BACKBONE) == 130
    assert checkpoint(world.folder / "once")["global_step"] == 2
    tell(monkeypatch, "training_step", 1, signal.SIGINT, again=True)
    with pytest.raises(SystemExit):
        world.fit("ExplicitCoT", "twice", *FLAGS, *STEPS, backbone=BACKBONE)
    assert not (world.folder / "twice" / "checkpoints").exists()


def test_nothing_is_saved_before_the_first_step(world, monkeypatch, caplog):
    tell(monkeypatch, "validation_step", 1)
    with caplog.at_level("INFO"):
        flags = [*FLAGS, "--trainer.num_sanity_val_steps", "2"]
        assert world.fit("ExplicitCoT", "run", *flags, *STEPS, backbone=BACKBONE) == 143
    assert "stopped by SIGTERM before the first step, without a checkpoint" in caplog.text
    assert not (world.folder / "run" / "checkpoints").exists()


def test_auto_begins_and_goes_on(world, monkeypatch, capsys):
    """One command for a job that is put back into the queue, however often."""
    flags = [*FLAGS, *STEPS, "--ckpt_path", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(ExplicitCoT, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE)
    assert (world.folder / "run" / "config.yaml").is_file()  # it has begun, and has no checkpoint
    with monkeypatch.context() as patch:
        tell(patch, "training_step", 4)
        assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 143
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    assert checkpoint(world.folder / "run")["global_step"] == 11
    (world.folder / "run" / "checkpoints").rename(world.folder / "away")
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 2
    assert "holds another run (student)" in capsys.readouterr().err


def test_max_time_ends_in_a_checkpoint(world):
    flags = ["--trainer.max_steps=-1", "--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:01"]
    assert world.fit("ExplicitCoT", "run", *FLAGS, *flags, "--trainer.val_check_interval=1000", backbone=BACKBONE) == 0
    first = checkpoint(world.folder / "run")["global_step"]
    assert first > 1
    # the next job has the same time again
    flags += ["--ckpt_path=auto", "--trainer.val_check_interval=1000"]
    assert world.fit("ExplicitCoT", "run", *FLAGS, *flags, backbone=BACKBONE) == 0
    assert checkpoint(world.folder / "run")["global_step"] > first + 1


@pytest.mark.slow
def test_max_time_waits_for_the_end_of_a_step(world, uninterrupted, monkeypatch):
    """Five seconds, of a clock by which a batch takes one: in the second step of three batches."""
    flags = ["--trainer.accumulate_grad_batches", "3", "--trainer.max_steps", "4", "--trainer.val_check_interval", "9"]
    whole = uninterrupted(*flags)
    clock = [0.0]
    original = ExplicitCoT.training_step

    def ticking(self, *batch):
        clock[0] += 1
        return original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        patch.setattr(ExplicitCoT, "training_step", ticking)
        timed = [*flags, "--trainer.max_time=00:00:00:05"]
        assert world.fit("ExplicitCoT", "parts", *FLAGS, *timed, backbone=BACKBONE) == 0
    assert checkpoint(world.folder / "parts")["global_step"] == 2
    assert world.fit("ExplicitCoT", "parts", *FLAGS, *flags, "--ckpt_path", "last", backbone=BACKBONE) == 0
    parts = checkpoint(world.folder / "parts")
    assert parts["global_step"] == 4
    assert_same(whole["state_dict"], parts["state_dict"])


def test_the_time_of_a_cell_is_that_of_all_its_attempts(world, monkeypatch):
    """Ten seconds, of a clock by which a step takes one; the first attempt is stopped after four."""
    clock = [0.0]
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    original = ExplicitCoT.training_step

    def ticking(self, *batch):
        clock[0] += 1
        return original(self, *batch)

    monkeypatch.setattr(ExplicitCoT, "training_step", ticking)
    monkeypatch.setenv(CELL, "1")
    flags = ["--trainer.max_steps=-1", "--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:10", "--ckpt_path=auto"]
    flags += ["--trainer.val_check_interval=1000", "--trainer.check_val_every_n_epoch=null", *FLAGS]
    with monkeypatch.context() as patch:
        tell(patch, "training_step", 4)
        assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 143
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    assert checkpoint(world.folder / "run")["global_step"] == 10
    # killed in its test: it is tested, and not trained any more
    assert world.fit("ExplicitCoT", "run", *flags, "--test_after_fit=true", backbone=BACKBONE) == 0
    assert checkpoint(world.folder / "run")["global_step"] == 10
    assert (world.folder / "run" / "summary.json").is_file()


def test_a_time_that_is_none_is_one_line(world, capsys):
    fails(world, capsys, "max_time|duration", flags=["--trainer.max_time=1:00:00"], backbone=BACKBONE)


def test_slurm_runs_the_job_once_more(world, monkeypatch):
    """Its own signal, in an allocation as Lightning finds it."""
    asked = []
    monkeypatch.setattr(
        stop_signals.subprocess,
        "run",
        lambda command, **_: asked.append(command) or SimpleNamespace(returncode=0, stderr=""),
    )
    slurm = {"NTASKS": "1", "JOB_ID": "77", "PROCID": "0", "LOCALID": "0", "JOB_NAME": "train", "NODELIST": "localhost"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    with monkeypatch.context() as patch:
        tell(patch, "training_step", 2, signal.SIGUSR1)
        assert world.fit("ExplicitCoT", "run", *FLAGS, *STEPS, backbone=BACKBONE) == 128 + signal.SIGUSR1
    assert checkpoint(world.folder / "run")["global_step"] == 2
    assert asked == [["scontrol", "requeue", "77"]]
    with monkeypatch.context() as patch:
        tell(patch, "on_fit_start", 1, signal.SIGUSR1)
        assert world.fit("ExplicitCoT", "early", *FLAGS, *STEPS, backbone=BACKBONE) == 128 + signal.SIGUSR1
    assert asked == 2 * [["scontrol", "requeue", "77"]]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "sharded", "fsdp1"])
def test_every_process_stops_behind_the_same_step(world, lori_args, strategy):
    """The signal reaches one of two; both end within seconds, and what goes on equals a run that nothing stopped."""
    flags = [
        *FLAGS,
        *STEPS,
        "--trainer.val_check_interval=100",
        f"--trainer.strategy={strategy}",
        "--trainer.devices=2",
    ]
    run = ["fit", "--config", world.config("base", BASE), "--config", world.method("LoRi", **lori_args), *flags]
    run += ["--data.batch_size=4"]
    script = world.folder / "told.py"  # the launcher starts the others with the same file
    script.write_text(CHILD_IS_TOLD)
    parts = [*run, f"--trainer.default_root_dir={world.folder / 'parts'}"]
    done = start(str(script), *parts)
    assert done.returncode == 143, done.stderr
    step = checkpoint(world.folder / "parts")["global_step"]
    assert 5 <= step <= 7
    assert f"stopped by SIGTERM after step {step}" in done.stderr
    told = float((world.folder / "told").read_text())
    for rank, status in enumerate([143, 0]):  # the launcher's own process ends well, so that nobody kills the first
        ended, left = (world.folder / f"ended{rank}").read_text().split()
        assert int(left) == status
        assert 0 < float(ended) - told < 20
    for arguments in ([*parts, "--ckpt_path=last"], [*run, f"--trainer.default_root_dir={world.folder / 'whole'}"]):
        done = start("-m", "lori_pl", *arguments)
        assert done.returncode == 0, done.stderr
    whole, gone_on = checkpoint(world.folder / "whole"), checkpoint(world.folder / "parts")
    assert whole["global_step"] == gone_on["global_step"] == 11
    assert_same(whole["state_dict"], gone_on["state_dict"])
    one, two = (saved["optimizer_states"][0]["state"] for saved in (whole, gone_on))
    for number, state in one.items():
        assert_same(state, two[number])


# run by both processes; only the second gets the signal
CHILD_IS_TOLD = """
import os, signal, sys, time
from pathlib import Path
from lori_pl.cli import main
from lori_pl.methods import LoRi
here = Path(__file__).parent
original = LoRi.training_step
def told(self, batch, index):
    if self.trainer.local_rank == 1 and self.trainer.global_step == 4:
        (here / "told").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, batch, index)
LoRi.training_step = told
status = main()
(here / f"ended{os.environ.get('LOCAL_RANK', 0)}").write_text(f"{time.time()} {status}")
sys.exit(status)
"""


def test_the_listener_is_no_part_of_a_test(world):
    listener = StopSignals(world.folder / "x.ckpt")
    listener.received = signal.SIGTERM
    trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"))
    listener.on_validation_start(trainer, SimpleNamespace())
    assert not (world.folder / "x.ckpt").exists()
