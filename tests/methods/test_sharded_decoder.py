"""SIM-CoT's decoder among two processes: divided layer by layer, and what it gives is what one process gets."""

from __future__ import annotations

import pytest
import torch
from forked import in_group
from plain import batch_of, build, divide
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from lori_pl.methods import SIMCoT, SIMCoTCoconut
from lori_pl.methods.stages import Stages
from lori_pl.models.hidden import base_model, decoder_layers
from lori_pl.sharding import whole

pytestmark = pytest.mark.distributed

KINDS = {
    "codi": (SIMCoT, {"latents": 2}),
    # in its first stage no latent is there to write a step from: the decoder waits
    "waiting": (SIMCoTCoconut, {"stages": Stages(steps=2), "latents_a_step": 1, "latent_stages": 2, "first_stage": 0}),
}


def made(kind):
    chosen, settings = KINDS[kind]
    method = build(chosen, **settings)
    with torch.no_grad():  # so that no layer's output hides another's
        for parameter in method.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def step(rank, kind):
    method = made(kind)
    divide(method)
    layers, divided = decoder_layers(method.decoder.lm), []
    assert all(isinstance(layer, FSDPModule) for layer in layers)

    def look(*_):
        # behind the layers: their weights are in parts again, though the step is not over
        divided.append([isinstance(weight, DTensor) for layer in layers for weight in layer.parameters()])

    base_model(method.decoder.lm).norm.register_forward_pre_hook(look)
    total, parts = method.losses(batch_of(method, [2 * rank, 2 * rank + 1], pieces=True))
    total.backward()
    gradients = {name: whole(p.grad) for name, p in method.named_parameters()}
    parts = {name: part.detach() for name, part in parts.items()}
    return {"parts": parts, "gradients": gradients, "divided": divided}


@pytest.mark.parametrize("kind", KINDS)
def test_its_layers_are_divided_apart(kind, tmp_path):
    both = in_group(step, tmp_path, kind)
    method = made(kind)
    total, parts = method.losses(batch_of(method, [0, 1, 2, 3], pieces=True))
    total.backward()
    assert ("steps" in parts) == (kind == "codi")
    for process in both:
        assert process["divided"]
        assert all(all(found) for found in process["divided"])
    for name, part in parts.items():
        assert_close(torch.stack([process["parts"][name] for process in both]).mean(), part.detach(), msg=name)
    for name, parameter in method.named_parameters():
        # a decoder that waits has a gradient of zero, as it has alone: decay reaches it all the same
        for process in both:
            assert_close(process["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
