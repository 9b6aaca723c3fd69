"""Sums over the training rationales that the low-rank losses are normalised by, and a student's start is rotated by."""

from __future__ import annotations

import torch
from torch import Tensor

from lori_pl.alignment.distributed import sum_across_ranks
from lori_pl.alignment.moments import Moments, SecondOrder
from lori_pl.alignment.precision import accumulator_device
from lori_pl.alignment.tucker import check_observed


class CoreStatistics:
    """Streaming fp64 sums of cores; cores are centred over all tokens, so plain sums do not cancel.

    Args:
        ranks: r_L and r_D.
        blocks: Number and size of the blocks whose second order is kept: (r_L, r_D) or (1, r_L r_D).
        second_order: Which second-order statistic the moments hold.
        paired: Whether student cores are observed too, for the Procrustes rotation.
        device: Where the sums live.
    """

    def __init__(
        self,
        ranks: tuple[int, int],
        blocks: tuple[int, int],
        second_order: SecondOrder,
        paired: bool,
        device: torch.device,
    ) -> None:
        self.second_order = second_order
        self._ranks = ranks
        device = accumulator_device(device)
        number, size = blocks
        shapes: dict[str, tuple[int, ...]] = {
            "tokens": (),
            "core": ranks,
            "core_square": ranks,
            "problems": (),
            "mean": blocks,
        }
        if second_order != "none":
            shapes |= {"second": (number, size, size), "mean_square": (number, size, size), "spread": ()}
        if paired:
            shapes |= {"cross": (*ranks, *ranks), "student_norm": (), "teacher_norm": ()}
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def observe(self, core: Tensor, mask: Tensor, moments: Moments) -> None:
        """Take in the teacher's cores (B, r_L, T, r_D), their token mask (B, T) and their moments in blocks."""
        kept = self._wide(torch.where(mask[:, None, :, None], core, 0.0))
        weights = self._wide(mask.any(1))
        mean = self._wide(moments.mean)
        self.sums["tokens"] += mask.sum().to(self.sums["tokens"].device)
        self.sums["core"] += kept.sum((0, 2))
        self.sums["core_square"] += kept.square().sum((0, 2))
        self.sums["problems"] += weights.sum()
        self.sums["mean"] += torch.einsum("b,bki->ki", weights, mean)
        if moments.second is not None:
            self.sums["second"] += torch.einsum("b,bkij->kij", weights, self._wide(moments.second))
            self.sums["spread"] += (weights * self._wide(has_spread(moments.second))).sum()
            self.sums["mean_square"] += torch.einsum("b,bki,bkj->kij", weights, mean, mean)

    def observe_pair(self, student: Tensor, teacher: Tensor, weights: Tensor) -> None:
        """Take in paired per-problem core means (B, ..., with r_L r_D entries); weight 0 leaves a pair out."""
        weights = self._wide(weights)
        student = self._wide(student).view(-1, *self._ranks) * weights.view(-1, 1, 1)
        teacher = self._wide(teacher).view(-1, *self._ranks) * weights.view(-1, 1, 1)
        self.sums["cross"] += torch.einsum("iab,icd->abcd", student, teacher)
        self.sums["student_norm"] += student.square().sum()
        self.sums["teacher_norm"] += teacher.square().sum()

    def merge_ranks(self, require_tokens: bool = True) -> None:
        """Merge over all ranks of torch.distributed.

        Args:
            require_tokens: Whether the teacher's cores were to be observed.

        Raises:
            LoriError: If they were, and no rank has seen a token.
        """
        self.sums = {name: sum_across_ranks(tensor) for name, tensor in self.sums.items()}
        if require_tokens:
            check_observed(self.sums["tokens"])

    @property
    def core_energy(self) -> Tensor:
        """Sum of squares of all cores, a scalar."""
        return self.sums["core_square"].sum()

    @property
    def cross(self) -> Tensor | None:
        """(r_L, r_D, r_L, r_D): `sum_i G'_i[a, b] G_i[c, d]` of paired mean cores; None where not paired."""
        return self.sums.get("cross")

    @property
    def cross_norm(self) -> Tensor | None:
        """`sqrt(sum_i |G'_i|^2 sum_i |G_i|^2)`, a scalar; None where not paired."""
        return (self.sums["student_norm"] * self.sums["teacher_norm"]).sqrt() if "cross" in self.sums else None

    def deviation(self, floor: float) -> Tensor:
        """(r_L, r_D): standard deviation of each core entry over tokens, floored at `floor` times the largest."""
        tokens = self.sums["tokens"]
        variance = self.sums["core_square"] / tokens - (self.sums["core"] / tokens).square()
        return _floored(variance.clamp_min(0.0).sqrt(), floor)

    def second(self, pooled: bool) -> Tensor:
        """(blocks, d, d): mean second-order statistic, or that of all problems pooled with equal weight.

        The mean is over the problems that have one: the covariance of a single token is zero.
        """
        if not pooled:
            return self.sums["second"] / self.sums["spread"].clamp_min(1)
        problems = self.sums["problems"]
        second = self.sums["second"] / problems
        if self.second_order == "covariance":
            mean = self.sums["mean"] / problems
            second = second + self.sums["mean_square"] / problems - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return second

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.sums["tokens"].device).double()


def has_spread(second: Tensor) -> Tensor:
    """(B,): which problems have a second-order statistic (B, ...) that is not zero, as one token's covariance is."""
    return second.flatten(1).ne(0).any(1)


def inverse_square_root(second: Tensor, floor: float) -> Tensor:
    """S^-1 per block, S the symmetric square root of `second` (blocks, d, d).

    S's eigenvalues are standard deviations, floored at `floor` times the block's largest; a zero block gives I.
    """
    values, vectors = torch.linalg.eigh(second)
    deviations = torch.stack([_floored(block, floor) for block in values.clamp_min(0.0).sqrt()])
    return (vectors / deviations.unsqueeze(-2)) @ vectors.mT


def _floored(deviation: Tensor, floor: float) -> Tensor:
    largest = deviation.amax()
    return deviation.clamp_min(floor * largest) if largest > 0 else torch.ones_like(deviation)
