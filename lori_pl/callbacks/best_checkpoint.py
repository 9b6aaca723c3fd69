"""The best checkpoint of those that hold what the run is to make."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that chooses among those of a staged method's last stage alone (``is_final``).

    Before it, steps in words help the student, so that its accuracy is another thing.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        # always behind a validation: by itself Lightning would wait for the end of the epoch
        super().__init__(*args, save_on_train_epoch_end=False, **keywords)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Considers the checkpoint, if the method is in its last stage or has none."""
        if getattr(pl_module, "is_final", True):
            super().on_validation_end(trainer, pl_module)
