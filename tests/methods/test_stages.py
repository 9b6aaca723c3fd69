"""iCoT-SI and Coconut: each stage against its formula, their limits, and where a stage begins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from plain import TINY, assert_same_gradients, batch_of, behind_latents, build, one_by_one, states, surprise, tokens_of
from torch.testing import assert_close

from lori_pl.data.datamodule import PreparedSplit
from lori_pl.data.pairing import EncodedProblems
from lori_pl.data.synthetic import synthetic_problems
from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.methods import Coconut, ExplicitCoT, ICoTSI, LoRi, NoCoT, SIMCoTCoconut
from lori_pl.methods.stages import Stages
from lori_pl.models import generation
from lori_pl.models.backbone import Backbone, LoRA

STAGES = Stages(steps=3)


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
        ({"epochs": math.inf}, "epochs is inf"),
        ({"epochs": math.nan}, "epochs is nan"),
    ],
)
def test_a_stage_has_one_length(settings, message):
    with pytest.raises(LoriError, match=message):
        Stages(**settings)


# ---- iCoT-SI ---------------------------------------------------------------------------------------------------------


def left_by(method, batch, left):
    """By problem, -log p of the tokens behind the question, where `left` cuts the rationale."""
    lm, losses = method.student.lm, []
    for row in range(len(batch.index)):
        question, rationale, answer, _ = tokens_of(method, batch, row)
        ids = torch.cat([question, left(rationale), answer])
        hidden = states(lm, lm.get_input_embeddings().weight[ids])[-1]
        losses.append(surprise(lm, hidden[len(question) - 1 : -1], ids[len(question) :]))
    return losses


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stage", [0, 1, 5, 9])
@pytest.mark.parametrize("peer_compat", [False, True])
def test_icot_si_is_explicit_cot_on_what_is_left(stage, side, peer_compat):
    method = build(ICoTSI, stages=STAGES, remove_all=20, side=side, smoothing=None, peer_compat=peer_compat)
    method.enter(stage)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    expected = left_by(method, batch, lambda steps: steps[stage:] if side == "left" else steps[: len(steps) - stage])
    means = torch.stack([losses.mean() for losses in expected])
    assert_close(method.task_losses(batch), means, atol=1e-5, rtol=1e-5)
    total, parts = method.losses(batch)
    assert_close(total, torch.cat(expected).mean() if peer_compat else means.mean(), atol=1e-5, rtol=1e-5)
    assert parts == {"task": total}
    assert method.over_batch == (["the loss is the mean over the batch's tokens"] if peer_compat else [])
    assert method.student.reasoning == "words"


def test_with_nothing_removed_icot_si_is_explicit_cot_and_with_all_no_cot():
    method = build(ICoTSI, stages=STAGES, remove_all=4, smoothing=None)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    method.enter(0)
    assert_close(method.task_losses(batch), build(ExplicitCoT).task_losses(batch))
    method.enter(4)
    assert method.student.given == []
    method.enter(17)
    assert method.is_final
    assert method.stage == method.final_stage == 5
    assert_close(method.task_losses(batch), build(NoCoT).task_losses(batch))
    assert method.student.given == method.student.encoder.prompt


def test_the_published_icot_si_counts_the_prompt_to_the_end_and_takes_all_where_the_stage_says_so():
    """Not one stage later, and not in an earlier one by an offset."""
    method = build(ICoTSI, stages=STAGES, remove_all=4, peer_compat=True)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    method.enter(3)
    (_, kept, _), *_ = method.shortened(batch.pieces, np.full(3, 2))
    assert kept.tolist() == batch.pieces.parts[0][1][5:].tolist()
    assert method.student.given == []
    method.enter(4)
    assert method.is_final
    assert method.student.given == method.student.encoder.prompt
    expected = torch.cat(left_by(method, batch, lambda steps: steps[:0])).mean()
    assert_close(method.losses(batch)[0], expected, atol=1e-5, rtol=1e-5)


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
    short, bare = method.shortened(pieces, np.array([1, 2]))
    assert len(short[1]) == len(pieces.parts[0][1]) - 6
    assert len(bare[1]) == 0
    assert len(bare[2]) == len(pieces.parts[1][2])


# ---- Coconut ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [1, 2], ids=["one_a_step", "two_a_step"])
@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize(
    ("stage", "peer_compat"), [(0, False), (1, False), (2, False), (3, False), (1, True), (3, True)]
)
def test_coconut_writes_the_remaining_steps_behind_the_latents(stage, projector, peer_compat, each):
    """In the last stage (3) the answer, whose prompt counts as published and is given otherwise."""
    settings = {"latents_a_step": each, "latent_stages": 2, "first_stage": 0, "peer_compat": peer_compat}
    method = build(Coconut, stages=STAGES, projector=projector, **settings)
    method.enter(stage)
    latents = each * min(stage, 2)
    assert method.student.thought.latents == latents
    assert method.student.given == (method.student.encoder.suffix if stage == 3 else method.student.encoder.eot)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    total, _ = method.losses(batch)
    given = len(method.student.encoder.prompt) if stage == 3 and not peer_compat else 0
    losses = behind_latents(method, batch, latents, None if stage == 3 else stage, given)
    expected = torch.cat(losses).mean()
    assert_close(total, expected, atol=1e-5, rtol=1e-5)
    means = torch.stack([loss.mean() for loss in losses])
    assert_close(method.task_losses(batch), means, atol=1e-5, rtol=1e-5)
    assert_same_gradients(method, total, expected)


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize(("stage", "latents"), [(0, 2), (1, 4), (2, 4)])
def test_in_each_stage_coconut_generates_what_a_full_pass_would(stage, latents, projector, monkeypatch):
    """With cache, steps in words behind <eot>; in the last stage (2) the answer behind its prompt."""
    monkeypatch.setattr(generation, "COMPACT_BELOW", 0.0)  # so that each row's logits stay in its place
    method = build(Coconut, stages=STAGES, latents_a_step=2, latent_stages=2, first_stage=1, projector=projector)
    method.enter(stage)
    reasoner, table = method.student.eval(), method.student.lm.get_input_embeddings().weight
    encoder, plain, seen = reasoner.encoder, reasoner.logits, []
    monkeypatch.setattr(reasoner, "logits", lambda hidden: seen.append(plain(hidden)) or seen[-1])
    batch = batch_of(method, [0, 1, 2], pieces=True)
    made = reasoner.generate(batch.question, batch.question_mask, max_new_tokens=8)
    assert made.latents == latents
    assert (made.mask.sum(1) > 1).all()
    for row in range(3):
        tokens = made.tokens[row][made.mask[row]]
        question = table[batch.question[row][batch.question_mask[row]]]
        read = torch.tensor([*encoder.eot, *(encoder.prompt if stage == 2 else []), *tokens[:-1]])
        sequence = torch.cat([question, one_by_one(method, question, latents), table[read]])
        expected = reasoner.lm.lm_head(states(reasoner.lm, sequence)[-1][-len(tokens) :])
        assert_close(torch.stack(seen)[: len(tokens), row], expected, atol=1e-5, rtol=1e-5)
        expected[:, encoder.bot + encoder.eot] = float("-inf")
        assert tokens.tolist() == expected.argmax(-1).tolist()


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
        ({"peer_compat": True, "stages": Stages(steps=3, reset_optimizer=False)}, "reset_optimizer is false"),
    ],
)
def test_coconut_refuses_numbers_out_of_range(settings, message):
    with pytest.raises(LoriError, match=message):
        build(Coconut, **{"stages": STAGES} | settings)


def marker_rows(method, token="<<"):
    """The rows of a token and of both markers, as they are read and as they are written."""
    reasoner = method.student
    ids = torch.tensor([reasoner.tokenizer.convert_tokens_to_ids(token), *reasoner.encoder.bot, *reasoner.encoder.eot])
    return reasoner.embed(ids[None])[0], reasoner.lm.get_output_embeddings().weight[ids]


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=4, targets=["q_proj"])], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", [Coconut, SIMCoTCoconut])
def test_the_published_markers_start_as_copies_of_a_step_s_first_token(kind, lora):
    config = {**TINY, "tie_word_embeddings": False}
    for peer_compat in (True, False):
        method = build(kind, config, lora=lora, stages=STAGES, peer_compat=peer_compat)
        for row, bot, eot in marker_rows(method):
            assert torch.equal(row, bot) is peer_compat
            assert torch.equal(row, eot) is peer_compat


def test_markers_that_were_trained_stay(tmp_path):
    first = build(Coconut, stages=STAGES, latents_a_step=1, latent_stages=1)
    first.student.save_pretrained(tmp_path / "first")
    backbone = Backbone(name=str(tmp_path / "first"))
    again = Coconut(backbone, stages=STAGES, student_init="base", template=Template(), peer_compat=True)
    again.configure_model()
    for before, after in zip(marker_rows(first), marker_rows(again), strict=True):
        assert torch.equal(before, after)


def test_the_published_start_of_the_markers_wants_a_tokenizer_with_that_token():
    backbone = Backbone(tokenizer="digits", config=TINY)
    method = Coconut(backbone, stages=STAGES, student_init="base", template=Template(), peer_compat=True)
    with pytest.raises(LoriError, match="the token '<<', which the student's tokenizer does not have: set it to false"):
        method.configure_model()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [5, 10]),
        ({"peer_compat": True}, [3, 5, 6, 9, 10]),
        ({"stages": Stages(steps=5, reset_optimizer=False)}, []),
    ],
)
def test_the_optimiser_forgets_at_stages_and_as_published_at_epochs(monkeypatch, settings, expected):
    method = build(Coconut, **{"stages": Stages(steps=5), "latent_stages": 2} | settings)
    monkeypatch.setattr(Coconut, "steps_an_epoch", 3)
    assert [step for step in range(12) if method.begins_anew(step)] == expected


def test_before_a_training_a_question_needs_the_positions_of_the_last_stage():
    """It is that stage's student which is tested: else its error would come behind the whole training."""
    coconut = build(Coconut, stages=STAGES, latents_a_step=2, latent_stages=2)
    coconut.enter(0)
    # <bot>, four latents, <eot> and the answer prompt
    assert coconut.positions_before_answer == 4 + 3
    coconut.trains = False
    assert coconut.positions_before_answer == 2 + 2  # the first of the stages has two latents
    icot_si = build(ICoTSI, stages=STAGES, remove_all=3)
    icot_si.enter(0)
    assert icot_si.positions_before_answer == 1
    icot_si.trains = False
    assert icot_si.positions_before_answer == 0


@pytest.mark.parametrize(("stage", "latents"), [(0, None), (1, None), (1, 4), (2, None), (2, 7)])
def test_outside_a_training_the_positions_are_those_of_what_is_read(stage, latents, monkeypatch):
    method = build(Coconut, stages=STAGES, latents_a_step=2, latent_stages=2)
    problems = synthetic_problems(4, 0, min_steps=2, max_steps=3)
    encoded = EncodedProblems(problems, method.student.encoder, steps=True)
    split = PreparedSplit("validation", problems, encoded, None)
    ((_, _, trained),) = method.sequences(split)
    method.enter(stage)
    method.trains, method.latents_at_run = False, latents
    method.set_latents()
    ((_, lm, lengths),) = method.sequences(split)
    assert lm is method.student.lm
    seen = []
    original = type(method.student).run
    monkeypatch.setattr(
        type(method.student),
        "run",
        lambda self, inputs, mask, *rest: seen.append(int(mask.sum())) or original(self, inputs, mask, *rest),
    )
    for row in range(4):
        seen.clear()
        method.task_losses(batch_of(method, [row], pieces=True))
        assert max(seen) == lengths[row] - 1  # but for the last token, behind which nobody asks
    assert latents is not None or (trained >= lengths).all()
