"""Under autocast a training step casts each weight once, and what trains gets the gradient that it would get."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from test_every_method import LORA, METHODS, build, make
from torch.utils._python_dispatch import TorchDispatchMode

from lori_pl.models.casting import weights_cast_once


class Casts(TorchDispatchMode):
    """Counts how often each weight is cast to bfloat16."""

    def __init__(self, method):
        super().__init__()
        self.names = {id(parameter): name for name, parameter in method.named_parameters()}
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.count[self.names.get(id(args[0]))] += 1
        return func(*args, **(kwargs or {}))


def step(method, batch, keep=True):
    """Gradients of a training step as Lightning runs it in bf16-mixed, and the casts of the forward pass."""
    method.zero_grad()
    method.train()
    method.backbone.gradient_checkpointing = not keep
    torch.manual_seed(0)
    with Casts(method) as casts, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss, _ = method.step_losses(batch)
        assert not torch.is_autocast_cache_enabled()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return gradients, {name: count for name, count in casts.count.items() if name}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_each_training_weight_is_cast_once_a_step_and_gets_its_gradient(kind, lora):
    method = build(kind, stage=1, lora=lora)
    batch = make(method, [0, 1, 2])
    ours, once = step(method, batch)
    theirs, often = step(method, batch, keep=False)
    trained = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert {name: count for name, count in once.items() if count > 1 and name in trained} == {}
    assert once.keys() == often.keys()
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        error = float((ours[name] - gradient).norm() / gradient.norm().clamp_min(1e-3))
        assert error < 0.02, (name, error)


def test_latents_would_cast_their_weights_anew():
    method = build(next(kind for kind in METHODS if kind.__name__ == "LoRi"))
    _, often = step(method, make(method, [0, 1, 2]), keep=False)
    weight = next(name for name in often if name.endswith("down_proj.weight"))
    assert often[weight] == 4  # the question, two latents, the third with the answer


def test_nothing_is_kept_behind_the_block():
    layer = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with weights_cast_once(torch.device("cpu")):
            before = layer(torch.ones(1, 4))
        with torch.no_grad():
            layer.weight.add_(1.0)
            layer.bias.add_(1.0)
        with weights_cast_once(torch.device("cpu")):
            after = layer(torch.ones(1, 4))
    torch.testing.assert_close(after - before, torch.full((1, 4), 5.0).bfloat16(), atol=0.1, rtol=0.02)


def test_without_autocast_nothing_changes():
    enabled = torch.is_autocast_cache_enabled()
    with weights_cast_once(torch.device("cpu")):
        assert torch.is_autocast_cache_enabled() == enabled
    with weights_cast_once(torch.device("meta")):
        assert torch.is_autocast_cache_enabled() == enabled
