"""CODI against its formula, and what must hold of it."""

from __future__ import annotations

import pytest
import torch
from plain import GPT2, TINY, batch_of, joint_losses
from torch.testing import assert_close

from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.methods import CODI, LoRi
from lori_pl.models.backbone import Backbone, LoRA


def build(**settings):
    torch.manual_seed(0)
    template = Template(drop_last_step=settings.pop("drop_last_step", False))
    backbone = Backbone(tokenizer="synthetic", config=settings.pop("config", TINY), lora=settings.pop("lora", None))
    method = CODI(backbone, **{"student_init": "base", "latents": 3, "gamma": 2.5, "template": template} | settings)
    method.configure_model()
    return method


@pytest.mark.parametrize("config", [TINY, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("latents", [0, 1, 3])
@pytest.mark.parametrize("peer_compat", [False, True])
def test_the_loss_and_its_gradients_are_those_of_the_formula(latents, peer_compat, config):
    """Of GPT-2, the published model, learned positions make the embeddings differ, which ``peer_compat`` compares."""
    method = build(latents=latents, peer_compat=peer_compat, drop_last_step=peer_compat, config=config)
    batch = batch_of(method, [0, 1, 2], longer=True)
    total, parts = method.losses(batch)
    expected = joint_losses(method, batch, 0 if peer_compat else 1, published=peer_compat)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(parts[name], value, atol=1e-5, rtol=1e-5, msg=name)
    whole = expected["task"] + 2.5 * expected["distillation"] + expected["teacher"]
    assert_close(total, whole, atol=1e-5, rtol=1e-5)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(total, trained, allow_unused=True)
    wanted = torch.autograd.grad(whole, trained, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert all(gradient is not None for gradient in found)


def test_a_model_whose_attention_slides_reads_the_question_twice_and_has_the_same_losses():
    method = build(config={**TINY, "model_type": "mistral", "sliding_window": 128, "num_key_value_heads": 2})
    batch = batch_of(method, [0, 1, 2], longer=True)
    _, parts = method.losses(batch)
    for name, value in joint_losses(method, batch, 1).items():
        assert_close(parts[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_each_problems_losses_are_its_own_in_any_batch():
    method = build()
    rows = [0, 1, 2, 3]
    _, together = method.losses(batch_of(method, rows, longer=True))
    alone = [method.losses(batch_of(method, [row], longer=True))[1] for row in rows]
    for name in ("task", "teacher"):
        assert_close(together[name], torch.stack([parts[name] for parts in alone]).mean(), atol=1e-5, rtol=1e-5)


def test_the_students_part_does_not_know_the_rationale():
    method = build()
    _, parts = method.losses(batch_of(method, [0, 1, 2]))
    _, other = method.losses(batch_of(method, [0, 1, 2], swap=True))
    assert torch.equal(parts["task"], other["task"])
    assert not torch.equal(parts["teacher"], other["teacher"])
    assert not torch.equal(parts["distillation"], other["distillation"])


def test_the_teacher_learns_nothing_from_the_distance():
    method = build()
    _, parts = method.losses(batch_of(method, [0, 1]))
    table = method.student.lm.get_input_embeddings().weight
    projector = next(method.student.thought.parameters())
    by_distance = torch.autograd.grad(parts["distillation"], [table, projector], retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in by_distance)
    # tokens that the rationales alone hold are not reached by the student's pass
    batch = batch_of(method, [0, 1])
    only = set(batch.explicit.ids.flatten().tolist()) - set(batch.question.flatten().tolist())
    only -= set(batch.answer.flatten().tolist())
    assert only
    assert by_distance[0][sorted(only)].abs().sum() == 0


def test_without_distance_and_teacher_it_is_the_latents_alone():
    method = build(gamma=0.0)
    torch.manual_seed(0)
    alone = LoRi(Backbone(tokenizer="synthetic", config=TINY), student_init="base", latents=3, template=Template())
    alone.configure_model()
    alone.student.load_state_dict(method.student.state_dict())
    batch = batch_of(method, [0, 1, 2])
    total, parts = method.losses(batch)
    assert_close(total - parts["teacher"], alone.losses(batch)[0])


@pytest.mark.parametrize("gamma", [-1.0, float("nan")])
def test_a_weight_below_nothing_is_refused(gamma):
    with pytest.raises(LoriError, match=f"model.gamma is {gamma}: give 0 or more"):
        build(gamma=gamma)


def test_a_published_mean_is_said_to_be_of_the_batch():
    named = "the cross-entropies are means over the batch's tokens"
    assert named in build(peer_compat=True, drop_last_step=True).over_batch
    assert named not in build().over_batch


def test_peer_compat_wants_the_last_step_left_out_and_freezes_the_markers():
    with pytest.raises(LoriError, match=r"set data\.template\.drop_last_step"):
        build(peer_compat=True)
    lora = LoRA(rank=2, alpha=4, targets=["q_proj"])
    assert build(lora=lora).student.markers.requires_grad
    method = build(lora=lora, peer_compat=True, drop_last_step=True)
    assert not method.student.markers.requires_grad
    total, _ = method.losses(batch_of(method, [0, 1]))
    total.backward()
    reached = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, parameter in method.named_parameters() if parameter.requires_grad}
