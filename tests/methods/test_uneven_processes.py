"""Two processes that have unequal work: nobody waits for ever, and what comes out is what one process gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import in_group
from plain import TINY, batch_of, divide
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.data import synthetic_problems
from lori_pl.data.pairing import EncodedProblems, PairedBatch, paired_batch
from lori_pl.data.template import Template
from lori_pl.methods import LoRi
from lori_pl.methods.measuring import measure
from lori_pl.models import generation
from lori_pl.models.backbone import Backbone
from lori_pl.sharding import whole

pytestmark = pytest.mark.distributed


def made(**alignment) -> LoRi:
    """A student and another teacher of random weights, measured on rationales that have tokens."""
    torch.manual_seed(0)
    backbone = Backbone(tokenizer="synthetic", config=TINY)
    terms = [LowRankAlignment(rank_hidden=4, **alignment), AnchorAlignment()]
    method = LoRi(
        backbone, teacher=backbone, student_init="base", latents=3, terms=terms, template=Template(), max_new_tokens=12
    )
    method.configure_model()
    batch = batch_of(method, [0, 1, 2, 3, 4, 5])
    measure(method.named_terms, lambda _: [method.observed(batch, wants_student=True)])
    return method


def half_bare(method: LoRi, rows: list[int], bare: set[int]) -> PairedBatch:
    """A batch in which the rationales of some rows have no token that counts."""
    problems = synthetic_problems(4, 0, min_steps=2, max_steps=3)
    problems = [replace(problem, steps=["="]) if row in bare else problem for row, problem in enumerate(problems)]
    encoded = EncodedProblems(problems, method.student.encoder, "no_delimiters")
    return paired_batch(rows, np.array([len(problem.steps) for problem in problems]), encoded, None)


class Losses(nn.Module):
    """What DDP wraps."""

    def __init__(self, method: LoRi) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: PairedBatch):
        return self.method.losses(batch)


def step(rank, strategy, alignment, bare):
    method = made(**alignment)
    if strategy == "sharded":
        divide(method)
    losses = DistributedDataParallel(Losses(method)) if strategy == "ddp" else method.losses
    total, parts = losses(half_bare(method, [2 * rank, 2 * rank + 1], bare))
    total.backward()
    gradients = {name: whole(p.grad) for name, p in method.named_parameters() if p.requires_grad}
    return {"parts": {name: part.detach() for name, part in parts.items()}, "gradients": gradients}


@pytest.mark.parametrize("bare", [{2, 3}, {0, 1, 2, 3}], ids=["one process", "both"])
@pytest.mark.parametrize(
    ("strategy", "factors", "scope"),
    [
        ("ddp", "learned", "batch"),
        ("sharded", "shared", "batch"),
        pytest.param("ddp", "shared", "problem", marks=pytest.mark.slow),
        pytest.param("sharded", "learned", "problem", marks=pytest.mark.slow),
    ],
)
def test_a_process_whose_rationales_have_no_token(strategy, factors, scope, bare, tmp_path):
    """Its batch has trajectories of no width, or none in either has any."""
    alignment = {"student_factors": factors, "scope": scope}
    both = in_group(step, tmp_path, strategy, alignment, bare)
    method = made(**alignment)
    batch = half_bare(method, [0, 1, 2, 3], bare)
    assert batch.teacher.rationale_mask.any(1).tolist() == [row not in bare for row in range(4)]
    total, parts = method.losses(batch)
    total.backward()
    assert parts.keys() == {"task", "mean", "covariance", "anchor"}
    for name, part in parts.items():
        assert part.isfinite()
        assert_close(torch.stack([process["parts"][name] for process in both]).mean(), part.detach(), msg=name)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            for process in both:
                assert_close(
                    process["gradients"][name],
                    parameter.grad,
                    rtol=1e-4,
                    atol=1e-5,
                    msg=lambda text, name=name: f"{name}: {text}",
                )


def force(method: LoRi, batch: PairedBatch, ends: bool) -> torch.Tensor:
    """Generates answers that end at once, or never."""
    original, end = generation.choose, method.student.encoder.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            generation,
            "choose",
            lambda logits, *rest: original(logits.index_fill(-1, torch.tensor([end]), [-1e9, 1e9][ends]), *rest),
        )
        answers, _ = method.answer_batch(batch)
    return [(answer.text, answer.passes) for answer in answers]


def answer(rank, strategy, early):
    method = made().eval()
    if strategy == "sharded":
        divide(method)
    found = [force(method, batch_of(method, [2 * rank, 2 * rank + 1]), ends=rank == early) for _ in range(2)]
    dist.barrier()
    return found


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "sharded"])
def test_answers_that_end_at_once_in_one_process_and_never_in_the_other(strategy, early, tmp_path):
    both = in_group(answer, tmp_path, strategy, early)
    method = made().eval()
    for rank, found in enumerate(both):
        expected = force(method, batch_of(method, [2 * rank, 2 * rank + 1]), ends=rank == early)
        assert found == [expected] * 2
        # question, three latents less the last, which goes in with the answer prompt, and what was generated
        assert {passes for _, passes in expected} == {4 if rank == early else 4 + 11}
