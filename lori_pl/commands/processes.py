"""The processes of a run end together: an error takes along those that this one started; none outlives the first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lori_pl.callbacks.stop_signals import Stopped

GRACE = 10.0  # seconds for a process whose work is done as well


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Within the block an error or a lone stop ends the processes that this one started, which may wait for it in vain.

    A process that Lightning started ends, too, when the first one is gone without a word, as SIGKILL leaves it: under
    NCCL it would hold its device until the timeout.

    Args:
        trainer: The run's.
    """
    if isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment) and trainer.local_rank > 0:
        threading.Thread(target=end_after, args=(os.getppid(),), daemon=True, name="watches the first").start()
    try:
        yield
    except BaseException as error:
        launcher = trainer.strategy.launcher
        alone = isinstance(error, Exception) or (isinstance(error, Stopped) and not error.together)
        if alone and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
        raise


def end_after(parent: int, grace: float = GRACE, interval: float = 1.0) -> None:
    """Ends this process when its parent is gone, also out of a collective.

    Args:
        parent: The parent's process id.
        grace: Seconds that this process then has to end by itself.
        interval: Seconds between two looks.
    """
    while os.getppid() == parent:
        time.sleep(interval)
    time.sleep(grace)
    print("error: the first process of this run has ended, its own message says why", file=sys.stderr, flush=True)
    os._exit(1)
