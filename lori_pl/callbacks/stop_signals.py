"""Signals that tell a run to stop end it with a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from torch import Tensor

from lori_pl.alignment.distributed import is_distributed
from lori_pl.checkpoint_files import checkpoints_in
from lori_pl.methods import Method

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(BaseException):
    """A run that was told to stop, and has its checkpoint. No `Exception`, so that nothing on its way swallows it.

    Args:
        number: The signal.
        status: Exit status of this process.
        message: One line for the user.
        together: Whether all processes of the run stop here.
    """

    def __init__(self, number: int, status: int, message: str, together: bool = True) -> None:
        super().__init__(message)
        self.number = number
        self.status = status
        self.together = together


class Agreement:
    """The largest of the processes' values, one call late, so that nobody waits for it.

    Every process must make the same calls. Alone, a process gets its value at once.
    """

    def __init__(self) -> None:
        self._before: tuple[Tensor, Any] | None = None

    def __call__(self, value: int, device: torch.device) -> int:
        """Gives in this process's value, and gives what all agreed on at the call before."""
        if not is_distributed():
            return value
        agreed = 0
        if self._before is not None:
            held, done = self._before
            # on an accelerator the host waits for the step before this one at most
            done.synchronize() if held.is_pinned() else done.wait()
            agreed = int(held)
        # filled on the device: a copy from the host would wait
        shared = torch.full((), value, dtype=torch.int32, device=device)
        work: Any = dist.all_reduce(shared, op=dist.ReduceOp.MAX, async_op=True)
        if device.type == "cuda":
            work.wait()  # the stream's wait, not the host's
            held = torch.empty((), dtype=torch.int32, pin_memory=True)
            held.copy_(shared, non_blocking=True)
            work = torch.cuda.Event()
            work.record()
            shared = held
        self._before = shared, work
        return agreed


class StopSignals(pl.Callback):
    """Ends a training that gets SIGTERM, SIGINT or SIGUSR1 behind the step that it is in, with a checkpoint.

    It takes the signals over from Lightning (`listening`), which would save in the middle of a step and, on several
    processes, communicate from within the handler. All processes stop behind the same step, whichever of them got the
    signal. Before the first step, and behind the training, there is nothing to save, and a signal ends the run at once;
    so does a second SIGINT anywhere.

    The checkpoint never stands in the middle of gradients that are accumulated. One in the middle of a validation notes
    that it has to be done again, and the run that goes on begins with it.

    Under SLURM, where Lightning's environment requeues (``SLURMEnvironment.auto_requeue``), its signal
    (``requeue_signal``, by default SIGUSR1) also requeues the job.

    Args:
        path: The checkpoint's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received = 0
        self._agree = Agreement()
        self._in_loop = False
        self._validation_is_due = False

    # ---- hearing --------------------------------------------------------------------------------------------------

    @contextmanager
    def listening(self, trainer: pl.Trainer) -> Iterator[None]:
        """Hears the signals within the block, from before the models are loaded to behind the export.

        Args:
            trainer: The run's; its own handlers are not installed.
        """
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            yield
            return
        environment = trainer._accelerator_connector.cluster_environment
        requeues = environment.requeue_signal if isinstance(environment, SLURMEnvironment) else None
        vars(trainer._signal_connector)["register_signal_handlers"] = lambda: None
        numbers = {*SIGNALS, *([requeues] if requeues is not None else [])}
        before = {number: signal.signal(number, partial(self._heard, trainer)) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here a signal waits for the end of a batch."""
        self._in_loop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Does the validation in which the run had been stopped; from here a signal waits for the end of a step."""
        self._in_loop = True
        # its own look at signals would make every process wait for its device at every step
        vars(trainer.fit_loop.epoch_loop)["_broadcast_sigterm_tensor"] = lambda: None
        if isinstance(pl_module, Method):
            pl_module.take_up_flags()  # what the validation saves has them
        self._validate(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Does that validation where no training was left; what comes behind ends at once."""
        self._in_loop = True
        self._validate(trainer)
        self._leave(trainer)

    def _validate(self, trainer: pl.Trainer) -> None:
        if not self._validation_is_due:
            return
        self._validation_is_due = False
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False  # from its first batch
        trainer.validating = True
        loop.run()
        trainer.training = True

    def _leave(self, trainer: pl.Trainer) -> None:
        self._in_loop = False
        if self.received:
            self._end_alone(trainer)

    def _heard(self, trainer: pl.Trainer, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise KeyboardInterrupt
        if self.received:
            return
        self.received = number
        if not self._in_loop:
            self._end_alone(trainer)

    # ---- stopping -------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops here where the step is whole, and no validation or end of epoch follows at once."""
        number = self._agree(self.received, pl_module.device)
        loop = trainer.fit_loop.epoch_loop
        fetcher: Any = trainer.fit_loop._data_fetcher
        whole = not loop._should_accumulate()
        if number and whole and not loop.batch_progress.is_last_batch and not loop._should_check_val_fx(fetcher):
            # what the step logged: Lightning would write it behind this
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer, number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops before what comes behind the training."""
        self._agree(self.received, pl_module.device)
        if number := self._agree(self.received, pl_module.device):
            self._stop(trainer, number)
        self._leave(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In the test behind a training a signal waits for the end of a batch, too."""
        self._in_loop = True

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What comes behind ends at once."""
        self._leave(trainer)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops within that test; the training has its last checkpoint."""
        if number := self._agree(self.received, pl_module.device):
            self._end(trainer, number, f"in the test; go on with --ckpt_path last ({self.path})")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops before a validation."""
        self._stop_validation(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops within a validation."""
        self._stop_validation(trainer, pl_module)

    def _stop_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        number = self._agree(self.received, pl_module.device)
        if number and trainer.sanity_checking:
            self._end(trainer, number, "before the first step, without a checkpoint")
        if number:
            self._validation_is_due = True
            self._stop(trainer, number)

    def _stop(self, trainer: pl.Trainer, number: int) -> None:
        trainer.save_checkpoint(self.path)
        self._end(trainer, number, f"after step {trainer.global_step}; go on with --ckpt_path last ({self.path})")

    def _end(self, trainer: pl.Trainer, number: int, where: str) -> None:
        _requeue_after(trainer, number)
        # the first process that ends with an error may take the others with it
        trainer.strategy.barrier()
        raise _stopped(trainer, number, where)

    def _end_alone(self, trainer: pl.Trainer) -> None:
        """Ends this process at once, whatever the others do: the first takes along those that it started."""
        _requeue_after(trainer, self.received)
        saved = checkpoints_in(self.path.parent)
        where = f"go on with --ckpt_path last ({self.path})" if saved else "there is no checkpoint yet"
        raise _stopped(trainer, self.received, f"outside the training's steps; {where}", together=False)

    def state_dict(self) -> dict[str, Any]:
        """Notes whether a validation was broken off."""
        return {"validation_is_due": self._validation_is_due}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes that up."""
        self._validation_is_due = bool(state_dict["validation_is_due"])


def _requeue_after(trainer: pl.Trainer, number: int) -> None:
    environment = trainer._accelerator_connector.cluster_environment
    requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    if requeues and number == getattr(environment, "requeue_signal", None) and trainer.is_global_zero:
        requeue()


def _stopped(trainer: pl.Trainer, number: int, where: str, together: bool = True) -> Stopped:
    # to its launcher, which would kill all others, a process of its own ends well
    environment = trainer._accelerator_connector.cluster_environment
    launched = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
    name = signal.Signals(number).name
    return Stopped(number, 0 if launched else 128 + number, f"stopped by {name} {where}", together)


def requeue() -> None:
    """Asks SLURM to run this job once more, from its start."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        log.warning("job %s is not requeued: scontrol cannot be run (%s)", job, error)
        return
    if done.returncode:
        log.warning("job %s is not requeued: %s", job, done.stderr.strip() or f"scontrol ended with {done.returncode}")
    else:
        log.info("job %s is requeued", job)
