"""Compiled layers: the same losses, gradients and weights, and as few graphs as there are kinds of passes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import LoRA, backbone, pairs, read_pair, tiny_lm, tiny_reasoner

from lori_pl.errors import LoriError
from lori_pl.methods.losses import answer_cross_entropy, explicit_cross_entropy
from lori_pl.models.attention import recorded_attention
from lori_pl.models.backbone import prepare_training
from lori_pl.models.casting import weights_cast_once
from lori_pl.models.compiling import compile_layers
from lori_pl.models.hidden import LayerSelection


@pytest.fixture(autouse=True)
def _forgotten():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.allow_unspec_int_on_nn_module = False


def loss_and_gradients(reasoner):
    batch, layers = pairs(reasoner), LayerSelection()
    read = read_pair(reasoner, batch, layers, layers)
    loss = answer_cross_entropy(reasoner, read.hidden, batch).mean() + read.trajectory.pow(2).mean()
    loss = loss + read.anchor.pow(2).mean() + explicit_cross_entropy(reasoner, batch.explicit).mean()
    reasoner.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in reasoner.named_parameters() if p.grad is not None}


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("kind", "lora", "engine"),
    [
        pytest.param("llama", None, "eager", marks=pytest.mark.slow),
        pytest.param("gpt2", None, "eager", marks=pytest.mark.slow),
        pytest.param("llama", LoRA(rank=4, dropout=0.0), "eager", marks=pytest.mark.slow),
        pytest.param("llama", None, "aot_eager", marks=pytest.mark.slow),
        pytest.param("llama", None, "inductor", marks=pytest.mark.slow),
        pytest.param("gpt2", None, "inductor", marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_are_those_without(kind, lora, engine):
    reasoner = tiny_reasoner(kind, num_hidden_layers=3, lora=lora).train()
    names = list(reasoner.state_dict())
    loss, expected = loss_and_gradients(reasoner)
    compile_layers(reasoner.lm, engine)
    got, gradients = loss_and_gradients(reasoner)
    assert torch.isclose(got, loss, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name
    assert list(reasoner.state_dict()) == names
    # the explicit sequence, the question, a latent, the last with the answer
    assert graphs() == 4
    again, _ = loss_and_gradients(reasoner)
    assert torch.equal(again, got)
    assert graphs() == 4


@pytest.mark.slow
def test_under_autocast_that_casts_each_weight_once():
    reasoner = tiny_reasoner(num_hidden_layers=3).train()

    def run():
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), weights_cast_once(torch.device("cpu")):
            return loss_and_gradients(reasoner)

    loss, expected = run()
    compile_layers(reasoner.lm, "aot_eager")
    got, gradients = run()
    assert torch.isclose(got, loss, rtol=0.02)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 0.05 * expected[name].norm() + 1e-4, name


@pytest.mark.slow
def test_other_lengths_and_numbers_of_latents_need_no_new_graph():
    reasoner = tiny_reasoner(num_hidden_layers=3).train()
    compile_layers(reasoner.lm, "eager")
    question = torch.randint(5, 60, (2, 9))
    for length, latents in ((9, 2), (7, 4), (5, 3)):
        reasoner.think(question[:, :length], torch.ones(2, length, dtype=torch.bool), latents)
    assert graphs() == 2


def test_a_pass_whose_attention_is_recorded_runs_as_it_is():
    """What is recorded, a layer's after the other's, would be a graph for each."""
    reasoner = tiny_reasoner().train()
    compile_layers(reasoner.lm, "eager")
    with recorded_attention(reasoner.lm) as found:
        explicit_cross_entropy(reasoner, pairs(reasoner).explicit).mean().backward()
    assert len(found) == reasoner.depth
    assert graphs() == 0


def test_evaluation_runs_as_it_is():
    reasoner = tiny_reasoner().train()
    compile_layers(reasoner.lm, "eager")
    reasoner.answer(["Bob has 7 coins ."])
    assert graphs() == 0


@pytest.mark.slow
def test_a_copy_has_its_own_weights():
    reasoner = tiny_reasoner().train()
    compile_layers(reasoner.lm, "eager")
    copied = copy.deepcopy(reasoner)
    with torch.no_grad():
        for parameter in reasoner.parameters():
            parameter.zero_()
    loss, gradients = loss_and_gradients(copied)
    assert loss > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": True, "gradient_checkpointing": True}, "exclude each other"),
        ({"compile": True, "kind": "gemma2"}, "no model with sliding windows"),
    ],
)
def test_what_cannot_be_compiled_is_refused(settings, message):
    kind = settings.pop("kind", "llama")
    plan = backbone(kind)
    for name, value in settings.items():
        setattr(plan, name, value)
    with pytest.raises(LoriError, match=message):
        prepare_training(tiny_lm(kind), plan)
