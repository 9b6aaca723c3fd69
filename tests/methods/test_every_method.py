"""What must hold of every method: no problem knows the others, nor where padding is, nor is a gradient lost."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from plain import TINY, batch_of
from torch.testing import assert_close

from lori_pl.data.template import Template
from lori_pl.methods import (
    CODI,
    Coconut,
    ExplicitCoT,
    ICoTSI,
    KaVa,
    LoRi,
    NoCoT,
    Pause,
    PCCoT,
    SIMCoT,
    SIMCoTCoconut,
)
from lori_pl.methods.distillation import Distillation
from lori_pl.methods.stages import StagedMethod, Stages
from lori_pl.models.backbone import Backbone, LoRA

STAGED = {"stages": Stages(steps=2)}
COCONUT = {**STAGED, "latents_a_step": 1, "latent_stages": 3}
METHODS = {
    ExplicitCoT: {},
    NoCoT: {},
    Pause: {"latents": 3},
    LoRi: {"latents": 3},
    CODI: {"latents": 3},
    PCCoT: {"latents": 4, "passes": 2},
    KaVa: {"latents": 4, "passes": 2},
    SIMCoT: {"latents": 2},
    Coconut: COCONUT,
    SIMCoTCoconut: COCONUT,
    ICoTSI: {**STAGED, "remove_all": 8, "smoothing": None},
}
AT_BOTH_ENDS = [
    pytest.param(kind, stage, id=f"{kind.__name__}-{name}" if issubclass(kind, StagedMethod) else kind.__name__)
    for kind in METHODS
    for stage, name in ((1, "first"), (None, "last"))
    if stage is None or issubclass(kind, StagedMethod)
]
"""Every method; staged ones in a first stage and in their last."""
# whose parts in a batch are scaled by the batch, or weighted by lengths
OF_THE_BATCH = {"distillation", "keys", "values"}
LORA = LoRA(rank=2, alpha=4, targets=["q_proj", "up_proj"])


def build(kind, stage=None, lora=None, **changes):
    torch.manual_seed(0)
    backbone = Backbone(tokenizer="synthetic", config=TINY, lora=lora)
    settings = {"template": Template()} | METHODS[kind] | changes
    if issubclass(kind, Distillation):
        settings["student_init"] = "base"
    method = kind(backbone, **settings)
    method.configure_model()
    if issubclass(kind, StagedMethod):
        method.enter(method.final_stage if stage is None else stage)
    return method


def make(method, rows, **settings):
    return batch_of(method, rows, pieces=method.reads_pieces, **settings)


def padded_on_the_right(batch):
    lengths = batch.question_mask.sum(1)
    question, mask = torch.zeros_like(batch.question), torch.zeros_like(batch.question_mask)
    for row, length in enumerate(lengths.tolist()):
        question[row, :length] = batch.question[row, -length:]
        mask[row, :length] = True
    return dataclasses.replace(batch, question=question, question_mask=mask)


@pytest.mark.parametrize(("kind", "stage"), AT_BOTH_ENDS)
def test_each_problems_losses_are_its_own_in_any_batch(kind, stage):
    method = build(kind, stage)
    # Coconut's mean is over tokens: there, answers of one, and in its stages rationales of like length
    rows, longer = [0, 1, 2, 3, 4, 5], not issubclass(kind, Coconut)
    if issubclass(kind, Coconut) and stage is not None:
        steps = make(method, rows).steps.tolist()
        rows = [row for row in rows if steps[row] == steps[0]]
    assert len(rows) > 1
    _, together = method.losses(make(method, rows, longer=longer))
    alone = [method.losses(make(method, [row], longer=longer))[1] for row in rows]
    for name in together.keys() - OF_THE_BATCH:
        mean = torch.stack([parts[name] for parts in alone]).mean()
        assert_close(together[name], mean, atol=1e-5, rtol=1e-5, msg=name)
    task = method.task_losses(make(method, rows, longer=True))
    alone = [method.task_losses(make(method, [row], longer=True)) for row in rows]
    assert_close(task, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "stage"), [case for case in AT_BOTH_ENDS if case.values[0] is not ExplicitCoT])
def test_it_does_not_matter_where_questions_are_padded(kind, stage):
    method = build(kind, stage)
    batch = make(method, [0, 1, 2], longer=True)
    assert not batch.question_mask.all()
    (left, parts), (right, others) = method.losses(batch), method.losses(padded_on_the_right(batch))
    assert_close(left, right, atol=1e-5, rtol=1e-5)
    for name, value in parts.items():
        assert_close(value, others[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in (ExplicitCoT,)])
def test_what_the_student_is_asked_does_not_depend_on_the_rationale(kind):
    """In the last stage of a staged method, where no step is left in words."""
    method = build(kind)
    _, parts = method.losses(make(method, [0, 1, 2]))
    _, other = method.losses(make(method, [0, 1, 2], swap=True))
    assert torch.equal(parts["task"], other["task"])
    for name in parts.keys() - {"task"}:
        assert not torch.equal(parts[name], other[name]), name


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", METHODS)
def test_gradients_reach_all_that_trains_and_nothing_else(kind, lora):
    method = build(kind, lora=lora)
    if lora is not None:
        with torch.no_grad():  # adapters start at zero, where one half of them gets no gradient
            for name, parameter in method.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
    total, _ = method.losses(make(method, [0, 1, 2]))
    total.backward()
    named = dict(method.named_parameters())
    reached = {name for name, parameter in named.items() if parameter.grad is not None and parameter.grad.any()}
    trains = {name for name, parameter in named.items() if parameter.requires_grad}
    assert reached == trains
    if lora is not None:
        assert all("lora_" in name or "thought." in name or "markers" in name or "bridge" in name for name in trains)


@pytest.mark.parametrize("kind", [LoRi, CODI, PCCoT, KaVa, SIMCoT])
def test_one_latent_is_enough(kind):
    total, _ = (method := build(kind, latents=1)).losses(make(method, [0, 1]))
    total.backward()
    assert total.isfinite()
