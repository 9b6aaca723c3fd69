"""What must hold of every method: no problem knows the others, nor where padding is, nor is a gradient lost."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain import TINY, batch_of, student
from torch.testing import assert_close

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.data.pairing import EncodedProblems, paired_batch
from lori_pl.data.synthetic import synthetic_problems
from lori_pl.data.template import Template
from lori_pl.methods import (
    CODI,
    Coconut,
    ExplicitCoT,
    ICoTSI,
    KaVa,
    LoRi,
    Method,
    NoCoT,
    Pause,
    PCCoT,
    SIMCoT,
    SIMCoTCoconut,
)
from lori_pl.methods.distillation import Distillation
from lori_pl.methods.losses import explicit_cross_entropy
from lori_pl.methods.measuring import measure
from lori_pl.methods.stages import StagedMethod, Stages
from lori_pl.models.backbone import Backbone, LoRA


class LoRiWithTerms(LoRi):
    """LoRi with mean, covariance and anchor: a case of its own."""


STAGED = {"stages": Stages(steps=2)}
COCONUT = {**STAGED, "latents_a_step": 1, "latent_stages": 3}
METHODS = {
    ExplicitCoT: {},
    NoCoT: {},
    Pause: {"latents": 3},
    LoRi: {"latents": 3},
    LoRiWithTerms: {"latents": 3},
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
WORDS_ALONE = {"ExplicitCoT", "ICoTSI-first"}
"""Those that read one sequence in words, where the question is never padded by itself."""
# whose parts in a batch are scaled by the batch, or weighted by lengths
OF_THE_BATCH = {"distillation", "keys", "values"}
# its positions are absolute: where they are relative, a shift of all of a row's would go unseen
GPT2 = {name: value for name, value in TINY.items() if name != "intermediate_size"} | {"model_type": "gpt2"}
LORA = LoRA(rank=2, alpha=4, targets=["q_proj", "up_proj"])


def build(kind, stage=None, lora=None, config=TINY, **changes):
    torch.manual_seed(0)
    backbone = Backbone(tokenizer="synthetic", config=config, lora=lora)
    settings = {"template": Template()} | METHODS[kind] | changes
    if issubclass(kind, Distillation):
        settings["student_init"] = "base"
    if kind is LoRiWithTerms:
        settings["teacher"] = Backbone(tokenizer="synthetic", config=TINY)
        settings["alignment"] = LowRankAlignment(rank_hidden=4, student_factors="learned")
        settings["anchor"] = AnchorAlignment()
    method = kind(backbone, **settings)
    method.configure_model()
    if issubclass(kind, StagedMethod):
        method.enter(method.final_stage if stage is None else stage)
    if kind is LoRiWithTerms:
        seen = method.observed(make(method, list(range(8))), wants_student=True)
        measure(method.named_terms, lambda _sweep: [seen])
        assert all(term.is_fitted for term in method.active_terms)
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


def padded_on_the_left(explicit):
    """The explicit sequences, all of them to the right."""
    width = explicit.ids.shape[1]
    shift = width - explicit.mask.sum(1)
    ids, mask = (
        torch.stack([row.roll(int(columns)) for row, columns in zip(tensor, shift, strict=True)])
        for tensor in (explicit.ids, explicit.mask)
    )
    return dataclasses.replace(
        explicit,
        ids=ids,
        mask=mask,
        target_index=explicit.target_index + shift[explicit.target_index // width],
        rationale_index=explicit.rationale_index + shift[:, None],
        anchor=explicit.anchor + shift,
        begin=explicit.begin + shift,
        anchored=int((explicit.anchor + shift).max()) + 1,
    )


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


@pytest.mark.parametrize("kind", [kind for kind in METHODS if not issubclass(kind, StagedMethod)])
def test_a_model_has_positions_for_a_batch_where_it_has_them_for_each_problem(kind):
    """A long question beside a long rationale: padding needs no position behind the last one."""
    (asks,), (writes,) = (synthetic_problems(1, 0, min_steps=steps, max_steps=steps) for steps in (2, 7))
    asks = dataclasses.replace(asks, question=" ".join([asks.question] * 4))
    method = build(kind, config=GPT2)
    encoded = EncodedProblems([asks, writes], method.student.encoder, steps=method.reads_pieces)

    def batch(*rows):
        return paired_batch(rows, np.array([2, 7]), encoded, None, pieces=method.reads_pieces)

    longest = int(max(encoded.lengths().max(), encoded.student_lengths(method.student.thought.latents).max()))
    assert longest < encoded.questions.lengths.max() + encoded.rationales.lengths.max()
    method = build(kind, config={**GPT2, "max_position_embeddings": longest}).eval()
    task, alone = method.task_losses(batch(0, 1)), [method.losses(batch(row))[1] for row in (0, 1)]
    _, together = method.losses(batch(0, 1))
    assert_close(task.mean(), torch.stack([parts["task"] for parts in alone]).mean(), atol=1e-5, rtol=1e-5)
    for name in together.keys() - OF_THE_BATCH:
        assert_close(together[name], torch.stack([parts[name] for parts in alone]).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "stage"), [case for case in AT_BOTH_ENDS if case.id not in WORDS_ALONE])
def test_it_does_not_matter_where_questions_are_padded(kind, stage):
    method = build(kind, stage, config=GPT2).eval()
    batch = make(method, [0, 1, 2], longer=True)
    assert not batch.question_mask.all()
    (left, parts), (right, others) = method.losses(batch), method.losses(padded_on_the_right(batch))
    assert_close(left, right, atol=1e-5, rtol=1e-5)
    for name, value in parts.items():
        assert_close(value, others[name], atol=1e-5, rtol=1e-5, msg=name)
    # and it does matter what they are
    others_questions = {name: getattr(batch, name).roll(1, 0) for name in ("question", "question_mask")}
    assert not torch.allclose(method.losses(dataclasses.replace(batch, **others_questions))[0], left, rtol=1e-3)


@pytest.mark.parametrize(("kind", "stage"), [case for case in AT_BOTH_ENDS if case.id in WORDS_ALONE])
def test_it_does_not_matter_where_sequences_in_words_are_padded(kind, stage, monkeypatch):
    method = build(kind, stage, config=GPT2).eval()
    batch = make(method, [0, 1, 2], longer=True)
    right, moved = method.losses(batch)[0], []

    def to_the_left(reasoner, explicit):
        moved.append(padded_on_the_left(explicit))
        return explicit_cross_entropy(reasoner, moved[-1])

    monkeypatch.setattr(sys.modules[kind.__module__], "explicit_cross_entropy", to_the_left)
    left = method.losses(batch)[0]
    assert [explicit.mask[:, 0].all().item() for explicit in moved] == [False]
    assert_close(left, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in (ExplicitCoT,)])
def test_what_the_student_is_asked_does_not_depend_on_the_rationale(kind):
    """In the last stage of a staged method, where no step is left in words."""
    method = build(kind)
    _, parts = method.losses(make(method, [0, 1, 2]))
    _, other = method.losses(make(method, [0, 1, 2], swap=True))
    assert torch.equal(parts["task"], other["task"])
    for name in parts.keys() - {"task"}:
        assert not torch.equal(parts[name], other[name]), name


def test_lori_knows_rationales_through_its_teacher_alone():
    method = build(LoRiWithTerms)
    batch, other = make(method, [0, 1, 2]), make(method, [0, 1, 2], swap=True)
    assert not torch.equal(batch.explicit.ids, other.explicit.ids)
    total, parts = method.losses(batch)
    assert parts.keys() == {"task", "mean", "covariance", "anchor"}
    held, others = method.losses(dataclasses.replace(other, teacher=batch.teacher))
    assert torch.equal(total, held)
    assert all(torch.equal(parts[name], others[name]) for name in parts)


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
    assert not any(name.startswith("teacher.") for name in trains)
    if lora is not None:
        apart = ("lora_", "thought.", "markers", "bridge", "terms.")
        assert all(any(part in name for part in apart) for name in trains)


@pytest.mark.parametrize("kind", [LoRi, LoRiWithTerms, CODI, PCCoT, KaVa, SIMCoT, Coconut, SIMCoTCoconut])
def test_one_latent_is_enough(kind):
    one = {"latents_a_step": 1, "latent_stages": 1} if issubclass(kind, Coconut) else {"latents": 1}
    method = build(kind, **one)
    batch = make(method, [0, 1])
    total, parts = method.losses(batch)
    answers = [student(method, batch, row) for row in range(2)]
    assert all(len(latents) == 1 for _, _, latents in answers)
    expected = torch.stack([losses[batch.anchor :].mean() for losses, _, _ in answers]).mean()
    assert_close(parts["task"], expected, atol=1e-5, rtol=1e-5)
    total.backward()
    assert {name for name, each in method.named_parameters() if each.grad is not None and each.grad.any()} == {
        name for name, each in method.named_parameters() if each.requires_grad
    }


def test_every_batch_of_every_process_draws_its_own_dropout():
    drawn = {}
    for seed, number, rank in itertools.product((0, 1), range(3), (0, 1)):
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=number))
        run = SimpleNamespace(trainer=SimpleNamespace(fit_loop=loop), data=SimpleNamespace(seed=seed), global_rank=rank)
        Method.on_train_batch_start(run, None, 0)  # its number in the training counts, not that in the epoch
        drawn[seed, number, rank] = torch.rand(1).item()
    assert len(set(drawn.values())) == len(drawn)
