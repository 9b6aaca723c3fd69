"""The processes of a run are as many as its devices, and end together.

An error takes along those that this one started; none outlives the first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lori_pl.callbacks.stop_signals import Stopped
from lori_pl.errors import LoriError

GRACE = 10.0  # seconds for a process whose work is done as well
FIRST = "LORI_PL_FIRST"
"""Environment variable by which the processes that the first one starts know it."""


def check_world(trainer: pl.Trainer) -> None:
    """Makes sure that a launcher outside (SLURM, torchrun) started as many processes as the config has devices.

    Raises:
        LoriError: If it did not: the run would train on other devices, with another batch, than its config says.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(trainer.strategy, ParallelStrategy) or not environment.creates_processes_externally:
        return
    wanted, found = trainer.num_devices * trainer.num_nodes, environment.world_size()
    if found != wanted:
        remedy = "set trainer.devices and trainer.num_nodes to what was started, or start as many"
        if isinstance(environment, SLURMEnvironment):
            remedy = f"give --ntasks-per-node={trainer.num_devices} and start the run with srun"
        raise LoriError(
            f"trainer.devices {trainer.num_devices} on trainer.num_nodes {trainer.num_nodes} are {wanted} processes, "
            f"but {found} were started ({type(environment).__name__}): {remedy}"
        )


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Within the block an error or a lone stop ends the processes that this one started, which may wait for it in vain.

    A process that Lightning started ends, too, when the first one is gone without a word, as SIGKILL leaves it: under
    NCCL it would hold its device until the timeout.

    Args:
        trainer: The run's.
    """
    launcher = trainer.strategy.launcher
    first = os.environ.get(FIRST)
    if first is not None:
        threading.Thread(target=end_after, args=(int(first),), daemon=True, name="watches the first").start()
    elif isinstance(launcher, _SubprocessScriptLauncher):
        os.environ[FIRST] = str(os.getpid())
    try:
        yield
    except BaseException as error:
        alone = isinstance(error, Exception) or (isinstance(error, Stopped) and not error.together)
        if alone and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
        raise
    finally:
        if first is None:
            os.environ.pop(FIRST, None)


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
