"""Problems and tokens a second, and gradient norms."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from lori_pl.methods.base import Method, is_written
from lori_pl.sharding import gradient_norm


class Throughput(pl.Callback):
    """Logs the first process's problems and tokens a second, and the norm of each optimiser group's gradient.

    Tokens are the positions of the student's passes: what it reads and writes of question, words and answer, its
    latents as often as a pass computes them, and padding; those of a teacher or of SIM-CoT's decoder are not.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0
        self.problems = 0
        self._tokens = 0
        self._positions = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Method, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()
        self._positions = pl_module.student.positions

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Method, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock and logs."""
        elapsed = time.perf_counter() - self._started
        self.seconds += elapsed
        self.problems += len(batch.index)
        self._tokens += pl_module.student.positions - self._positions
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log("speed/problems_per_second", self.problems / self.seconds)
            pl_module.log("speed/tokens_per_second", self._tokens / self.seconds)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Logs gradient norms before clipping."""
        if not is_written(trainer):
            return
        for group in optimizer.param_groups:
            if (norm := gradient_norm(group["params"])) is not None:
                pl_module.log(f"gradient_norm/{group['name']}", norm)

    def state_dict(self) -> dict[str, Any]:
        """Keeps the training time over a resume."""
        return {"seconds": self.seconds, "problems": self.problems, "tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.seconds, self.problems, self._tokens = (state_dict[k] for k in ("seconds", "problems", "tokens"))
