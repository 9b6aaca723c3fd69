"""What a run has unless its config says otherwise."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lori_pl.callbacks.best_checkpoint import BestCheckpoint
from lori_pl.commands.run_parts import training_callbacks


@pytest.mark.parametrize("kind", [ModelCheckpoint, BestCheckpoint])
def test_checkpoints_that_a_config_asks_for_are_not_doubled(tmp_path, kind):
    def kept(trainer):
        return [each for each in training_callbacks(trainer, tmp_path, "", None) if isinstance(each, ModelCheckpoint)]

    assert len(kept({})) == 2
    assert kept({"callbacks": [kind(tmp_path, monitor="val/accuracy", mode="max")]}) == []
    assert kept({"enable_checkpointing": False}) == []
