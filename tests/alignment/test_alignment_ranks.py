"""Two processes equal one: pooled moments with their gradients, and a fit on rationales split between ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from forked import in_group

from lori_pl.alignment import LowRankAlignment, Signals, TrajectoryShape, batch_moments, trajectory_moments
from lori_pl.alignment.distributed import copy_from_first_rank

SHARES = (slice(0, 4), slice(4, 5))  # uneven, as the last batch of an epoch can be


def problems():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 4, generator=generator) < 0.7
    mask[:, 0] = True
    mask[1] = False
    return hidden, mask


def pooled_loss(hidden, mask, weight):
    moments = trajectory_moments(torch.einsum("bltd,de->blte", hidden, weight), mask)
    mean, second = batch_moments(moments, mask.any(1))
    return mean.square().sum() + second.pow(3).sum()


def fit(rows):
    hidden, mask = problems()
    term = LowRankAlignment(rank_hidden=3, student_factors="learned", covariance_loss="whitened", scope="batch")
    term.prepare(TrajectoryShape(2, 6), TrajectoryShape(2, 6), [])
    teacher = Signals(hidden[rows].float(), mask[rows])
    student = Signals(hidden[rows].flip(3).float(), mask[rows])
    for sweep in range(term.sweeps):
        term.begin_sweep(sweep)
        term.observe(sweep, teacher, student)
        term.end_sweep(sweep)
    losses = term(Signals(hidden[rows, :, :2].float()), term.teacher_statistics(teacher))
    return {name: tensor.detach() for name, tensor in {**term.state_dict(), **losses}.items()}


def work(rank):
    torch.manual_seed(rank)  # so that unsynchronised starts would show
    hidden, mask = problems()
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    loss = pooled_loss(hidden[SHARES[rank]], mask[SHARES[rank]], weight)
    loss.backward()
    dist.all_reduce(weight.grad)
    module = torch.nn.BatchNorm1d(3)
    torch.nn.init.constant_(module.weight, rank + 7.0)
    module.running_mean += rank + 7
    copy_from_first_rank(module)
    assert (module.weight == 7).all()
    assert (module.running_mean == 7).all()
    return {"loss": loss.detach(), "gradient": weight.grad / len(SHARES), "fit": fit(SHARES[rank])}


def test_two_ranks_equal_one_process(tmp_path):
    ranks = in_group(work, tmp_path)
    hidden, mask = problems()
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    loss = pooled_loss(hidden, mask, weight)
    loss.backward()
    whole = fit(slice(None))
    for found in ranks:
        assert torch.allclose(found["loss"], loss.detach())
        assert torch.allclose(found["gradient"], weight.grad)  # after DDP's mean over ranks
        for name, tensor in whole.items():
            assert torch.allclose(found["fit"][name].float(), tensor.float(), atol=1e-4, rtol=1e-4), name
            assert torch.equal(found["fit"][name], ranks[0]["fit"][name]), name


pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed"),
]
