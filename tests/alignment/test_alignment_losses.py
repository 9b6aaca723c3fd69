"""The distances between statistics, worked by hand, and the least that K latents can reach."""

from __future__ import annotations

import pytest
import torch

from lori_pl.alignment.losses import relative_frobenius, relative_frobenius_floor, standardised_smooth_l1


def test_smooth_l1_in_standard_deviations():
    student = torch.tensor([[1.0, 6.0], [0.0, 0.0]])
    deviation = torch.tensor([2.0, 3.0])
    # 1 / 2 = 0.5 -> 0.125; 6 / 3 = 2 -> 1.5; mean 0.8125
    value = standardised_smooth_l1(student, torch.zeros(2, 2), deviation)
    assert torch.allclose(value, torch.tensor([0.8125, 0.0]))
    # delta 4: 0.25 / 8 = 0.03125; 4 / 8 = 0.5; mean 0.265625
    value = standardised_smooth_l1(student, torch.zeros(2, 2), deviation, delta=4.0)
    assert torch.allclose(value, torch.tensor([0.265625, 0.0]))


def test_relative_frobenius_per_block():
    student = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
    teacher = torch.tensor([[[[2.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]]])
    # block 0: (1 + 1 + 1 + 0) / (4 + 1 + 1) = 0.5; block 1: 4 / (4 + 4) = 0.5
    value = relative_frobenius(student, teacher, torch.tensor([1.0, 4.0]))
    assert torch.allclose(value, torch.tensor([0.5]))
    # block 0 between W = diag(1/2, 1): differences -1/4, 1/2, 1/2, 0 -> 0.5625; teacher 0.5, 1 -> 1.25 + 1
    whitening = torch.stack([torch.diag(torch.tensor([0.5, 1.0])), torch.eye(2)])
    value = relative_frobenius(student, teacher, torch.tensor([1.0, 4.0]), whitening)
    assert torch.allclose(value, torch.tensor([(0.5625 / 2.25 + 0.5) / 2]))


def test_a_teacher_without_variation_gives_a_finite_loss():
    value = relative_frobenius(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([0.1]))
    assert torch.allclose(value, torch.tensor([40.0]))


@pytest.mark.parametrize("is_whitened", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_the_floor_is_reached_by_the_best_matrix_of_that_rank_and_by_no_other(rank, is_whitened):
    torch.manual_seed(0)
    root = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    teacher = root @ root.mT
    epsilon = torch.tensor([0.3, 0.7], dtype=torch.float64)
    whitening = torch.diag_embed(torch.rand(2, 5, dtype=torch.float64) + 0.5) if is_whitened else None
    floor = relative_frobenius_floor(teacher, rank, epsilon, whitening)
    seen = teacher if whitening is None else whitening @ teacher @ whitening
    values, vectors = torch.linalg.eigh(seen)
    values[..., : 5 - rank] = 0
    best = (vectors * values.unsqueeze(-2)) @ vectors.mT
    if whitening is not None:
        best = whitening.inverse() @ best @ whitening.inverse()
    assert torch.allclose(relative_frobenius(best, teacher, epsilon, whitening), floor, atol=1e-12)
    for _ in range(20):
        other = torch.randn(1, 2, 5, max(rank, 1), dtype=torch.float64) * (rank > 0)
        assert relative_frobenius(other @ other.mT, teacher, epsilon, whitening) >= floor - 1e-12
