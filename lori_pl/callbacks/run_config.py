"""The config with which a run can be repeated."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from lori_pl.files import replace_file


class RunConfig(pl.Callback):
    """Writes the run's whole config when training starts: a run that failed before has claimed no folder.

    Args:
        path: Where.
        config: The config as YAML.
    """

    def __init__(self, path: Path, config: str) -> None:
        self.path = path
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        if trainer.is_global_zero:
            replace_file(self.path, lambda file: file.write(self.config.encode()))
