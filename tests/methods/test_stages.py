"""iCoT-SI and Coconut: each stage against its formula, their limits, and where a stage begins."""

from __future__ import annotations

import math

import pytest
import torch
from plain import batch_of, build, cross_entropy, one_by_one, states
from torch.testing import assert_close

from lori_pl.errors import LoriError
from lori_pl.methods import Coconut, ExplicitCoT, ICoTSI, LoRi, NoCoT
from lori_pl.methods.stages import Stages

STAGES = Stages(steps=3)


def tokens_of(method, batch, row):
    """Question, rationale, answer prompt with answer and end, and where the steps begin, cut out of the sequence."""
    tokenizer, explicit = method.student.tokenizer, batch.explicit
    ids = explicit.ids[row][explicit.mask[row]]
    first, last = ids.tolist().index(tokenizer.convert_tokens_to_ids("<<")), int(explicit.anchor[row])
    rationale = ids[first:last]
    begins = [i for i, token in enumerate(rationale.tolist()) if token == tokenizer.convert_tokens_to_ids("<<")]
    return ids[:first], rationale, ids[last:], begins


# ---- where a stage begins --------------------------------------------------------------------------------------------


def test_stages_of_steps_and_of_epochs_begin_where_they_should():
    assert [Stages(steps=3).stage(step, 100) for step in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [Stages(epochs=0.5).stage(step, 6) for step in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    # eight an epoch of 100 steps: the boundaries lie between steps
    lengths = [Stages(epochs=1 / 8).stage(step, 100) for step in range(100)]
    assert [lengths.index(stage) for stage in range(8)] == [math.ceil(12.5 * stage) for stage in range(8)]
    for third in range(1, 30):  # a third is no binary number
        assert Stages(epochs=1 / 3).stage(third, 3) == third


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of the two"),
        ({"steps": 2, "epochs": 1.0}, "one of the two"),
        ({"steps": 0}, "steps is 0"),
        ({"epochs": 0.0}, "epochs is 0"),
    ],
)
def test_a_stage_has_one_length(settings, message):
    with pytest.raises(LoriError, match=message):
        Stages(**settings)


# ---- iCoT-SI ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stage", [0, 1, 5, 9])
def test_icot_si_is_explicit_cot_on_what_is_left(stage, side):
    method = build(ICoTSI, stages=STAGES, remove_all=20, side=side, smoothing=None)
    method.enter(stage)
    batch = batch_of(method, [0, 1, 2], pieces=True)
    lm, expected = method.student.lm, []
    for row in range(3):
        question, rationale, answer, _ = tokens_of(method, batch, row)
        left = rationale[stage:] if side == "left" else rationale[: len(rationale) - stage]
        ids = torch.cat([question, left, answer])
        hidden = states(lm, lm.get_input_embeddings().weight[ids])[-1]
        expected.append(cross_entropy(lm, hidden[len(question) - 1 : -1], ids[len(question) :]))
    assert_close(method.task_losses(batch), torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert method.student.reasoning == "words"


def test_with_nothing_removed_icot_si_is_explicit_cot_and_with_all_no_cot():
    method = build(ICoTSI, stages=STAGES, remove_all=4, smoothing=None)
    batch = batch_of(method, [0, 1, 2], pieces=True)
    method.enter(0)
    assert_close(method.task_losses(batch), build(ExplicitCoT).task_losses(batch))
    method.enter(4)
    assert method.student.given == []
    method.enter(17)
    assert method.is_final
    assert method.stage == method.final_stage == 5
    assert_close(method.task_losses(batch), build(NoCoT).task_losses(batch))
    assert method.student.given == method.student.encoder.prompt


def test_offsets_are_geometric_anew_each_time_and_none_outside_training():
    method = build(ICoTSI, stages=STAGES, smoothing=1.5).train()
    pieces = batch_of(method, list(range(8)), pieces=True).pieces

    def offsets(step, pieces=pieces):
        method.draw = (3, step)
        return method.offsets(pieces)

    drawn = [offsets(step) for step in range(2500)]
    values = torch.tensor([value for row in drawn for value in row.tolist()])
    for offset in range(4):
        share = (1 - math.exp(-1.5)) * math.exp(-1.5 * offset)
        assert abs(float((values == offset).float().mean()) - share) < 4 * math.sqrt(share / len(values)) + 1e-9
    # a problem's is its own, whatever the batch
    few = batch_of(method, [6, 2], pieces=True).pieces
    assert all((offsets(step, few) == drawn[step][[6, 2]]).all() for step in range(50))
    method.eval()
    assert (offsets(0) == 0).all()


def test_what_an_offset_takes_beyond_the_limit_takes_everything():
    method = build(ICoTSI, stages=STAGES, remove_all=6)
    method.enter(5)
    pieces = batch_of(method, [0, 1], pieces=True).pieces
    import numpy as np

    short, bare = method.shortened(pieces, np.array([1, 2]))
    assert len(short[1]) == len(pieces.parts[0][1]) - 6
    assert len(bare[1]) == 0
    assert len(bare[2]) == len(pieces.parts[1][2])


# ---- Coconut ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_coconut_writes_the_remaining_steps_behind_the_latents(stage, projector):
    method = build(Coconut, stages=STAGES, latents_a_step=2, latent_stages=2, first_stage=0, projector=projector)
    method.enter(stage)
    assert method.student.thought.latents == 2 * stage
    assert method.student.given == method.student.encoder.eot
    batch = batch_of(method, [0, 1, 2], pieces=True)
    total, _ = method.losses(batch)
    reasoner, table = method.student, method.student.lm.get_input_embeddings().weight
    summed, count = 0.0, 0
    method.latents = 2 * stage  # for the plain computation
    for row in range(3):
        question, rationale, answer, begins = tokens_of(method, batch, row)
        begin = begins[stage] if stage < len(begins) else len(rationale)
        embedded = table[torch.cat([question, torch.tensor(reasoner.encoder.bot)])]
        ids = torch.cat([torch.tensor(reasoner.encoder.eot), rationale[begin:], answer])
        sequence = torch.cat([embedded, one_by_one(method, embedded), table[ids]])
        hidden = states(reasoner.lm, sequence)[-1][-len(ids) :]
        summed = summed + cross_entropy(reasoner.lm, hidden[:-1], ids[1:]) * (len(ids) - 1)
        count += len(ids) - 1
    assert_close(total, summed / count, atol=1e-5, rtol=1e-5)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    found, wanted = (torch.autograd.grad(loss, trained, allow_unused=True) for loss in (total, summed / count))
    # what a stage does not use has a gradient of zero, lest data parallelism wait for it
    assert all(gradient is not None for gradient in found)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, torch.zeros_like(one) if other is None else other, atol=1e-4, rtol=1e-4)


def test_coconut_in_its_last_stage_with_a_projector_is_the_latents_alone():
    method = build(Coconut, stages=STAGES, latents_a_step=1, latent_stages=3, projector=True)
    alone = build(LoRi, latents=3)
    method.enter(99)
    assert method.is_final
    assert method.student.thought.latents == 3
    assert method.student.given == method.student.encoder.suffix
    batch = batch_of(method, [0, 1, 2], pieces=True)
    assert_close(method.losses(batch)[0], alone.losses(batch)[0])


def test_coconut_begins_where_it_is_told_to():
    method = build(Coconut, stages=STAGES, latents_a_step=2, latent_stages=3, first_stage=1)
    taken = []
    for stage in range(5):
        method.enter(stage)
        taken.append((method.student.thought.latents, method.is_final))
    assert taken == [(2, False), (4, False), (6, False), (6, True), (6, True)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latents_a_step": 0}, "latents_a_step is 0"),
        ({"latent_stages": 0}, "latent_stages 0"),
        ({"first_stage": 5}, "first_stage is 5: give 0 to 4"),
    ],
)
def test_coconut_refuses_numbers_out_of_range(settings, message):
    with pytest.raises(LoriError, match=message):
        build(Coconut, stages=STAGES, **settings)
