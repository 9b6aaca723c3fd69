"""The losses between a student's and a teacher's statistics, each as one value a problem.

A reconstruction: the published description names the statistics, not the distances between them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss


def standardised_smooth_l1(student: Tensor, teacher: Tensor, deviation: Tensor, delta: float = 1.0) -> Tensor:
    r"""Mean over entries of smooth-L1((student - teacher) / deviation).

    smooth-L1(x) = x^2 / (2 delta) where |x| < delta, |x| - delta / 2 elsewhere.

    Args:
        student: (B, ...).
        teacher: (B, ...).
        deviation: Standard deviations, broadcastable to (...), positive.
        delta: Where the loss turns from quadratic to linear, in standard deviations.

    Returns:
        (B,).
    """
    difference = (student - teacher) / deviation
    return smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=delta).flatten(1).mean(1)


def relative_frobenius(student: Tensor, teacher: Tensor, epsilon: Tensor, whitening: Tensor | None = None) -> Tensor:
    r"""Mean over blocks of `|W (Sigma_S - Sigma_T) W|_F^2 / (|W Sigma_T W|_F^2 + epsilon)`.

    Args:
        student: Sigma_S (B, blocks, d, d).
        teacher: Sigma_T (B, blocks, d, d).
        epsilon: (blocks,), positive.
        whitening: W = S^-1 (blocks, d, d), symmetric; None is the identity.

    Returns:
        (B,).
    """
    difference = student - teacher
    if whitening is not None:
        difference = whitening @ difference @ whitening
        teacher = whitening @ teacher @ whitening
    return (_squared_norm(difference) / (_squared_norm(teacher) + epsilon)).mean(1)


def relative_frobenius_floor(teacher: Tensor, rank: int, epsilon: Tensor, whitening: Tensor | None = None) -> Tensor:
    r"""The least `relative_frobenius` that a student matrix of rank at most `rank` can reach.

    By Eckart and Young, with eigenvalues lambda_1 >= lambda_2 >= ... of W Sigma_T W:
    `sum_(j > rank) lambda_j^2 / (sum_j lambda_j^2 + epsilon)`, mean over blocks.

    Args:
        teacher: Sigma_T (B, blocks, d, d).
        rank: Rank bound: K - 1 for the covariance of K latents, K for their raw moment.
        epsilon: (blocks,), positive.
        whitening: W (blocks, d, d); None is the identity.

    Returns:
        (B,).
    """
    if whitening is not None:
        teacher = whitening @ teacher @ whitening
    squares = torch.linalg.eigvalsh(teacher).square().sort(-1, descending=True).values
    return (squares[..., max(rank, 0) :].sum(-1) / (squares.sum(-1) + epsilon)).mean(1)


def _squared_norm(matrix: Tensor) -> Tensor:
    return matrix.square().sum((-2, -1))
