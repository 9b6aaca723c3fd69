"""The last layer's MLP on the tokens that somebody reads: the same states and gradients, and nothing else computed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, pairs, tiny_lm, tiny_reasoner
from torch import nn

from lori_pl.methods.losses import explicit_cross_entropy
from lori_pl.models.checkpointing import checkpoint_layers
from lori_pl.models.hidden import LayerSelection, base_model, decoder_layers
from lori_pl.models.teacher import explicit_signals
from lori_pl.models.trimming import last_mlp_at

TOKENS = torch.tensor([3, 4, 9, 11])  # of two rows of six


@pytest.fixture
def inputs():
    return torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))


def count_rows(lm) -> list[int]:
    """Numbers of tokens that the last layer's MLP sees, a pass each, as they come."""
    seen: list[int] = []
    inner = next(
        module for module in decoder_layers(lm)[-1].mlp.modules() if not list(module.children()) and has_weight(module)
    )
    inner.register_forward_pre_hook(lambda _module, args: seen.append(args[0].numel() // args[0].shape[-1]))
    return seen


def has_weight(module: nn.Module) -> bool:
    return getattr(module, "weight", None) is not None


def states_and_gradients(lm, inputs, tokens):
    lm.zero_grad()
    with last_mlp_at(lm, tokens):
        hidden = base_model(lm)(inputs_embeds=inputs, use_cache=False).last_hidden_state
    read = hidden.flatten(0, 1)[TOKENS]
    read.pow(2).sum().backward()
    return read.detach(), {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_states_and_gradients_are_those_of_the_whole_pass(kind, checkpointed, inputs):
    lm = tiny_lm(kind).train()
    whole, expected = states_and_gradients(lm, inputs, None)
    if checkpointed:
        checkpoint_layers(lm)
    seen = count_rows(lm)
    got, gradients = states_and_gradients(lm, inputs, TOKENS)
    assert seen == [len(TOKENS)] * (2 if checkpointed else 1)
    torch.testing.assert_close(got, whole, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=1e-4, msg=name)


def test_without_gradients_a_token_may_be_named_twice(inputs):
    lm = tiny_lm()
    twice = torch.cat([TOKENS, TOKENS[1:3]])
    with torch.no_grad():
        whole = base_model(lm)(inputs_embeds=inputs, use_cache=False).last_hidden_state
        with last_mlp_at(lm, twice):
            got = base_model(lm)(inputs_embeds=inputs, use_cache=False).last_hidden_state
    torch.testing.assert_close(got.flatten(0, 1)[TOKENS], whole.flatten(0, 1)[TOKENS], atol=1e-5, rtol=1e-5)


def test_outside_the_block_all_is_as_before(inputs):
    lm = tiny_lm()
    seen = count_rows(lm)
    with pytest.raises(RuntimeError, match="stop"), last_mlp_at(lm, TOKENS):
        raise RuntimeError("stop")
    base_model(lm)(inputs_embeds=inputs, use_cache=False)
    assert seen == [12]


def test_an_mlp_that_takes_more_than_the_hidden_states_runs_on_all(inputs):
    class Residual(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden, residual):
            return self.inner(hidden) + residual

    lm = tiny_lm()
    layer = decoder_layers(lm)[-1]
    seen = count_rows(lm)
    layer.mlp = Residual(layer.mlp)
    with last_mlp_at(lm, TOKENS):
        layer.mlp(inputs, inputs)
    assert seen == [12]


def test_what_an_mlp_gives_beside_the_hidden_states_is_kept(inputs):
    class Routed(nn.Module):
        def forward(self, hidden):
            return 2 * hidden, "routing"

    lm = tiny_lm()
    layer = decoder_layers(lm)[-1]
    layer.mlp = Routed()
    with last_mlp_at(lm, TOKENS):
        hidden, routing = layer.mlp(inputs)
    expected = torch.zeros(12, 32).index_copy(0, TOKENS, 2 * inputs.flatten(0, 1)[TOKENS])
    torch.testing.assert_close(hidden.flatten(0, 1), expected)
    assert routing == "routing"


@pytest.mark.parametrize("grad", [False, True])
def test_of_a_question_only_the_last_token_goes_through(grad):
    reasoner = tiny_reasoner(latents=3)
    batch = pairs(reasoner)
    seen = count_rows(reasoner.lm)
    with torch.set_grad_enabled(grad):
        reasoner.think(batch.question, batch.question_mask)
    assert seen == [len(batch.question)] * 4


def test_of_an_explicit_sequence_only_what_predicts_a_target_goes_through():
    reasoner = tiny_reasoner(reasoning="words")
    batch = pairs(reasoner).explicit
    seen = count_rows(reasoner.lm)
    explicit_cross_entropy(reasoner, batch)
    assert seen == [len(batch.target_index)]
    assert seen[0] < batch.mask.sum()


def test_of_a_teacher_only_rationale_and_anchor_go_through():
    reasoner = tiny_reasoner(reasoning="words")
    batch = pairs(reasoner).explicit
    seen = count_rows(reasoner.lm)
    explicit_signals(reasoner.lm, batch, LayerSelection())
    assert seen == [batch.rationale_index.numel() + len(batch.anchor)]
