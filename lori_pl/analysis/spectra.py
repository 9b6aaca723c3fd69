"""Spectra of trajectories by mode, layer and position, from streamed Gram matrices in fp64.

The tensor is the alignment's: H~ = (H - M) / s, every layer centred at its mean M_l and divided by its root mean square
deviation s_l (`TrajectoryScale`), with the token mode kept apart by position. Memory is O(L D^2 + P^2), whatever the
number of problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lori_pl.alignment import Factors, TrajectoryScale, TuckerFactors
from lori_pl.alignment.tucker import directions_with
from lori_pl.errors import LoriError

GROUPS = 8
"""Most groups of positions: longer trajectories are cut into as many parts of equal length, problem by problem."""

WRITTEN = 256
"""Directions of one layer or position whose shares of energy are written, at most: all would be tens of MiB."""

POOL = 2048
"""Tokens that are permuted among each other, or more: the same whatever the batches."""

_POOL_ELEMENTS = 2**28  # 1 GiB of fp32: fewer tokens of a model whose states are larger

States = tuple[Tensor, Tensor]
"""Hidden states (B, L, T, D) and a mask (B, T), true at tokens that count."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Squared singular values of a matrix.

    Args:
        values: (n,) descending, not negative, fp64.
    """

    values: Tensor

    @classmethod
    def of_gram(cls, gram: Tensor) -> Spectrum:
        """The spectrum of a matrix A from its Gram matrix A A^T (n, n)."""
        return cls(torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0))

    @property
    def shares(self) -> Tensor:
        """(n,) share of the energy (squared norm) of each direction; zeros for a matrix of zeros."""
        total = self.values.sum()
        return self.values / total if total > 0 else torch.zeros_like(self.values)

    @property
    def effective_rank(self) -> float:
        r"""`exp(-sum_i p_i log p_i)` with `p_i = sigma_i / sum_j sigma_j`, sigma the singular values; 0 for zeros.

        Between 1 (one direction) and the rank (all directions alike).

        Source:
            O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
        """
        sigma = self.values.sqrt()
        if not sigma.sum() > 0:
            return 0.0
        return float(torch.special.entr(sigma / sigma.sum()).sum().exp())

    @property
    def stable_rank(self) -> float:
        r"""`sum_i sigma_i^2 / sigma_1^2`: squared Frobenius over squared spectral norm; 0 for zeros.

        Source:
            M. Rudelson, R. Vershynin, "Sampling from large matrices", Journal of the ACM 54 (2007).
        """
        return float(self.values.sum() / self.values[0]) if self.values[0] > 0 else 0.0

    def rank_for(self, share: float) -> int:
        """The fewest directions that hold this share of the energy; 0 for zeros."""
        return directions_with(share, self.values) if self.values.sum() > 0 else 0

    def summary(self) -> dict[str, Any]:
        """Plain numbers: both ranks, the ranks that hold 90 and 99 % of the energy, and the most that there can be."""
        return {
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "rank_90": self.rank_for(0.9),
            "rank_99": self.rank_for(0.99),
            "dimension": len(self.values),
        }


@dataclass(frozen=True, eq=False)
class TrajectorySpectra:
    """What a set of trajectories spans.

    Args:
        tokens: Number of tokens N.
        longest: Tokens of the longest trajectory, P.
        modes: Spectra of the unfoldings of H~: ``layer`` (L x N D), ``hidden`` (D x N L) and ``position`` (P x B L D;
            a problem has zeros, the centre, behind its last token).
        by_layer: The spectrum of each layer's states (N x D), about that layer's mean.
        by_position: The spectrum of the states at each position, or each part of the trajectories where there are more
            than `GROUPS`, over problems and layers, each layer about its mean there.
        factors: U_L and U_D of full rank, with the spectra of their modes.
        hidden_gram: (D, D) Gram matrix of the hidden mode.
    """

    tokens: int
    longest: int
    modes: dict[str, Spectrum]
    by_layer: list[Spectrum]
    by_position: list[Spectrum]
    factors: Factors
    hidden_gram: Tensor

    @property
    def is_by_token(self) -> bool:
        """Whether ``by_position`` has an entry a token rather than one a part of the trajectory."""
        return self.longest <= GROUPS

    def summary(self) -> dict[str, Any]:
        """Plain numbers: shares of energy and ranks by mode, layer and position.

        The shares of a mode are all of them, those of a layer or a position the first `WRITTEN`.
        """

        def part(each: Spectrum) -> dict[str, Any]:
            return {**each.summary(), "energy_shares": each.shares[:WRITTEN].tolist()}

        return {
            "tokens": self.tokens,
            "longest": self.longest,
            "modes": {
                name: {**each.summary(), "energy_shares": each.shares.tolist()} for name, each in self.modes.items()
            },
            "by_layer": [part(each) for each in self.by_layer],
            "positions": "tokens" if self.is_by_token else "parts of equal length",
            "by_position": [part(each) for each in self.by_position],
        }


class _Grams:
    """The sums of the second pass, under the centre and scale of the first."""

    def __init__(self, scale: TrajectoryScale, longest: int) -> None:
        self.scale = scale
        self.mean, self.divisor = scale.mean, scale.scale
        layers, hidden = self.mean.shape
        self.groups, self.longest = min(longest, GROUPS), longest
        new = self.mean.new_zeros
        self.layer = new(layers, layers)
        self.layers = new(layers, hidden, hidden)
        self.position = new(longest, longest)
        self.parts, self.part_sums = new(self.groups, hidden, hidden), new(self.groups, layers, hidden)
        self.part_counts = new(self.groups)

    def update(self, hidden: Tensor, mask: Tensor) -> None:
        states = hidden.to(self.mean.device).to(self.mean.dtype)  # moved, then widened: MPS has no fp64
        mask = mask.to(states.device)
        states = (states - self.mean[:, None]) / self.divisor[:, None, None]
        place, length = mask.long().cumsum(1) - 1, mask.sum(1, keepdim=True)
        tokens = states.transpose(1, 2)[mask]  # (N, L, D)
        by_layer = tokens.transpose(0, 1)
        self.layers.baddbmm_(by_layer.mT, by_layer)
        self.layer.addmm_(by_layer.flatten(1), by_layer.flatten(1).mT)
        rows = mask.nonzero()[:, 0]
        placed = states.new_zeros(self.longest, len(mask), *tokens.shape[1:])
        placed[place[mask], rows] = tokens
        self.position.addmm_(placed.flatten(1), placed.flatten(1).mT)
        part = (place * self.groups // length.clamp_min(1) if self.longest > self.groups else place)[mask]
        for group in range(self.groups):
            chosen = tokens[part == group]
            self.parts[group].addmm_(chosen.flatten(0, 1).mT, chosen.flatten(0, 1))
            self.part_sums[group] += chosen.sum(0)
            self.part_counts[group] += len(chosen)

    def result(self) -> TrajectorySpectra:
        hidden = self.layers.sum(0)
        tucker = TuckerFactors(self.scale)
        sums = {"count": self.scale.count, "layer_gram": self.layer, "hidden_gram": hidden}
        tucker.load_state_dict({**tucker.state_dict(), **sums})
        factors = tucker.factors(*self.mean.shape)
        # the states are of unit size already, so taking their means off costs no digits that matter
        about = torch.einsum("gld,gle->gde", self.part_sums, self.part_sums)
        parts = self.parts - about / self.part_counts.clamp_min(1.0)[:, None, None]
        modes = {
            "layer": Spectrum(factors.layer_spectrum),
            "hidden": Spectrum(factors.hidden_spectrum),
            "position": Spectrum.of_gram(self.position),
        }
        by_layer = [Spectrum.of_gram(gram) for gram in self.layers]
        by_position = [Spectrum.of_gram(gram) for gram in parts]
        tokens = int(self.scale.count)
        return TrajectorySpectra(tokens, self.longest, modes, by_layer, by_position, factors, hidden)


def trajectory_spectra(
    batches: Callable[[], Iterable[States]], device: torch.device | str | None = None
) -> TrajectorySpectra:
    """Measures the spectra of trajectories in two passes: centre and scale, then Gram matrices.

    Args:
        batches: Gives the batches anew at each call, the same ones.
        device: Where the sums live (the CPU for MPS, which has no fp64).

    Raises:
        LoriError: If there is no token, or a state is not finite.
    """
    scale: TrajectoryScale | None = None
    longest = 0
    for hidden, mask in batches():
        if scale is None:
            scale = TrajectoryScale(hidden.shape[1], hidden.shape[3], device=device)
        scale.update(hidden, mask)
        longest = max(longest, int(mask.sum(1).amax()))
    if scale is None or longest == 0:
        raise LoriError("analysis: there is no token whose states could be measured; give problems with a rationale")
    grams = _Grams(scale, longest)
    for hidden, mask in batches():
        grams.update(hidden, mask)
    return grams.result()


def permuted_entries(batches: Iterable[States], seed: int) -> Iterator[States]:
    """The control of no structure: every hidden entry of every layer is permuted over the tokens by itself.

    Each entry keeps its values, so its mean and its variance; what entries, layers and neighbouring tokens have in
    common is gone. The spectrum of what is left is that of as many tokens without shared directions, as in parallel
    analysis (Horn, 1965; with permutations Buja and Eyuboglu, 1992): directions of the trajectories themselves count
    as structure only above it.

    The permutation is over `POOL` tokens or more, of several batches where one has fewer: over a few problems alone it
    would keep what each problem's tokens have in common.

    Args:
        batches: The batches.
        seed: Seed of the permutations, drawn on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    for pool in _pools(batches):
        tokens = torch.cat([hidden.transpose(1, 2)[mask] for hidden, mask in pool])
        for layer in tokens.unbind(1):
            order = torch.rand(layer.shape, generator=generator).argsort(0)
            layer.copy_(layer.gather(0, order.to(layer.device)))
        parts = tokens.split([int(mask.sum()) for _, mask in pool])
        for (hidden, mask), part in zip(pool, parts, strict=True):
            mixed = hidden.transpose(1, 2).clone()
            mixed[mask] = part
            yield mixed.transpose(1, 2), mask


def _pools(batches: Iterable[States]) -> Iterator[list[States]]:
    """Batches in order, so many together that they have `POOL` tokens, as far as memory allows."""
    pool: list[States] = []
    tokens = 0
    for hidden, mask in batches:
        pool.append((hidden, mask))
        tokens += int(mask.sum())
        if tokens >= min(POOL, _POOL_ELEMENTS // (hidden.shape[1] * hidden.shape[3])):
            yield pool
            pool, tokens = [], 0
    if pool:
        yield pool
