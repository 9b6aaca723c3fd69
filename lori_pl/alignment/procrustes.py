"""Orthogonal Procrustes with one rotation a mode: two bases of the same subspaces brought onto the same axes."""

from __future__ import annotations

import torch
from torch import Tensor

from lori_pl.alignment.tucker import leading_sign

_ITERATIONS = 1000
_TOLERANCE = 1e-14


def mode_procrustes(cross: Tensor) -> tuple[Tensor, Tensor]:
    r"""Rotations R_L, R_D that bring cores G'_i onto cores G_i.

    They minimise `sum_i |R_L^T G'_i R_D - G_i|^2` over orthogonal matrices, that is, maximise
    `sum_abcd cross[a, b, c, d] R_L[a, c] R_D[b, d]`. With one of them fixed, the other is the orthogonal polar factor
    of an r x r matrix, so the objective rises at every alternation. The modes share sign and order ambiguities, so
    that alternation from the identity can end at a poor stationary point (where energies are nearly equal, often); it
    also starts from the objective's spectral relaxation, rotations loosened to matrices of unit norm, and the better
    end counts. Rotated copies were brought back exactly in every case tried.

    Args:
        cross: (r_L, r_D, r_L, r_D), `sum_i G'_i[a, b] G_i[c, d]`, fp64.

    Returns:
        R_L (r_L, r_L) and R_D (r_D, r_D); of the two pairs that differ by a sign of both and do the same, the one in
        which R_L's largest entry (the first of equals) is positive.
    """
    identity = torch.eye(cross.shape[1], dtype=cross.dtype, device=cross.device)
    ends = [_alternate(cross, start) for start in (identity, _spectral_start(cross))]
    _, layer_rotation, hidden_rotation = max(ends, key=lambda end: end[0])
    sign = leading_sign(layer_rotation.reshape(-1, 1))
    return sign * layer_rotation, sign * hidden_rotation


def _alternate(cross: Tensor, hidden_rotation: Tensor) -> tuple[float, Tensor, Tensor]:
    previous = -float("inf")
    for _ in range(_ITERATIONS):
        layer_rotation = _polar(torch.einsum("abcd,bd->ac", cross, hidden_rotation))
        by_hidden = torch.einsum("abcd,ac->bd", cross, layer_rotation)
        hidden_rotation = _polar(by_hidden)
        objective = float((by_hidden * hidden_rotation).sum())
        if objective - previous <= _TOLERANCE * abs(objective):
            break
        previous = objective
    return objective, layer_rotation, hidden_rotation


def _spectral_start(cross: Tensor) -> Tensor:
    """Hidden rotation from the objective's maximum over matrices of unit norm: a pair of leading singular vectors."""
    layers, hidden = cross.shape[:2]
    by_mode = cross.transpose(1, 2).reshape(layers**2, hidden**2)
    if layers <= hidden:
        leading = torch.linalg.eigh(by_mode @ by_mode.mT)[1][:, -1] @ by_mode
    else:
        leading = torch.linalg.eigh(by_mode.mT @ by_mode)[1][:, -1]
    return _polar(leading.reshape(hidden, hidden))


def _polar(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to `matrix`."""
    left, _, right = torch.linalg.svd(matrix)
    return left @ right
