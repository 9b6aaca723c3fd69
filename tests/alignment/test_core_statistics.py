"""CoreStatistics: sums over batches, against the definitions on all tokens at once; the cores are far from centred."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lori_pl.alignment import trajectory_moments
from lori_pl.alignment.core_statistics import CoreStatistics

LAYERS, TOKENS, RANK = 2, 6, 3


def cores(problems=40, seed=0):
    """Cores (B, r_L, T, r_D) whose means lie about five deviations from zero, and masks; every tenth has no token."""
    generator = torch.Generator().manual_seed(seed)
    shift = 5 * torch.randn(problems, LAYERS, 1, RANK, generator=generator)
    core = torch.randn(problems, LAYERS, TOKENS, RANK, generator=generator) + shift + 7
    lengths = torch.randint(1, TOKENS + 1, (problems,), generator=generator)
    lengths[::10] = 0
    return core, torch.arange(TOKENS) < lengths.unsqueeze(1)


def observed(core, mask, second_order):
    statistics = CoreStatistics((LAYERS, RANK), (LAYERS, RANK), second_order, False, torch.device("cpu"))
    for part in (slice(0, 7), slice(7, 8), slice(8, None)):
        statistics.observe(core[part], mask[part], trajectory_moments(core[part], mask[part], second_order))
    return statistics


def tokens_of(core, mask):
    """By problem, the kept tokens (n, r_L, r_D); problems without any left out."""
    return [c[:, m].permute(1, 0, 2).double().numpy() for c, m in zip(core, mask, strict=True) if m.any()]


def test_the_deviation_is_that_of_all_tokens_about_their_mean():
    core, mask = cores()
    found = observed(core, mask, "none").deviation(0.0).numpy()
    np.testing.assert_allclose(found, np.concatenate(tokens_of(core, mask)).std(0), rtol=1e-5)


@pytest.mark.parametrize("second_order", ["covariance", "raw_moment"])
def test_pooled_is_that_of_all_tokens_each_problem_weighing_the_same(second_order):
    core, mask = cores()
    problems = tokens_of(core, mask)
    centre = np.mean([tokens.mean(0) for tokens in problems], 0) if second_order == "covariance" else 0.0
    expected = np.mean([np.einsum("tki,tkj->kij", t - centre, t - centre) / len(t) for t in problems], 0)
    found = observed(core, mask, second_order).second(pooled=True).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_mean_second_order_is_over_problems_of_several_tokens():
    core, mask = cores()
    several = [tokens for tokens in tokens_of(core, mask) if len(tokens) > 1]
    assert len(several) < len(tokens_of(core, mask))
    centred = [tokens - tokens.mean(0) for tokens in several]
    expected = np.mean([np.einsum("tki,tkj->kij", t, t) / len(t) for t in centred], 0)
    found = observed(core, mask, "covariance").second(pooled=False).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
