"""What happens at a loss, a gradient or weights that are no numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from lori_pl.alignment.distributed import is_distributed
from lori_pl.errors import LoriError
from lori_pl.sharding import most_anywhere, own_part

log = logging.getLogger(__name__)

RECORD = "non_finite.jsonl"
GRADIENT = "gradient"


class FiniteLoss(pl.Callback):
    """Stops at the first non-finite loss or gradient, or leaves its step out.

    The problems of the step are written to ``non_finite.jsonl`` in the run's folder (``rankN_non_finite.jsonl`` where
    there are several processes), one record a step: ``step``, ``parts`` (of the loss, or ``gradient``), ``rank`` and
    ``problems``, their ids.

    Stopping, nothing waits for the device: on an accelerator the first bad step of each part is noted there, and looked
    at when a checkpoint is due and every ``every`` steps; no checkpoint holds what came behind it. Leaving out, each
    step waits until its gradient is known; the optimiser then keeps its state, and the schedule goes on.

    Args:
        policy: ``raise`` stops the training, ``skip`` leaves out the optimiser's step, on all processes.
        limit: Most steps that a training may leave out.
        every: Steps between looks on an accelerator, with ``raise``.
    """

    def __init__(self, policy: Literal["raise", "skip"] = "raise", limit: int = 10, every: int = 50) -> None:
        if limit < 0 or every < 1:
            raise LoriError(f"non_finite.limit is {limit} and every is {every}: give 0 or more, and 1 or more")
        self.policy = policy
        self.limit = limit
        self.every = every
        self.skipped = 0
        self.first_bad: dict[str, Tensor] = {}
        self._problems: list[tuple[int, Tensor]] = []
        self._loss_is_bad: Tensor | None = None

    # ---- looking --------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the problems until their step is known to be good."""
        self._problems.append((trainer.global_step + 1, batch.index))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Looks at the loss of each batch, also of those whose gradients are accumulated."""
        if self.policy == "skip":
            bad = ~loss.detach().isfinite().all()
            self._loss_is_bad = bad if self._loss_is_bad is None else self._loss_is_bad | bad

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the gradient before it reaches the weights; that of float16 is its scaler's business."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            bad, self._loss_is_bad = self._loss_is_bad, None
            if bad is not None and self._anywhere(bad):
                # a loss may be infinite with gradients that the scaler takes
                if getattr(optimizer, "_step_supports_amp_scaling", False):  # it looks for itself, and needs some
                    for group in optimizer.param_groups:
                        for parameter in group["params"]:
                            if parameter.grad is not None:
                                parameter.grad.fill_(float("nan"))
                else:
                    optimizer.zero_grad(set_to_none=True)
                self._skip(trainer)
            return
        gradients = [
            own_part(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients and self.policy == "raise":
            return
        # a process that has only frozen parts of sharded weights has no gradient, and answers the others all the same
        finite = nn.utils.get_total_norm(gradients or [torch.zeros((), device=pl_module.device)]).isfinite()
        if self.policy == "raise":
            self._note(GRADIENT, finite, trainer.global_step + 1)
            if pl_module.device.type == "cpu" and not finite:
                # the loss may say more, once the step returns it; the weights are still good
                optimizer.zero_grad(set_to_none=True)
            return
        bad = ~finite.to(pl_module.device)
        if self._loss_is_bad is not None:
            bad = bad | self._loss_is_bad
        self._loss_is_bad = None
        if self._anywhere(bad):
            # an optimiser leaves alone what has no gradient: weights, moments and decay
            optimizer.zero_grad(set_to_none=True)
            self._skip(trainer)

    @staticmethod
    def _anywhere(bad: Tensor) -> bool:
        return bool(most_anywhere(int(bad), bad.device) if is_distributed() else bad)

    def _skip(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step + 1
        self.skipped += 1
        place = self._record(trainer, step, ["loss or gradient"])
        if self.skipped > self.limit:
            raise LoriError(
                f"step {step} is number {self.skipped} of those whose loss or gradient is not finite, and "
                f"non_finite.limit is {self.limit}; earlier checkpoints are kept, the problems stand in {place}: "
                "lower the learning rate, or clip gradients"
            )
        log.warning("step %d is left out: its loss or gradient is not finite (%s)", step, place)

    def _note(self, name: str, finite: Tensor, step: int) -> None:
        noted = self.first_bad.get(name)
        if noted is None:
            noted = torch.full(finite.shape, float("inf"), device=finite.device)
        self.first_bad[name] = torch.where(finite, noted, noted.clamp_max(step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes non-finite parts."""
        step = self._problems[-1][0] if self._problems else trainer.global_step
        is_whole = trainer.global_step >= step
        if self.policy == "skip":
            if is_whole:
                self._problems.clear()
            pl_module.log("train/skipped_steps", float(self.skipped))
            return
        for name, value in outputs.get("parts", {}).items():
            self._note(name, value.isfinite(), step)
        if pl_module.device.type == "cpu" or step % self.every == 0:
            self.check(trainer)
            if is_whole:
                self._problems.clear()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Keeps weights that came after a non-finite loss, or are not finite, from being saved.

        Raises:
            LoriError: Naming the part or the weight, and the step.
        """
        self.check(trainer)
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and not own_part(parameter).isfinite().all():
                raise LoriError(
                    f"the weight '{name}' is not finite after step {trainer.global_step}; the last checkpoint before "
                    "it is kept: lower the learning rate, or clip gradients"
                )

    # ---- stopping -------------------------------------------------------------------------------------------------

    def check(self, trainer: pl.Trainer) -> None:
        """Raises where a loss or a gradient was not finite.

        Raises:
            LoriError: Naming the part and the step, and where its problems are listed.
        """
        bad = {name: int(step) for name, step in self.first_bad.items() if step.isfinite()}
        if not bad:
            return
        step = min(bad.values())
        parts = [name for name, first in bad.items() if first == step]
        # the part says more than the sum, and the sum more than its gradient
        culprit = min(parts, key=lambda name: (name == GRADIENT, name == "loss"))
        what = GRADIENT if culprit == GRADIENT else f"loss '{culprit}'"
        place = self._record(trainer, step, parts)
        folders = {
            callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)
        }
        is_kept = any(any(Path(folder).glob("[!.]*.ckpt")) for folder in folders if folder is not None)
        kept = "the last checkpoint before it is kept" if is_kept else "no checkpoint was due before it"
        raise LoriError(
            f"the {what} is not finite at step {step}; {kept}, the step's problems stand in {place}: lower "
            "the learning rate or that part's weight, or clip gradients; --non_finite.policy skip leaves such steps out"
        )

    def _record(self, trainer: pl.Trainer, step: int, parts: list[str]) -> Path:
        rank = trainer.global_rank
        path = Path(trainer.default_root_dir) / (RECORD if trainer.world_size == 1 else f"rank{rank}_{RECORD}")
        problems = trainer.datamodule.splits["train"].problems
        ids = [problems[i].id for first, index in self._problems if first == step for i in index.tolist()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "parts": parts, "rank": rank, "problems": ids}) + "\n")
        return path

    def state_dict(self) -> dict[str, Any]:
        """Keeps the number of steps that were left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on counting."""
        self.skipped = int(state_dict["skipped"])
