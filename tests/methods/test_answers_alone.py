"""The methods that learn answers alone against their formula: No-CoT, Pause, and iCoT-SI in its last stage."""

from __future__ import annotations

import pytest
import torch
from plain import assert_same_gradients, batch_of, build, student
from torch.testing import assert_close

from lori_pl.methods import ICoTSI, NoCoT, Pause
from lori_pl.methods.stages import Stages

LAST_STAGE = {"stages": Stages(steps=3), "remove_all": 2}


@pytest.mark.parametrize(
    ("kind", "settings", "between"),
    [
        (NoCoT, {}, 0),
        (Pause, {"latents": 0}, 0),
        (Pause, {"latents": 1}, 1),
        (Pause, {"latents": 3}, 3),
        (ICoTSI, LAST_STAGE, 0),
    ],
    ids=["no_cot", "pause_0", "pause_1", "pause_3", "icot_si"],
)
def test_the_loss_and_its_gradients_are_those_of_the_formula(kind, settings, between):
    """Cross-entropy on answer and end, whose prompt is given: the mean over each problem's tokens, then problems."""
    method = build(kind, **settings)
    if kind is ICoTSI:
        method.enter(method.final_stage)
    batch = batch_of(method, [0, 1, 2, 3], pieces=method.reads_pieces, longer=True)
    total, parts = method.losses(batch)
    losses = []
    for row in range(4):
        behind, _, latents = student(method, batch, row)
        assert len(latents) == between
        losses.append(behind[len(method.student.encoder.suffix) - 1 :])
    expected = torch.stack([loss.mean() for loss in losses])
    assert_close(method.task_losses(batch), expected, atol=1e-5, rtol=1e-5)
    assert_close(total, expected.mean(), atol=1e-5, rtol=1e-5)
    assert parts == {"task": total}
    assert_same_gradients(method, total, expected.mean())
