"""Subspaces compared: principal angles, and what of one set of trajectories lies in the subspace of another."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from lori_pl.alignment.stiefel import orthonormal_columns

DRAWS = 16


def principal_angles(one: Tensor, two: Tensor) -> np.ndarray:
    """Principal angles between two column spaces, in degrees, ascending: 0 is a shared direction, 90 none.

    Args:
        one: (D, r) of full column rank.
        two: (D, q), likewise.

    Returns:
        (min(r, q),) angles.

    Source:
        A. Björck, G. H. Golub, "Numerical methods for computing angles between linear subspaces", Mathematics of
        Computation 27 (1973); `scipy.linalg.subspace_angles`.
    """
    pair = (one.detach().double().cpu().numpy(), two.detach().double().cpu().numpy())
    return np.degrees(subspace_angles(*pair))[::-1]


def random_angles(dimension: int, ranks: tuple[int, int], seed: int) -> np.ndarray:
    """Mean principal angles of subspaces drawn at random: what two that have nothing to do with each other give.

    Args:
        dimension: D.
        ranks: Their ranks.
        seed: Seed of the `DRAWS` pairs.

    Returns:
        (min(ranks),) degrees, ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(DRAWS):
        normal = [torch.randn(dimension, rank, generator=generator, dtype=torch.float64) for rank in ranks]
        draws.append(principal_angles(*(orthonormal_columns(each) for each in normal)))
    return np.mean(draws, axis=0)


def compare_subspaces(bases: dict[str, Tensor], seed: int) -> dict[str, Any]:
    """Angles between every two subspaces of one space, with those of random ones of the same ranks.

    Args:
        bases: Orthonormal bases (D, r) by name, in spaces of possibly different D: only like spaces are compared.
        seed: Seed of the random ones.

    Returns:
        By ``ONE | TWO``: ``ranks``, ``angles`` and ``random`` in degrees.
    """
    found = {}
    known: dict[tuple[int, int, int], np.ndarray] = {}
    for (name, one), (other, two) in combinations(bases.items(), 2):
        if one.shape[0] != two.shape[0]:
            continue
        key = (one.shape[0], one.shape[1], two.shape[1])
        if key not in known:
            known[key] = random_angles(key[0], key[1:], seed)
        found[f"{name} | {other}"] = {
            "ranks": list(key[1:]),
            "angles": principal_angles(one, two).tolist(),
            "random": known[key].tolist(),
        }
    return found


def captured_energy(gram: Tensor, basis: Tensor) -> Tensor:
    """Share of the energy of trajectories in a growing subspace, `tr(U_k^T G U_k) / tr(G)` for its first k directions.

    A random subspace of rank k holds k / D of it on average.

    Args:
        gram: G (D, D), Gram matrix of their hidden mode.
        basis: U (D, r), orthonormal columns.

    Returns:
        (r,) for k = 1 to r; ones for trajectories of zeros.
    """
    basis = basis.detach().to(gram)
    total = gram.trace()
    along = torch.einsum("dr,de,er->r", basis, gram, basis)
    return along.cumsum(0) / total if total > 0 else torch.ones_like(along)
