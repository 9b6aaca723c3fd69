"""A question that is read once for thought and words: what each gives is what it gives with a question of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import pairs, tiny_reasoner

from lori_pl.methods.losses import answer_cross_entropy, explicit_cross_entropy
from lori_pl.models.backbone import LoRA
from lori_pl.models.checkpointing import checkpoint_layers
from lori_pl.models.hidden import base_model
from lori_pl.models.pair_reading import read_question

KINDS = ("llama", "gpt2", "qwen2", "cohere")


def losses(reasoner, batch, shared):
    """Of words and answer, (B,) each."""
    question = read_question(reasoner, batch.question, batch.question_mask) if shared else None
    words = explicit_cross_entropy(reasoner, batch.explicit, question)
    read = reasoner.read_pair(
        batch.question,
        batch.question_mask,
        batch.answer,
        batch.answer_mask,
        batch.anchor,
        state=None if question is None else question.state,
    )
    return words, answer_cross_entropy(reasoner, read.hidden, batch)


def gradients(reasoner, found):
    reasoner.zero_grad()
    sum(loss.sum() for loss in found).backward()
    return {name: p.grad.clone() for name, p in reasoner.named_parameters() if p.grad is not None}


def assert_equal(one, other, batch, shared=(False, True)):
    found = [losses(reasoner, batch, share) for reasoner, share in zip((one, other), shared, strict=True)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours, theirs = (gradients(reasoner, each) for reasoner, each in zip((one, other), found, strict=True))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reasoning", ["latent", "parallel"])
def test_losses_and_gradients_are_those_of_questions_read_apart(kind, reasoning):
    reasoner = tiny_reasoner(kind, reasoning)
    assert_equal(reasoner, reasoner, pairs(reasoner))


@pytest.mark.parametrize("changes", [{"latents": 0}, {"lora": LoRA(targets=["q_proj", "down_proj"])}])
def test_without_latents_and_with_adapters(changes):
    reasoner = tiny_reasoner(**changes)
    assert_equal(reasoner, reasoner, pairs(reasoner))


def test_with_eager_attention_and_padding_on_the_right():
    reasoner = tiny_reasoner()
    reasoner.lm.set_attn_implementation("eager")
    batch = pairs(reasoner)
    turned = copy.copy(batch)
    lengths = batch.question_mask.sum(1).tolist()
    turned.question = torch.stack([row.roll(n - len(row)) for row, n in zip(batch.question, lengths, strict=True)])
    turned.question_mask = torch.stack([r.roll(n - len(r)) for r, n in zip(batch.question_mask, lengths, strict=True)])
    assert len(set(lengths)) > 1
    for ours, theirs in zip(losses(reasoner, batch, False), losses(reasoner, turned, True), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_checkpointed_layers(kind):
    plain = tiny_reasoner(kind).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    assert_equal(plain, checkpointed, pairs(plain), (True, True))


def test_the_question_goes_through_the_model_once():
    reasoner = tiny_reasoner()
    batch = pairs(reasoner)
    widths = []
    hook = base_model(reasoner.lm).register_forward_pre_hook(
        lambda _module, _args, keywords: widths.append(keywords["inputs_embeds"].shape[1]), with_kwargs=True
    )
    losses(reasoner, batch, True)
    hook.remove()
    behind = batch.explicit.mask.sum(1) - batch.explicit.begin
    # the question with <bot>, the words but for the last, two latents, the third with the answer but for its last
    assert widths == [batch.question.shape[1], int(behind.max()) - 1, 1, 1, batch.answer.shape[1]]


def test_a_model_that_makes_its_own_mask_reads_it_anew():
    reasoner = tiny_reasoner("gemma2")
    batch = pairs(reasoner)
    assert read_question(reasoner, batch.question, batch.question_mask) is None
