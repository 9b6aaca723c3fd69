"""PCCoT against its formula, and its limits."""

from __future__ import annotations

import pytest
import torch
from plain import batch_of, build, joint_losses
from torch.testing import assert_close

from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.methods import CODI, PCCoT


@pytest.mark.parametrize(("latents", "passes"), [(1, 1), (4, 1), (4, 3), (2, 5)])
@pytest.mark.parametrize("peer_compat", [False, True])
def test_the_loss_and_its_gradients_are_those_of_the_formula(latents, passes, peer_compat):
    settings = {"peer_compat": peer_compat, "template": Template(drop_last_step=peer_compat)}
    method = build(PCCoT, latents=latents, passes=passes, gamma=1.5, **settings)
    batch = batch_of(method, [0, 1, 2], longer=True)
    total, parts = method.losses(batch)
    expected = joint_losses(method, batch, 1, published=peer_compat)
    for name, value in expected.items():
        assert_close(parts[name], value, atol=1e-5, rtol=1e-5, msg=name)
    whole = expected["task"] + 1.5 * expected["distillation"] + expected["teacher"]
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    found, wanted = (torch.autograd.grad(loss, trained) for loss in (total, whole))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_with_as_many_passes_as_latents_it_is_codi():
    method, codi = build(PCCoT, latents=3, passes=3), build(CODI, latents=3)
    codi.student.thought.projector.load_state_dict(method.student.thought.projector.state_dict())
    batch = batch_of(method, [0, 1, 2])
    (total, parts), (other, others) = method.losses(batch), codi.losses(batch)
    assert_close(total, other, atol=1e-5, rtol=1e-5)
    for name, value in parts.items():
        assert_close(value, others[name], atol=1e-5, rtol=1e-5, msg=name)


def test_peer_compat_wants_the_last_step_left_out():
    with pytest.raises(LoriError, match=r"set data\.template\.drop_last_step"):
        build(PCCoT, peer_compat=True)


def test_no_pass_is_refused():
    with pytest.raises(LoriError, match=r"model\.passes is 0: give 1 or more"):
        build(PCCoT, passes=0)
