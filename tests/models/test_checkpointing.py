"""Gradient checkpointing: the same losses and gradients, less memory, and the latents still see the question."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from tiny_models import backbone, encode, pairs, read_pair, tiny_lm, tiny_reasoner
from torch.nn import functional as F

from lori_pl.methods.losses import answer_cross_entropy, explicit_cross_entropy
from lori_pl.models.backbone import LoRA, prepare_training
from lori_pl.models.checkpointing import checkpoint_layers
from lori_pl.models.hidden import LayerSelection, decoder_layers

KINDS = ("llama", "gpt2", "gemma2")


def latent_loss(reasoner):
    batch = pairs(reasoner)
    record = LayerSelection()
    read = read_pair(reasoner, batch, record, record)
    loss = answer_cross_entropy(reasoner, read.hidden, batch).mean()
    return loss + read.trajectory.pow(2).mean() + read.anchor.pow(2).mean()


def gradients(reasoner, loss):
    reasoner.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in reasoner.named_parameters() if p.grad is not None}


def kept_bytes(reasoner, make=latent_loss):
    """Bytes of the distinct storages, weights apart, that a forward pass leaves alive for its backward pass."""
    saved: list[torch.Tensor] = []
    gc.collect()
    gc.freeze()  # what was there before is not looked at
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            loss = make(reasoner)
        gc.collect()
        # a checkpoint's inputs are not saved by autograd, but held by the function that runs again
        alive = [*saved, *(o for o in gc.get_objects() if type(o) is torch.Tensor)]
    finally:
        gc.unfreeze()
    del loss
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    weights = {p.untyped_storage().data_ptr() for p in reasoner.parameters()}
    return sum(size for pointer, size in storages.items() if pointer not in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_loss_and_gradients_through_latent_steps(kind):
    plain = tiny_reasoner(kind).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    losses = [latent_loss(reasoner) for reasoner in (plain, checkpointed)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
    expected, got = (gradients(r, loss) for r, loss in zip((plain, checkpointed), losses, strict=True))
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_equal_loss_and_gradients_under_autocast():
    plain = tiny_reasoner().train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = [latent_loss(reasoner) for reasoner in (plain, checkpointed)]
    torch.testing.assert_close(*losses, atol=0, rtol=0)
    expected, got = (gradients(r, loss) for r, loss in zip((plain, checkpointed), losses, strict=True))
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-4, name


def test_equal_loss_and_gradients_of_adapters_with_dropout():
    """As the configs of 3B and more have it."""
    plain = tiny_reasoner(lora=LoRA(rank=2, alpha=4.0, dropout=0.3)).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    found = []
    for reasoner in (plain, checkpointed):
        torch.manual_seed(3)
        loss = latent_loss(reasoner)
        found.append((loss.detach(), gradients(reasoner, loss)))
    (one, expected), (other, got) = found
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert any(".lora_" in name for name in expected)
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_equal_loss_and_gradients_without_a_cache():
    plain = tiny_reasoner(reasoning="words").train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    batch = pairs(plain)
    losses = [explicit_cross_entropy(reasoner, batch.explicit).mean() for reasoner in (plain, checkpointed)]
    torch.testing.assert_close(*losses)
    expected, got = (gradients(r, loss) for r, loss in zip((plain, checkpointed), losses, strict=True))
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_dropout_draws_the_same_in_the_recomputation():
    plain = tiny_reasoner("gpt2", resid_pdrop=0.2, embd_pdrop=0.1, attn_pdrop=0.1).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    results = []
    for reasoner in (plain, checkpointed):
        torch.manual_seed(5)
        results.append(gradients(reasoner, latent_loss(reasoner)))
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_latents_still_see_the_question(kind):
    reasoner = tiny_reasoner(kind).train()
    checkpoint_layers(reasoner.lm)
    question, mask = encode(reasoner)
    embedded = reasoner.embed(question).detach().requires_grad_()
    state = reasoner.settle(reasoner.thought.extend(reasoner, reasoner.read(embedded, mask), 3))
    seen = state.hidden.pow(2).sum()
    (gradient,) = torch.autograd.grad(seen, embedded)
    reach = gradient.norm(dim=-1)
    if kind != "gemma2":  # its window of 8 forgets
        assert (reach[mask] > 0).all()
    assert (reach[~mask] == 0).all()
    # and another first word of the question gives other latents
    other = question.clone()
    other[mask.cumsum(1) == 5] = 7
    last = reasoner.think(other, mask)[0].hidden
    assert (last - reasoner.think(question, mask)[0].hidden).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_holds_the_same(kind):
    plain = tiny_reasoner(kind).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    question, mask = encode(plain)
    caches = [reasoner.think(question, mask)[0].cache for reasoner in (plain, checkpointed)]
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        assert type(one) is type(other)
        assert one.get_seq_length() == other.get_seq_length() == question.shape[1] + 3
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)


def test_a_cache_that_something_else_changed_is_read_anew():
    reasoner = tiny_reasoner().train()
    checkpoint_layers(reasoner.lm)
    question, mask = encode(reasoner)
    state = reasoner.read(reasoner.embed(question), mask)
    order = torch.tensor([2, 0, 1])
    state.cache.reorder_cache(order)
    state.mask, state.position, state.hidden = state.mask[order], state.position[order], state.hidden[order]
    last = reasoner.settle(reasoner.thought.extend(reasoner, state, 3)).hidden
    torch.testing.assert_close(last, reasoner.think(question, mask)[0].hidden[order])


def test_less_is_kept_for_the_backward_pass():
    plain = tiny_reasoner(latents=5).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    whole, less = (kept_bytes(reasoner) for reasoner in (plain, checkpointed))
    assert less < 0.35 * whole


def test_less_is_kept_without_a_cache():
    plain = tiny_reasoner(reasoning="words").train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_layers(checkpointed.lm)
    batch = pairs(plain)
    whole, less = (
        kept_bytes(reasoner, lambda r: explicit_cross_entropy(r, batch.explicit).mean())
        for reasoner in (plain, checkpointed)
    )
    assert less < 0.35 * whole


def test_the_question_is_kept_once_however_many_latents_follow():
    reasoner = tiny_reasoner(latents=8).train()
    checkpoint_layers(reasoner.lm)
    question, mask = encode(reasoner)
    state = reasoner.think(question, mask)[0]
    for layer in state.cache.layers:
        pieces = vars(layer)["pieces"][1]
        assert [keys.shape[-2] for keys, _ in pieces] == [question.shape[1]] + [1] * 8


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_nothing_is_recomputed_outside_training(mode, monkeypatch):
    reasoner = tiny_reasoner().train(mode != "eval")
    checkpoint_layers(reasoner.lm)
    monkeypatch.setattr("lori_pl.models.checkpointing.checkpoint", None)
    with torch.set_grad_enabled(mode != "no_grad"):
        reasoner.think(*encode(reasoner))


def test_a_copied_model_recomputes_with_its_own_weights():
    reasoner = tiny_reasoner().train()
    checkpoint_layers(reasoner.lm)
    checkpoint_layers(reasoner.lm)  # a second time changes nothing
    copied = copy.deepcopy(reasoner)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert latent_loss(reasoner) > 1
    question, mask = encode(copied)
    assert copied.think(question, mask)[0].hidden.abs().max() == 0
    for layer in decoder_layers(copied.lm):
        assert layer.forward.__self__ is layer
        assert layer.plain_forward.__self__ is layer


def test_it_is_switched_on_by_the_backbone_and_saves_as_without(tmp_path):
    settings = backbone("llama")
    settings.gradient_checkpointing = True
    lm = tiny_lm("llama")
    keys = list(lm.state_dict())
    prepared = prepare_training(lm, settings)
    assert all("plain_forward" in vars(layer) for layer in decoder_layers(prepared))
    assert list(prepared.state_dict()) == keys


def test_transformers_own_checkpointing_would_lose_the_question():
    """Why this module exists; once this fails, transformers' own may serve."""
    reasoner = tiny_reasoner().train()
    question, mask = encode(reasoner)
    right = reasoner.think(question, mask)[0].hidden
    reasoner.lm.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        wrong = reasoner.think(question, mask)[0].hidden
    except (RuntimeError, ValueError, IndexError):
        return  # the mask no longer fits: at least not silent
    assert F.mse_loss(wrong, right) > 1e-4
