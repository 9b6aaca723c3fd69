"""Methods that take the rationale away bit by bit: when each stage begins, and what a new one does."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.pairing import PairedBatch
from lori_pl.errors import LoriError
from lori_pl.methods.base import Method

log = logging.getLogger(__name__)


@dataclass
class Stages:
    """How long a stage lasts.

    Args:
        steps: Optimiser steps a stage; ``None`` where ``epochs`` says it.
        epochs: Epochs a stage, a part of one too; ``None`` where ``steps`` says it.
        reset_optimizer: Forget the optimiser's moments when a stage begins, as the published codes do.

    Raises:
        LoriError: If not exactly one length is given, or it is not positive.
    """

    steps: int | None = None
    epochs: float | None = None
    reset_optimizer: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        if (self.steps is None) == (self.epochs is None):
            raise LoriError(
                f"model.stages has steps {self.steps} and epochs {self.epochs}: give the length of a stage as one of "
                "the two, and set the other to null"
            )
        if self.steps is not None and self.steps < 1:
            raise LoriError(f"model.stages.steps is {self.steps}: give 1 or more")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise LoriError(f"model.stages.epochs is {self.epochs}: give more than 0, and an end")

    def length(self, steps_an_epoch: int) -> float:
        """Gives the steps of a stage."""
        return float(self.steps) if self.steps is not None else float(self.epochs or 0) * steps_an_epoch

    def stage(self, step: int, steps_an_epoch: int) -> int:
        """Gives the number of the stage, from 0, that optimiser step ``step``, from 0, belongs to."""
        # a hair more, else rounding puts a step on the boundary into the stage before
        return int((step + 1e-9 * (step + 1)) / self.length(steps_an_epoch))


class StagedMethod(Method):
    """Base of the methods whose task changes from stage to stage.

    The stage is a function of the optimiser step alone, so that a resumed run is in the stage that an uninterrupted one
    would be in. The best checkpoint is chosen among those of the last stage (``is_final``), where nothing of the
    rationale is left.
    """

    reads_pieces: ClassVar[bool] = True
    taken_away: ClassVar[tuple[str, str]]
    """The setting that says how much of a rationale is taken away, and what of it that counts."""
    stage_settings: ClassVar[tuple[str, ...]]
    """The settings that say what a stage's number means."""
    stages: Stages

    stage = 0

    @classmethod
    def requires_rationale(cls, config: Mapping[str, Any]) -> bool:
        """What is taken away has to be there."""
        return True

    @property
    def final_stage(self) -> int:
        """Number of the last stage.

        Raises:
            NotImplementedError: If the method does not say it.
        """
        raise NotImplementedError

    @property
    def is_final(self) -> bool:
        """Whether the last stage has been reached."""
        return self.stage >= self.final_stage

    def longest(self, split: PreparedSplit) -> int:
        """How much the longest rationale has of what is taken away.

        Raises:
            NotImplementedError: If the method does not say it.
        """
        raise NotImplementedError

    @property
    def checkpoint_settings(self) -> dict[str, Any]:
        """Also what a stage's number means."""
        return {**super().checkpoint_settings, **{name: getattr(self, name) for name in self.stage_settings}}

    def enter(self, stage: int) -> None:
        """Begins a stage, or goes on with it."""
        self.stage = min(stage, self.final_stage)

    @property
    def saved_stage(self) -> int | None:
        """The stage that a student from a folder was saved in; ``None`` where it does not tell."""
        return None

    def configure_model(self) -> None:
        """Builds the student as it is in this stage; one from a folder stays as it was saved."""
        super().configure_model()
        if self.folder is None:
            self.enter(self.stage)
        elif (stage := self.saved_stage) is not None:
            self.stage = stage
        else:
            self.has_validation_loss = False

    @property
    def positions_before_answer(self) -> int:
        """In a training those of the last stage where they are more: it is that student that is tested."""
        now, encoder = super().positions_before_answer, self.student.encoder
        return max(now, len(encoder.bot) + self.latents + len(encoder.suffix)) if self.trains else now

    @property
    def steps_an_epoch(self) -> int:
        """Optimiser steps an epoch."""
        batches = float(self.trainer.num_training_batches)
        return max(1, int(np.ceil(batches / self.trainer.accumulate_grad_batches)))

    def stage_at(self, step: int) -> int:
        """The stage that optimiser step ``step``, from 0, belongs to."""
        return min(self.stages.stage(step, self.steps_an_epoch), self.final_stage)

    def begins_anew(self, step: int) -> bool:
        """Whether the optimiser's moments are forgotten before optimiser step ``step``: where a stage begins."""
        return self.stages.reset_optimizer and step > 0 and self.stage_at(step) != self.stage_at(step - 1)

    def on_train_start(self) -> None:
        """Takes up the stage of a resumed run, and warns of one that ends too early and of stages for nothing."""
        super().on_train_start()
        setting, unit = self.taken_away
        if (most := getattr(self, setting)) > (longest := self.longest(self.data.splits["train"])):
            log.warning(
                "model.%s is %d, but the longest rationale has %d %s: %d stages take nothing away; set it to %d",
                *(setting, most, longest, unit, most - longest, longest),
            )
        self.enter(self.stage_at(self.trainer.global_step))
        total = self.trainer.estimated_stepping_batches
        if np.isfinite(total) and self.stage_at(int(total) - 1) < self.final_stage:
            first = int(np.ceil(self.stages.length(self.steps_an_epoch) * self.final_stage))
            log.warning(
                "training ends after %d steps, before the last stage, which begins at step %d: the student will still "
                "write steps in words; shorten model.stages or train longer",
                int(total),
                first,
            )

    def on_train_batch_start(self, batch: PairedBatch, batch_idx: int) -> None:
        """Begins the stage that this step belongs to."""
        super().on_train_batch_start(batch, batch_idx)
        step = self.trainer.global_step
        # once a step: not again for the gradients that are accumulated
        if self.begins_anew(step) and batch_idx % self.trainer.accumulate_grad_batches == 0:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.state = defaultdict(dict)
        self.enter(self.stage_at(step))
        # a number would be copied to the device, and waited for
        self.log("train/stage", torch.full((), float(self.stage), device=self.device), batch_size=len(batch.index))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also notes the stage."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lori_pl"]["stage"] = self.stage

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also takes up the stage, so that a test answers as the checkpoint's student does."""
        super().on_load_checkpoint(checkpoint)
        self.enter(int(checkpoint["lori_pl"].get("stage", 0)))
