"""A weight with orthonormal columns: a point of the Stiefel manifold St(d, r) = {W in R^(d x r): W^T W = I}."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

from lori_pl.alignment.precision import at_least_float32, autocast_off
from lori_pl.errors import LoriError

_LARGEST_ASSIGNED_ERROR = 1e-2  # what rounding to bf16 leaves of an orthonormal matrix


def orthonormality_error(weight: Tensor) -> Tensor:
    """Largest entry of `|W^T W - I|`, a scalar in at least fp32 with no gradient.

    Args:
        weight: W, shape (d, r).
    """
    with torch.no_grad(), autocast_off(weight.device):
        weight = at_least_float32(weight)
        gram = weight.mT @ weight
        return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs().amax()


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """Q of the QR decomposition of `matrix` (d, r) whose R has a positive diagonal, in at least fp32.

    That Q is unique for full column rank, is the matrix itself where its columns are orthonormal, and does not change
    when the matrix is multiplied by a positive number.
    """
    with autocast_off(matrix.device):
        orthonormal, triangular = torch.linalg.qr(at_least_float32(matrix))
        signs = 1.0 - 2.0 * (triangular.diagonal(dim1=-2, dim2=-1) < 0).to(orthonormal.dtype)
        return orthonormal * signs.unsqueeze(-2)


class _Orthonormal(nn.Module):
    """X in R^(d x r) -> Q of its sign-fixed QR; the right inverse of an orthonormal matrix is that matrix.

    Householder QR keeps Q orthonormal to rounding at any condition number of X (Cholesky-QR does so only to its
    square), and its backward is two products and a triangular solve, O(d r^2), with no pole where singular values
    coincide, which is where every orthonormal start lies.
    """

    def forward(self, unconstrained: Tensor) -> Tensor:
        return orthonormal_columns(unconstrained)

    def right_inverse(self, weight: Tensor) -> Tensor:
        if weight.is_meta:
            return weight
        error = float(orthonormality_error(weight))
        if not error <= _LARGEST_ASSIGNED_ERROR:
            raise LoriError(
                f"StiefelWeight: the assigned {tuple(weight.shape)} matrix has no orthonormal columns "
                f"(largest entry of |W^T W - I| is {error:.2g}); assign the Q of its QR decomposition"
            )
        return weight.contiguous()  # safetensors stores no other layout


class StiefelWeight(nn.Module):
    """A trainable matrix `weight` (dim x rank) with orthonormal columns.

    The trained tensor X (dim x rank) is unconstrained; `weight` is the Q of X = Q R with positive diagonal of R,
    computed in fp32 outside autocast at each access. Read it once a step, or inside
    `torch.nn.utils.parametrize.cached()`. `module.weight = Q` sets an orthonormal value to rounding. Q does not depend
    on the scale of X, so weight decay cannot break it, but it shrinks X and so raises the effective learning rate:
    keep `stiefel_parameters(module)` out of it. The state holds X alone.

    Args:
        dim: Number of rows d.
        rank: Number of columns r, 1 <= r <= d.

    Raises:
        LoriError: If rank is below 1 or above dim, or an assigned matrix has no orthonormal columns.
    """

    weight: Tensor

    def __init__(self, dim: int, rank: int) -> None:
        if not 1 <= rank <= dim:
            raise LoriError(
                f"StiefelWeight: {rank} orthonormal columns do not exist in dimension {dim}; "
                f"choose a rank between 1 and {dim}"
            )
        super().__init__()
        self.dim = dim
        self.rank = rank
        self.weight = nn.Parameter(orthonormal_columns(torch.randn(dim, rank)))
        register_parametrization(self, "weight", _Orthonormal())

    def assign(self, weight: Tensor) -> None:
        """Set `weight` to an orthonormal matrix (dim, any rank up to dim), keeping the trained parameter's identity.

        An optimiser that holds the parameter keeps holding it, also where the rank changes.

        Raises:
            LoriError: If the columns are not orthonormal or the number of rows is not `dim`.
        """
        if weight.dim() != 2 or weight.shape[0] != self.dim or not 1 <= weight.shape[1] <= self.dim:
            raise LoriError(
                f"StiefelWeight: a matrix of shape {tuple(weight.shape)} was assigned to a weight of {self.dim} rows; "
                f"assign ({self.dim}, rank) with rank between 1 and {self.dim}"
            )
        (original,) = stiefel_parameters(self)
        value = _Orthonormal().right_inverse(weight.detach().to(original))
        # not `self.weight = value`, which sets the storage anew: the hook by which DDP sums gradients would be lost
        if original.shape == value.shape:
            with torch.no_grad():
                original.copy_(value)
        else:
            original.data = value.clone()
        self.rank = weight.shape[1]

    def extra_repr(self) -> str:
        """Dimension and rank, for `print(module)`."""
        return f"dim={self.dim}, rank={self.rank}"


def stiefel_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The trained tensors behind every Stiefel weight inside `module`: to be kept out of weight decay."""
    return [
        cast(nn.Parameter, child.original)
        for child in module.modules()
        if isinstance(child, ParametrizationList) and any(isinstance(step, _Orthonormal) for step in child)
    ]
