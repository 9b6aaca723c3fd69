"""How far the training is, for who looks at the terminal."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class TrainingBar(RichProgressBar):
    """Lightning's bar, which does not count towards a last epoch where only the steps have a limit."""

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs != -1:
            return super()._get_train_description(current_epoch)
        return f"{f'Epoch {current_epoch}':{len(self.validation_description)}}"
