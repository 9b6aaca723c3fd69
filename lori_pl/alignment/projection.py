"""One side of the alignment: centre, scale and project trajectories onto its factors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lori_pl.alignment.precision import at_least_float32, autocast_off
from lori_pl.alignment.stiefel import StiefelWeight, orthonormal_columns
from lori_pl.alignment.terms import TrajectoryShape
from lori_pl.errors import LoriError

FactorKind = Literal["fixed", "stiefel", "free", "identity"]


class Projection(nn.Module):
    r"""Trajectories H (B, L, T, D) to cores `G_t = U_L^T ((H_t - M) / s) U_D` (B, r_L, T, r_D).

    Args:
        shape: L and D.
        ranks: r_L and r_D; ignored for `identity`.
        kind: What the factors are: `fixed` buffers, trainable `stiefel` weights, `free` parameters without constraint,
            or `identity` (none: the core is the centred, scaled trajectory).
    """

    mean: Tensor
    scale: Tensor
    layer_factor: Tensor | StiefelWeight
    hidden_factor: Tensor | StiefelWeight

    def __init__(self, shape: TrajectoryShape, ranks: tuple[int, int], kind: FactorKind) -> None:
        super().__init__()
        self.shape = shape
        self.kind = kind
        self.register_buffer("mean", torch.zeros(shape.layers, shape.hidden))
        self.register_buffer("scale", torch.ones(shape.layers))
        for name, dim, rank in (("layer_factor", shape.layers, ranks[0]), ("hidden_factor", shape.hidden, ranks[1])):
            if kind == "stiefel":
                self.add_module(name, StiefelWeight(dim, rank))
            elif kind == "free":
                # contiguous, as what it is set to: DDP lays out its buckets once
                self.register_parameter(name, nn.Parameter(orthonormal_columns(torch.randn(dim, rank)).contiguous()))
            elif kind == "fixed":
                self.register_buffer(name, torch.eye(dim, rank))

    @property
    def ranks(self) -> tuple[int, int]:
        """r_L and r_D."""
        if self.kind == "identity":
            return self.shape.layers, self.shape.hidden
        layer, hidden = self.layer_factor, self.hidden_factor
        return (
            layer.rank if isinstance(layer, StiefelWeight) else layer.shape[1],
            hidden.rank if isinstance(hidden, StiefelWeight) else hidden.shape[1],
        )

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """U_L (L, r_L) and U_D (D, r_D), a Stiefel weight orthonormalised anew; None for `identity`."""
        if self.kind == "identity":
            return None
        layer, hidden = self.layer_factor, self.hidden_factor
        return (
            layer.weight if isinstance(layer, StiefelWeight) else layer,
            hidden.weight if isinstance(hidden, StiefelWeight) else hidden,
        )

    def normalise(self, hidden: Tensor) -> Tensor:
        """H~ = (H - M) / s in at least fp32, shape (B, L, T, D).

        Raises:
            LoriError: If the trajectories have another shape.
        """
        self._check_shape(hidden)
        with autocast_off(hidden.device):
            return (at_least_float32(hidden) - self.mean.unsqueeze(1)) / self.scale.view(-1, 1, 1)

    def _check_shape(self, hidden: Tensor) -> None:
        if hidden.dim() != 4 or (hidden.shape[1], hidden.shape[3]) != (self.shape.layers, self.shape.hidden):
            raise LoriError(
                f"alignment: trajectories have shape {tuple(hidden.shape)}, but this side was prepared for "
                f"(batch, {self.shape.layers} layers, tokens, {self.shape.hidden})"
            )

    def forward(self, hidden: Tensor) -> Tensor:
        """The cores of `hidden` (B, L, T, D), shape (B, r_L, T, r_D); reads each factor once."""
        factors = self.factors()
        if factors is None:
            return self.normalise(hidden)
        self._check_shape(hidden)
        with autocast_off(hidden.device):
            # in at least fp32, as the mean is; the hidden mode first: it shrinks most, and s divides what is left
            centred = hidden - self.mean.unsqueeze(1)
            return torch.einsum("bltr,lk->bktr", centred @ factors[1], factors[0] / self.scale.unsqueeze(-1))

    @torch.no_grad()
    def set_scale(self, mean: Tensor, scale: Tensor) -> None:
        """Set M (L, D) and s (L,)."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    @torch.no_grad()
    def set_factors(self, layer: Tensor, hidden: Tensor) -> None:
        """Set U_L (L, r_L) and U_D (D, r_D), also of other ranks than before; parameters keep their identity."""
        for name, value in (("layer_factor", layer), ("hidden_factor", hidden)):
            factor = getattr(self, name)
            if isinstance(factor, StiefelWeight):
                factor.assign(value)
            else:
                # contiguous, as a checkpoint is loaded: products of another layout differ in the last bit
                factor.data = value.to(factor).clone(memory_format=torch.contiguous_format)

    def set_ranks(self, ranks: tuple[int, int]) -> None:
        """Give the factors these ranks; their values are then undefined until set or loaded."""
        if self.kind != "identity" and ranks != self.ranks:
            self.set_factors(
                torch.eye(self.shape.layers, ranks[0]),
                torch.eye(self.shape.hidden, ranks[1]),
            )


def random_factors(shape: TrajectoryShape, ranks: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal U_L and U_D, uniform on their Stiefel manifolds, fp64; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.randn(shape.layers, ranks[0], generator=generator, dtype=torch.float64, device="cpu")
    hidden = torch.randn(shape.hidden, ranks[1], generator=generator, dtype=torch.float64, device="cpu")
    return orthonormal_columns(layer), orthonormal_columns(hidden)
