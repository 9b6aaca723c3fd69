"""Angles and shares of energy against plain linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from lori_pl.analysis.subspaces import captured_energy, compare_subspaces, principal_angles, random_angles


def basis(dimension: int, rank: int, seed: int) -> torch.Tensor:
    normal = torch.randn(dimension, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(normal)[0]


def test_known_angles():
    axes = torch.eye(4, dtype=torch.float64)
    turned = torch.stack([axes[0], np.cos(0.3) * axes[1] + np.sin(0.3) * axes[2]], dim=1)
    found = principal_angles(axes[:, :2], turned)
    assert found == pytest.approx([0, np.degrees(0.3)], abs=1e-6)
    assert principal_angles(axes[:, :2], axes[:, 2:]) == pytest.approx([90, 90])


@pytest.mark.parametrize("ranks", [(3, 3), (2, 5)])
def test_angles_are_scipys_and_the_arc_cosines_of_the_product(ranks):
    one, two = basis(9, ranks[0], 0), basis(9, ranks[1], 1)
    found = principal_angles(one, two)
    assert (np.diff(found) >= 0).all()
    assert np.allclose(found, np.degrees(np.sort(subspace_angles(one.numpy(), two.numpy()))))
    cosines = torch.linalg.svdvals(one.T @ two)
    assert np.allclose(found, np.degrees(np.arccos(cosines.clamp(max=1).numpy())), atol=1e-5)
    # neither the columns' order nor their scale matters
    assert np.allclose(principal_angles(3 * one.flip(1), two), found)


def test_pairs_of_one_space_only_and_random_ones_beside_them():
    bases = {"a": basis(8, 2, 0), "b": basis(8, 3, 1), "other": basis(5, 2, 2)}
    found = compare_subspaces(bases, seed=0)
    assert list(found) == ["a | b"]
    assert found["a | b"]["ranks"] == [2, 3]
    assert found["a | b"]["random"] == random_angles(8, (2, 3), 0).tolist()
    assert len(found["a | b"]["angles"]) == 2
    # a subspace of nearly everything is met by every other
    assert random_angles(8, (2, 7), 0)[0] == pytest.approx(0, abs=1e-5)


def test_captured_energy_is_that_of_the_projected_states():
    states = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states[:, 0] *= 5
    gram = states.T @ states
    found = captured_energy(gram, basis(6, 4, 3))
    for rank in range(1, 5):
        projected = states @ basis(6, 4, 3)[:, :rank]
        assert float(found[rank - 1]) == pytest.approx(float(projected.square().sum() / states.square().sum()))
    values, vectors = torch.linalg.eigh(gram)
    own = captured_energy(gram, vectors.flip(1))
    torch.testing.assert_close(own, values.flip(0).cumsum(0) / values.sum())
    assert captured_energy(torch.zeros(3, 3), torch.eye(3)).tolist() == [1, 1, 1]
