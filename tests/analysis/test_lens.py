"""The logit lens: at the last layer the model itself, before it the model's own norm and head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thinkers import CONFIGS, KINDS, encoded, plain_latents, plain_logits, thinker, world
from torch import nn

from lori_pl.analysis.lens import EVERY_LAYER, final_norm, lens_logits, read_latents, shown
from lori_pl.analysis.streams import question_batch

NORMS = {"llama": "norm", "gpt2": "ln_f", "gemma2": "norm"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_final_norm_is_found_whatever_its_name(kind):
    lm = thinker(kind=kind).lm
    assert final_norm(lm) is getattr(lm.base_model, NORMS[kind])
    # nothing is left behind
    assert not any(module._forward_hooks for module in lm.modules())


def test_a_model_without_a_final_norm_has_none():
    lm = thinker().lm
    lm.base_model.norm = nn.Identity()
    assert isinstance(final_norm(lm), nn.Identity)


@pytest.mark.parametrize(
    ("reasoning", "kind"), [*((reasoning, "llama") for reasoning in KINDS), ("latent", "gpt2"), ("latent", "gemma2")]
)
def test_at_the_last_layer_it_is_the_models_own_logits(reasoning, kind):
    reasoner, problems = thinker(reasoning, kind=kind), world(3)
    questions = encoded(reasoner, problems)
    with torch.no_grad():
        _, states = reasoner.think(*question_batch(reasoner, questions, range(3)), record=EVERY_LAYER)
        found = lens_logits(reasoner, states, final_norm(reasoner.lm))
    assert found.shape[:3] == (3, 3, 3)  # problems, input and layers, latents
    for row in range(3):
        latents = plain_latents(reasoner, questions[row]) if kind != "gemma2" else None
        if latents is None:
            continue  # its embeddings are scaled as they go in; the two below hold for it too
        own = plain_logits(reasoner, questions[row], latents, [])[-3:]
        torch.testing.assert_close(found[row, -1], own, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[:, -1], reasoner.logits(states[:, -1]))
    inner = reasoner.logits(getattr(reasoner.lm.base_model, NORMS[kind])(states[:, 1]))
    torch.testing.assert_close(found[:, 1], inner)


def test_batches_change_nothing_and_what_is_kept_is_the_top_of_a_distribution():
    reasoner, problems = thinker(), world(5)
    questions = encoded(reasoner, problems)
    one = read_latents(reasoner, questions, [np.arange(5)], 4)
    two = read_latents(reasoner, questions, [np.arange(2), np.arange(2, 5)], 4)
    assert torch.equal(one.tokens, two.tokens)
    torch.testing.assert_close(one.probabilities, two.probabilities, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.mean, two.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.entropy, two.entropy, atol=1e-4, rtol=1e-4)
    assert one.tokens.shape == (5, 3, 3, 4)
    assert (one.probabilities.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(one.mean.sum(-1), torch.ones(3, 3))
    with torch.no_grad():
        _, states = reasoner.think(*question_batch(reasoner, questions, range(5)), record=EVERY_LAYER)
        share = lens_logits(reasoner, states, final_norm(reasoner.lm)).softmax(-1)
    entropy = -(share * share.log2()).sum(-1).mean(0)
    torch.testing.assert_close(one.entropy, entropy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.probabilities, share.topk(4).values, atol=1e-5, rtol=1e-4)


def test_tokens_are_shown_as_text():
    reasoner = thinker()
    assert shown(reasoner, reasoner.tokenizer.convert_tokens_to_ids("17")) == "17"
