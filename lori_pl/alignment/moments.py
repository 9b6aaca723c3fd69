"""First- and second-order statistics of a trajectory over its tokens, per problem or pooled over a batch.

The token mode is averaged out, so a rationale of many tokens can meet a handful of latents.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lori_pl.alignment.distributed import sum_across_ranks
from lori_pl.alignment.precision import at_least_float32, autocast_off
from lori_pl.errors import LoriError

SecondOrder = Literal["covariance", "raw_moment", "none"]


class Moments(NamedTuple):
    """Statistics over tokens: `mean` (B, ..., D), `second` (B, ..., D, D) or None where no second order is asked."""

    mean: Tensor
    second: Tensor | None


def trajectory_moments(hidden: Tensor, mask: Tensor | None = None, second_order: SecondOrder = "covariance") -> Moments:
    r"""Masked mean and second-order statistic over the token dimension.

    With the kept tokens t = 1..n of one problem,

        mu = 1/n sum_t h_t
        covariance: Sigma = 1/n sum_t (h_t - mu)(h_t - mu)^T       raw_moment: Sigma = 1/n sum_t h_t h_t^T

    Both depend neither on the tokens' order nor on their number: a trajectory repeated token by token has the same
    statistics. One token has covariance exactly zero. A problem without tokens has zeros, with a gradient (of zero)
    path to `hidden`. What stands at masked positions, NaN included, reaches neither values nor gradients. Computed in
    at least fp32, outside autocast.

    Args:
        hidden: Trajectories (B, ..., T, D), for instance (B, T, D) or (B, L, T, D).
        mask: (B, T), true or non-zero where a token counts; None counts all.
        second_order: `covariance`, `raw_moment`, or `none` (`second` is None).

    Returns:
        `Moments(mean (B, ..., D), second (B, ..., D, D))`.

    Raises:
        LoriError: If `hidden` has fewer than three dimensions, or the mask is not (B, T).
    """
    if hidden.dim() < 3:
        raise LoriError(
            f"trajectory_moments: hidden has shape {tuple(hidden.shape)}; give (batch, ..., tokens, features)"
        )
    batch, tokens = hidden.shape[0], hidden.shape[-2]
    if mask is not None and mask.shape != (batch, tokens):
        raise LoriError(
            f"trajectory_moments: the mask has shape {tuple(mask.shape)}, but the hidden states "
            f"{tuple(hidden.shape)} need ({batch}, {tokens})"
        )
    with autocast_off(hidden.device):
        hidden = at_least_float32(hidden)
        if mask is None:
            count: Tensor | int = max(tokens, 1)
            mean = hidden.sum(-2, keepdim=True) / count
            centred = hidden - mean
        else:
            keep = mask.to(hidden.device, torch.bool).view(batch, *(1,) * (hidden.dim() - 3), tokens, 1)
            count = keep.sum(-2, keepdim=True).clamp_min(1)
            # `where`, not a product: 0 * NaN is NaN
            hidden = torch.where(keep, hidden, 0.0)
            mean = hidden.sum(-2, keepdim=True) / count
            centred = torch.where(keep, hidden - mean, 0.0)
        second: Tensor | None = None
        if second_order == "covariance":
            second = centred.mT @ centred / count
        elif second_order == "raw_moment":
            second = hidden.mT @ hidden / count
        return Moments(mean.squeeze(-2), second)


def batch_moments(
    moments: Moments,
    weights: Tensor | None = None,
    second_order: SecondOrder = "covariance",
    across_ranks: bool = True,
) -> Moments:
    r"""Statistics of the whole batch, in which each problem weighs the same whatever its number of tokens.

    With weights w_i (normalised to sum to one),

        mu_B = sum_i w_i mu_i
        covariance: Sigma_B = sum_i w_i (Sigma_i + (mu_i - mu_B)(mu_i - mu_B)^T)     raw_moment: sum_i w_i Sigma_i

    which are the moments of all tokens pooled, each token of problem i weighing w_i / n_i. Where torch.distributed
    runs, the sums go over the problems of all ranks (their numbers may differ), with gradients that are exact after
    the mean over ranks that DDP takes.

    Args:
        moments: Per-problem moments from `trajectory_moments`, batch dimension first.
        weights: (B,), non-negative: 0 for a problem that has no token. None weighs all the same.
        second_order: What `moments.second` is.
        across_ranks: Whether to pool over all ranks; if true, every rank must call.

    Returns:
        `Moments` with a batch dimension of 1; zeros where no problem has weight.
    """
    mean, second = moments
    gather = sum_across_ranks if across_ranks else _identity
    with autocast_off(mean.device):
        weights = mean.new_ones(len(mean)) if weights is None else weights.to(mean)
        # one collective for the count and the sum
        sums = gather(torch.cat([weights.sum().view(1), torch.einsum("b,b...->...", weights, mean).flatten()]))
        total = torch.where(sums[0] > 0, sums[0], 1.0).detach()
        pooled_mean = sums[1:].view(1, *mean.shape[1:]) / total
        if second is None:
            return Moments(pooled_mean, None)
        pooled = torch.einsum("b,b...->...", weights, second)
        if second_order == "covariance":
            between = mean - pooled_mean
            pooled = pooled + torch.einsum("b,b...i,b...j->...ij", weights, between, between)
        return Moments(pooled_mean, gather(pooled).unsqueeze(0) / total)


def _identity(tensor: Tensor) -> Tensor:
    return tensor
