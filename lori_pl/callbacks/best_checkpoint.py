"""The best checkpoint of those that hold what the run is to make."""

from __future__ import annotations

from pathlib import Path
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best checkpoint so far also where the run's folder was moved or renamed.

        Lightning would forget its score, so that the next one would replace it, better or not.
        """
        folder, before = Path(str(self.dirpath)), str(state_dict.get("dirpath"))
        moved = folder / Path(str(state_dict.get("best_model_path"))).name
        if before != self.dirpath and moved.is_file():
            state_dict = {
                name: _moved(value, before, str(folder)) if name != "dirpath" else self.dirpath
                for name, value in state_dict.items()
            }
        super().load_state_dict(state_dict)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Considers the checkpoint, if the method is in its last stage or has none."""
        if getattr(pl_module, "is_final", True):
            super().on_validation_end(trainer, pl_module)


def _moved(value: Any, before: str, after: str) -> Any:
    """The same with the paths within a folder, also as keys, as they are in another."""
    if isinstance(value, str):
        return f"{after}{value.removeprefix(before)}" if value.startswith(before) else value
    if isinstance(value, dict):
        return {_moved(key, before, after): _moved(each, before, after) for key, each in value.items()}
    return value
