"""The rank over right answers against that over wrong ones, and what random divisions give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lori_pl.analysis import right_wrong
from lori_pl.analysis.right_wrong import DIVISIONS, Difference, compare_right_wrong, divide, effective_rank
from lori_pl.analysis.spectra import trajectory_spectra

LAYERS, HIDDEN, LONGEST = 3, 8, 4


def problems(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States (n, L, T, D) and mask (n, T): layers of different size, problems of different length."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, LAYERS, LONGEST, HIDDEN, generator=generator)
    hidden = hidden * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + torch.arange(8.0)
    mask = torch.arange(LONGEST)[None] < torch.randint(1, LONGEST + 1, (count, 1), generator=generator)
    return hidden, mask


def source(hidden, mask, size=5):
    """Gives the states of problems by number, in batches."""
    return lambda rows: lambda: ((hidden[part], mask[part]) for part in np.array_split(rows, -(-len(rows) // size)))


def test_it_is_the_effective_rank_of_the_spectra():
    hidden, mask = problems(12)
    found = effective_rank([states[keep] for states, keep in zip(hidden.transpose(1, 2), mask, strict=True)])
    spectra = trajectory_spectra(lambda: [(hidden, mask)])
    assert found == pytest.approx(spectra.modes["hidden"].effective_rank, rel=1e-5)


def test_a_division_keeps_the_numbers_of_steps_and_every_problem():
    steps = np.array([1, 2, 1, 3, 2, 1, 3, 1, 2, 2])
    right, wrong = np.array([0, 1, 3, 5, 8]), np.array([2, 4, 6, 7, 9])
    seen = set()
    for seed in range(40):
        one, two = divide(right, wrong, steps, np.random.default_rng(seed))
        assert sorted([*one, *two]) == list(range(10))
        assert sorted(steps[one]) == sorted(steps[two]) == sorted(steps[right])
        seen.add((0 in one, 3 in one))
    assert len(seen) == 4


def test_a_difference_is_found_and_none_is_not():
    hidden, mask = problems(40)
    steps = np.repeat([2, 3], 20)
    right, wrong = np.arange(0, 40, 2), np.arange(1, 40, 2)
    none = compare_right_wrong(source(hidden, mask), right, wrong, steps, 0)
    assert len(none.random) == DIVISIONS
    assert none.p > 0.1
    # what is answered right has fewer directions
    flat = hidden.clone()
    flat[right, ..., 3:] = 0
    some = compare_right_wrong(source(flat, mask), right, wrong, steps, 0)
    assert some.observed < -1
    assert some.p == pytest.approx(1 / (1 + DIVISIONS))
    ranks = [trajectory_spectra(source(flat, mask)(rows)).modes["hidden"].effective_rank for rows in (right, wrong)]
    assert some.observed == pytest.approx(ranks[0] - ranks[1], rel=1e-4)
    assert some.problems == 20
    assert compare_right_wrong(source(flat, mask, 3), right, wrong, steps, 0).random == pytest.approx(some.random)


def test_the_p_value_counts_both_directions():
    assert Difference(8, -2.0, [1.0, 2.0, -3.0, 0.0]).p == pytest.approx(3 / 5)
    assert "effective rank -2.0 where right (8 problems and as many; random divisions -3.0 to +2.0" in str(
        Difference(8, -2.0, [1.0, 2.0, -3.0, 0.0])
    )


def test_states_that_cannot_be_kept_are_not_compared(monkeypatch):
    monkeypatch.setattr(right_wrong, "_ELEMENTS", 100)
    hidden, mask = problems(20)
    assert compare_right_wrong(source(hidden, mask), np.arange(10), np.arange(10, 20), np.zeros(20, int), 0) is None
