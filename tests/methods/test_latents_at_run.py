"""Another number of latents than that of the training: what the student then thinks and writes, or why it may not."""

from __future__ import annotations

import pytest
import torch
from plain import batch_of, build, one_by_one, states, surprise, together
from torch.testing import assert_close

from lori_pl.errors import LoriError
from lori_pl.methods import CODI, Coconut, KaVa, PCCoT, SIMCoT, SIMCoTCoconut
from lori_pl.methods.stages import Stages

STAGED = {"stages": Stages(steps=2), "latents_a_step": 2, "latent_stages": 2}
METHODS = {
    CODI: {"latents": 3},
    SIMCoT: {"latents": 3},
    PCCoT: {"latents": 4, "passes": 2},
    KaVa: {"latents": 4, "passes": 2},
    Coconut: STAGED,
    SIMCoTCoconut: STAGED,
}


def trained(kind, **changes):
    method = build(kind, **METHODS[kind] | changes)
    if issubclass(kind, Coconut):
        method.enter(method.final_stage)
    return method


@torch.no_grad()
def written(method, question, count):
    """The greedy answer (n tokens) behind `count` latents, by whole passes over everything."""
    reasoner, table = method.student, method.student.lm.get_input_embeddings().weight
    method.latents = count  # for the plain computation
    latents = (
        together(method, table[question]) if reasoner.reasoning == "parallel" else one_by_one(method, table[question])
    )
    sequence, ids = torch.cat([table[question], latents, table[reasoner.encoder.suffix]]), []
    banned = reasoner.encoder.bot + reasoner.encoder.eot
    while len(ids) < 3 and (not ids or ids[-1] != reasoner.encoder.end):
        logits = reasoner.lm.lm_head(states(reasoner.lm, sequence)[-1][-1])
        logits[banned] = float("-inf")
        ids.append(int(logits.argmax()))
        sequence = torch.cat([sequence, table[ids[-1:]]])
    return ids


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("kind", METHODS)
def test_the_student_takes_as_many_as_it_is_asked_for(kind, count):
    """Not divisible by c, fewer or more than trained: in the last stage a latent is a latent."""
    method = trained(kind).eval()
    batch = batch_of(method, [0, 1, 2], pieces=True)
    method.latents_at_run = count
    method.set_latents()
    found = method.student.generate(batch.question, batch.question_mask, max_new_tokens=3)
    assert found.latents == count
    rows = [ids[mask].tolist() for ids, mask in zip(found.tokens, found.mask, strict=True)]
    plain = [written(method, batch.question[row][batch.question_mask[row]], count) for row in range(3)]
    assert rows == plain
    passes = count if method.student.reasoning == "latent" else 2
    assert found.passes.tolist() == [1 + passes + len(ids) - 1 for ids in plain]
    # validation's loss is that of this thought too
    table = method.student.lm.get_input_embeddings().weight
    for row, loss in enumerate(method.task_losses(batch)):
        question = table[batch.question[row][batch.question_mask[row]]]
        think = together if method.student.reasoning == "parallel" else one_by_one
        answer = batch.answer[row][batch.answer_mask[row]]
        hidden = states(method.student.lm, torch.cat([question, think(method, question), table[answer]]))[-1]
        losses = surprise(method.student.lm, hidden[-len(answer) : -1], answer[1:])
        assert_close(loss, losses[batch.anchor :].mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_less_than_none_is_refused(kind):
    method = trained(kind)
    method.latents_at_run = -1
    with pytest.raises(LoriError, match="latents is -1: give 0 or more"):
        method.set_latents()


def test_more_than_the_one_that_was_learned_is_refused():
    method = trained(PCCoT, latents=1)
    method.latents_at_run = 2
    with pytest.raises(LoriError, match=r"latents is 2, but this reasoner \(parallel\) can take at most 1"):
        method.set_latents()


@pytest.mark.parametrize("kind", [Coconut, SIMCoTCoconut])
def test_where_words_follow_latents_come_by_whole_steps(kind):
    method = build(kind, **STAGED)
    method.enter(0)
    batch = batch_of(method, [0, 1, 2], pieces=True)
    for count in (1, 3):
        method.latents_at_run = count
        with pytest.raises(LoriError, match=f"2 a step .* asks for {count}: give a multiple of 2"):
            method.set_latents()
    method.latents_at_run = 4
    method.set_latents()
    found = method.task_losses(batch)
    method.enter(1)  # that of two steps
    assert_close(found, method.task_losses(batch))
    assert method.student.given == method.student.encoder.eot
