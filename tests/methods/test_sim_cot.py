"""SIM-CoT against its formula; what the decoder is given and what becomes of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from plain import (
    TINY,
    assert_same_gradients,
    batch_of,
    behind_latents,
    build,
    cross_entropy,
    joint_losses,
    one_by_one,
    states,
    student,
    surprise,
)
from torch.testing import assert_close

from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.methods import CODI, SIMCoT, SIMCoTCoconut
from lori_pl.methods.stages import Stages
from lori_pl.models.backbone import Backbone


def steps_of(method, batch, row, most):
    """The tokens of each step and the end token, cut out of the explicit sequence where `<<` stands."""
    tokenizer, explicit = method.student.tokenizer, batch.explicit
    ids = explicit.ids[row][explicit.mask[row]].tolist()
    begin = tokenizer.convert_tokens_to_ids("<<")
    starts = [i for i, token in enumerate(ids) if token == begin]
    end = ids.index(tokenizer.convert_tokens_to_ids("####"))
    bounds = [*starts[:most], end]
    return [[*ids[a:b], tokenizer.eos_token_id] for a, b in pairwise(bounds)]


@pytest.mark.parametrize("latents", [1, 2, 4])
@pytest.mark.parametrize(("width", "peer_compat"), [(16, False), (24, False), (16, True)])
def test_the_loss_and_its_gradients_are_those_of_the_formula(latents, width, peer_compat):
    """As published: of each latent the mean over all tokens of its steps, and the mean over latents that have one."""
    decoder = None if width == 16 else Backbone(config={**TINY, "hidden_size": width})
    settings = {"decoder": decoder, "peer_compat": peer_compat, "template": Template(drop_last_step=peer_compat)}
    method = build(SIMCoT, latents=latents, gamma=1.5, w_steps=0.5, **settings)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    total, parts = method.losses(batch)
    expected = joint_losses(method, batch, 0 if peer_compat else 1, published=peer_compat)
    lm, problems = method.decoder.lm, []
    places: list[list[torch.Tensor]] = [[] for _ in range(latents)]
    table = lm.get_input_embeddings().weight
    for row in range(3):
        _, _, inputs = student(method, batch, row)
        written = []
        for latent, ids, place in zip(inputs, steps_of(method, batch, row, latents), places, strict=False):
            sequence = torch.cat([method.decoder.bridge(latent)[None], table[torch.tensor(ids[:-1])]])
            place.append(surprise(lm, states(lm, sequence)[-1], torch.tensor(ids)))
            written.append(place[-1].mean())
        assert len(written) == min(latents, int(batch.steps[row]) - peer_compat)
        problems.append(torch.stack(written).mean())
    published = torch.stack([torch.cat(place).mean() for place in places if place]).mean()
    expected["steps"] = published if peer_compat else torch.stack(problems).mean()
    for name, value in expected.items():
        assert_close(parts[name], value, atol=1e-5, rtol=1e-5, msg=name)
    whole = expected["task"] + 1.5 * expected["distillation"] + expected["teacher"] + 0.5 * expected["steps"]
    assert_close(total, whole, atol=1e-5, rtol=1e-5)
    assert_same_gradients(method, total, whole)


@pytest.mark.parametrize("each", [1, 2], ids=["one_a_step", "two_a_step"])
@pytest.mark.parametrize("peer_compat", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_on_coconut_each_stage_s_latents_write_the_steps_that_they_took_away(stage, peer_compat, each):
    """In the last stage (3) the second step's latents write all that follow."""
    settings = {"stages": Stages(steps=2), "latents_a_step": each, "latent_stages": 2, "first_stage": 0}
    method = build(SIMCoTCoconut, w_steps=0.5, peer_compat=peer_compat, **settings)
    method.enter(stage)
    removed = min(stage, 2)
    batch = batch_of(method, [0, 1, 2], pieces=True, longer=True)
    total, parts = method.losses(batch)
    given = len(method.student.encoder.prompt) if stage == 3 and not peer_compat else 0
    task = torch.cat(behind_latents(method, batch, each * removed, None if stage == 3 else stage, given)).mean()
    assert_close(parts["task"], task, atol=1e-5, rtol=1e-5)
    if not removed:
        assert parts.keys() == {"task"}
        assert_same_gradients(method, total, task)
        return
    lm, problems = method.decoder.lm, []
    places: list[list[torch.Tensor]] = [[] for _ in range(removed)]
    table = lm.get_input_embeddings().weight
    for row in range(3):
        embedded = method.student.lm.get_input_embeddings().weight[batch.question[row][batch.question_mask[row]]]
        inputs = one_by_one(method, embedded, each * removed).unflatten(0, (removed, each))
        whole = steps_of(method, batch, row, 99)
        steps = steps_of(method, batch, row, removed) if stage == 3 else whole[:removed]
        written = []
        for latents, ids in zip(inputs, steps, strict=False):
            hidden = states(lm, torch.cat([latents, table[torch.tensor(ids[:-1])]]))[-1][each - 1 :]
            written.append(cross_entropy(lm, hidden, torch.tensor(ids)))
            places[len(written) - 1].append(written[-1] * len(ids))
        problems.append(torch.stack(written).mean())
    published = torch.stack([torch.stack(place).sum() / len(place) for place in places]).mean()
    expected = published if peer_compat else torch.stack(problems).mean()
    assert_close(parts["steps"], expected, atol=1e-5, rtol=1e-5)
    assert_close(total, task + 0.5 * expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(method, total, task + 0.5 * expected)


def test_what_peer_compat_takes_over_the_batch_is_said():
    method = build(SIMCoTCoconut, stages=Stages(steps=2), peer_compat=True)
    assert "peer_compat sums CE_steps over the batch" in method.over_batch
    method = build(SIMCoT, peer_compat=True, template=Template(drop_last_step=True))
    assert "the cross-entropies are means over the batch's tokens" in method.over_batch


def test_without_the_steps_it_is_codi_and_the_student_the_same():
    method, codi = build(SIMCoT, latents=2, w_steps=0.0), build(CODI, latents=2)
    batch = batch_of(method, [0, 1], pieces=True)
    assert_close(method.losses(batch)[0], codi.losses(batch)[0])
    assert not any("decoder" in name for name in method.student.state_dict())


def test_the_steps_teach_the_latents():
    method = build(SIMCoT, latents=2)
    _, parts = method.losses(batch_of(method, [0, 1], pieces=True))
    projector = method.student.thought.projector.layers[0].weight
    (gradient,) = torch.autograd.grad(parts["steps"], [projector])
    assert gradient.abs().sum() > 0


def test_a_student_that_is_only_tested_has_no_decoder():
    torch.manual_seed(0)
    method = SIMCoT(Backbone(tokenizer="synthetic", config=TINY), student_init="base", template=Template())
    method.trains = False
    method.configure_model()
    assert method.decoder is None


def test_no_latents_are_refused():
    with pytest.raises(LoriError, match=r"model\.latents is 0"):
        build(SIMCoT, latents=0)


def test_a_weight_below_nothing_is_refused():
    with pytest.raises(LoriError, match=r"model\.w_steps is -1\.0: give 0 or more"):
        build(SIMCoT, w_steps=-1.0)
