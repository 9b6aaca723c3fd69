"""What a run has unless its config says otherwise: callbacks, logger and checkpoint files."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lori_pl.callbacks.alignment_monitor import AlignmentMonitor
from lori_pl.callbacks.best_checkpoint import BestCheckpoint
from lori_pl.callbacks.job_timer import JobTimer
from lori_pl.callbacks.last_validation import LastValidation
from lori_pl.callbacks.logged_step import LoggedStep
from lori_pl.callbacks.progress import ProgressFile
from lori_pl.callbacks.progress_bar import TrainingBar
from lori_pl.callbacks.regions import ProfiledRegions
from lori_pl.callbacks.run_config import RunConfig
from lori_pl.callbacks.same_start import SameStart
from lori_pl.callbacks.stop_signals import StopSignals
from lori_pl.callbacks.throughput import Throughput
from lori_pl.callbacks.training_cost import TrainingCost
from lori_pl.checkpoint_files import LAST, CheckpointFiles
from lori_pl.commands.parser_errors import trainer_errors
from lori_pl.run_files import CHECKPOINTS, CONFIG, LOGS
from lori_pl.sweep.child import CELL, PROGRESS


def logger_of(trainer: MutableMapping[str, Any], root: Path, trains: bool) -> Any:
    """The logger of a run: that of the config, or TensorBoard for a training and none for what is none.

    Args:
        trainer: What is under ``trainer``, its classes made.
        root: The run's folder.
        trains: Whether the run trains.
    """
    given: Logger | list[Logger] | bool | None = trainer.get("logger")
    if given not in (None, True):
        return given
    return TensorBoardLogger(root, name=LOGS, version="") if trains else False


def training_callbacks(
    trainer: MutableMapping[str, Any], root: Path, config: str, goes_on_from: str | None
) -> list[pl.Callback]:
    """The callbacks of a training.

    Args:
        trainer: What is under ``trainer``, its classes made; ``max_time`` is taken out where a callback keeps it.
        root: The run's folder.
        config: The text of the file that repeats the run.
        goes_on_from: The checkpoint that the run goes on from, if any.
    """
    given, found = _kinds(trainer), list[pl.Callback]()
    keeps = any(issubclass(kind, ModelCheckpoint) for kind in given)
    if not keeps and trainer.get("enable_checkpointing") is not False:
        folder = root / CHECKPOINTS
        best = BestCheckpoint(folder, "best", "val/accuracy", mode="max", enable_version_counter=False)
        # save_last alone would keep the newest best one only
        found += [best, ModelCheckpoint(folder, "last", enable_version_counter=False)]
    found += [SameStart(goes_on_from), RunConfig(root / CONFIG, config)]
    found += [LoggedStep(), Throughput(), TrainingCost(), AlignmentMonitor(), LastValidation()]
    found.append(StopSignals(root / CHECKPOINTS / LAST))
    if (duration := trainer.get("max_time")) and not any(issubclass(kind, Timer) for kind in given):
        with trainer_errors(trainer):
            found.append(JobTimer(duration, of_run=CELL in os.environ))
        trainer["max_time"] = None
    if trainer.get("logger") not in (False, []):
        found.append(LearningRateMonitor("step"))
    return found


def add_parts(trainer: MutableMapping[str, Any], callbacks: Sequence[pl.Callback]) -> None:
    """Adds callbacks to those of the config, a progress bar, and files for checkpoints, where it has none.

    Args:
        trainer: What is under ``trainer``, its classes made; changed in place.
        callbacks: What this run has besides.
    """
    given, added = _kinds(trainer), list(callbacks)
    if path := os.environ.get(PROGRESS):
        added.append(ProgressFile(Path(path)))
    if trainer.get("enable_progress_bar") is not False and not any(issubclass(kind, ProgressBar) for kind in given):
        added.append(TrainingBar())
    # the regions come first: what other callbacks do behind a step is no part of it
    first = [ProfiledRegions()] if trainer.get("profiler") is not None else []
    plugins = _as_list(trainer.get("plugins"))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(CheckpointFiles())
    trainer["callbacks"], trainer["plugins"] = [*first, *_as_list(trainer.get("callbacks")), *added], plugins


def _kinds(trainer: MutableMapping[str, Any]) -> list[type]:
    return [type(callback) for callback in _as_list(trainer.get("callbacks"))]


def _as_list(given: Any) -> list[Any]:
    """What a trainer's option holds: none, one or several."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
