"""Streaming centre, scale and truncated Tucker factors (HOSVD) of trajectories: fp64, mergeable, of any length.

All tokens of all problems form one tensor H (N tokens x L layers x D). Its modes of interest are the layers and the
hidden size; the token mode is never kept. Reference for the HOSVD: De Lathauwer, De Moor, Vandewalle (2000), "A
multilinear singular value decomposition".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lori_pl.alignment.distributed import sum_across_ranks
from lori_pl.alignment.precision import accumulator_device
from lori_pl.errors import LoriError

LayerScale = Literal["rms", "none"]

_CHUNK_ELEMENTS = 2**22  # 32 MiB of fp64 at a time
_ZERO_RMS = 1e-6  # relative to the layer's mean: what fp32 rounding leaves of a constant layer


def checked_rank(rank: int | float, dimension: int, mode: str) -> int | float:
    """A rank as a number of columns (int) or a share of the energy (float).

    A whole number counts columns however it is written: of `int | float`, a reader of configurations may make 1.0 of 1.

    Raises:
        LoriError: If it is neither a number of columns 1..dimension nor a share in (0, 1), naming `mode`, the rank and
            the dimension.
    """
    if isinstance(rank, float) and rank.is_integer():
        rank = int(rank)
    if isinstance(rank, float) and not 0.0 < rank < 1.0:
        raise LoriError(f"rank_{mode}={rank}: give a whole number of columns, or a share of the energy between 0 and 1")
    if isinstance(rank, int) and not 1 <= rank <= dimension:
        raise LoriError(
            f"rank_{mode}={rank} does not fit the {mode} mode of dimension {dimension}; "
            f"choose a rank between 1 and {dimension}"
        )
    return rank


def check_observed(count: Tensor, *sums: Tensor) -> None:
    """Refuse sums over no token, and those into which a hidden state went that is not finite.

    Raises:
        LoriError: Saying which of the two, and the remedy.
    """
    if not count > 0:
        raise LoriError("alignment: no rationale token was observed; give training problems that have a rationale")
    if not all(each.isfinite().all() for each in sums):
        raise LoriError("alignment: a hidden state is not finite; load the backbone in bfloat16 or float32")


class TrajectoryScale:
    """Streaming centre and scale of trajectories over all tokens.

    mean M (L, D) is the mean hidden state of each layer; rms s_l the root mean square of layer l's deviation from it,
    over tokens and hidden entries. Updates and merges over ranks are Chan's (Chan, Golub, LeVeque 1983), in fp64: no
    cancellation where the mean is much larger than the deviation.

    Args:
        layers: Number of layers L.
        hidden: Hidden size D.
        layer_scale: `rms`, or `none` (`scale` is one).
        device: Where the sums live (the CPU for MPS, which has no fp64).
    """

    def __init__(
        self, layers: int, hidden: int, layer_scale: LayerScale = "rms", device: torch.device | str | None = None
    ) -> None:
        device = accumulator_device(device)
        self.layer_scale = layer_scale
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(layers, hidden, dtype=torch.float64, device=device)
        self.sum_of_squares = torch.zeros(layers, dtype=torch.float64, device=device)  # about the mean

    @property
    def rms(self) -> Tensor:
        """(L,): root mean square deviation of each layer; 0 for a layer that is constant to fp32 rounding."""
        check_observed(self.count, self.sum_of_squares)
        rms = (self.sum_of_squares / (self.count * self.mean.shape[1])).sqrt()
        return torch.where(rms > _ZERO_RMS * self._mean_size, rms, 0.0)

    @property
    def scale(self) -> Tensor:
        """(L,): what centred hidden states are divided by: `rms`, one for `none`.

        A constant layer is divided by its mean's root mean square instead (by one, where that is zero too).
        """
        rms = self.rms
        if self.layer_scale == "none":
            return torch.ones_like(rms)
        rms = torch.where(rms > 0, rms, self._mean_size)
        return torch.where(rms > 0, rms, 1.0)

    @torch.no_grad()
    def update(self, hidden: Tensor, mask: Tensor | None = None) -> None:
        """Take in the tokens of `hidden` (B, L, T, D) that `mask` (B, T) keeps; None keeps all."""
        for tokens in _token_chunks(hidden, mask, self.mean):
            mean = tokens.mean(0)
            self._combine(len(tokens), mean, (tokens - mean).square().sum((0, 2)))

    def merge_ranks(self) -> None:
        """Merge over all ranks of torch.distributed; every rank holds the same result."""
        count = sum_across_ranks(self.count)
        mean = sum_across_ranks(self.count * self.mean) / count.clamp_min(1.0)
        between = self.count * (self.mean - mean).square().sum(1)
        self.sum_of_squares = sum_across_ranks(self.sum_of_squares + between)
        self.count, self.mean = count, mean

    def state_dict(self) -> dict[str, Tensor]:
        """The sums: `count`, `mean`, `sum_of_squares`."""
        return {"count": self.count, "mean": self.mean, "sum_of_squares": self.sum_of_squares}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def _combine(self, count: Tensor | int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        share = count / total.clamp_min(1.0)
        difference = mean - self.mean
        self.sum_of_squares = self.sum_of_squares + squares + self.count * share * difference.square().sum(1)
        self.mean = self.mean + share * difference
        self.count = total

    @property
    def _mean_size(self) -> Tensor:
        return self.mean.square().mean(1).sqrt()


@dataclass(frozen=True, eq=False)
class Factors:
    """Truncated HOSVD factors of the centred, scaled trajectories.

    Attributes:
        layer: U_L (L, r_L), orthonormal columns, fp64; the largest entry of each column (the first of equals) is
            positive.
        hidden: U_D (D, r_D), likewise.
        layer_spectrum: (L,) squared singular values of the layer unfolding, descending.
        hidden_spectrum: (D,) squared singular values of the hidden unfolding, descending.
    """

    layer: Tensor
    hidden: Tensor
    layer_spectrum: Tensor
    hidden_spectrum: Tensor

    @property
    def layer_energy(self) -> float:
        """Share of the squared norm that the layer factor keeps."""
        return _energy_share(self.layer_spectrum, self.layer.shape[1])

    @property
    def hidden_energy(self) -> float:
        """Share of the squared norm that the hidden factor keeps."""
        return _energy_share(self.hidden_spectrum, self.hidden.shape[1])

    def truncated(self, layers: int, hidden: int) -> Factors:
        """The same factors with at most these ranks."""
        return Factors(self.layer[:, :layers], self.hidden[:, :hidden], self.layer_spectrum, self.hidden_spectrum)


class TuckerFactors:
    r"""Streaming HOSVD of trajectories from the Gram matrices of two modes; memory O(L^2 + D^2).

    With H~ = (H - M) / s, token by token and in fp64,

        G_L[l, m] = sum_{n, d} H~[n, l, d] H~[n, m, d]        G_D[d, e] = sum_{n, l} H~[n, l, d] H~[n, l, e]

    whose eigenvectors and eigenvalues are the left singular vectors and squared singular values of the unfolded tensor.
    Centring comes before the products: a raw Gram matrix minus N M M^T would cancel.

    Args:
        scale: Centre and scale from a completed earlier pass.
    """

    def __init__(self, scale: TrajectoryScale) -> None:
        self.mean = scale.mean
        self.scale = scale.scale
        layers, hidden = self.mean.shape
        self.count = torch.zeros_like(scale.count)
        self.layer_gram = self.mean.new_zeros(layers, layers)
        self.hidden_gram = self.mean.new_zeros(hidden, hidden)

    @property
    def energy(self) -> Tensor:
        """Squared norm of all that was observed, `|H~|^2`, a scalar."""
        return self.layer_gram.trace()

    @torch.no_grad()
    def update(self, hidden: Tensor, mask: Tensor | None = None) -> None:
        """Take in the tokens of `hidden` (B, L, T, D) that `mask` (B, T) keeps; None keeps all."""
        for tokens in _token_chunks(hidden, mask, self.mean):
            tokens.sub_(self.mean).div_(self.scale.unsqueeze(-1))
            by_hidden = tokens.flatten(0, 1)
            self.hidden_gram.addmm_(by_hidden.mT, by_hidden)
            by_layer = tokens.transpose(0, 1).flatten(1)
            self.layer_gram.addmm_(by_layer, by_layer.mT)
            self.count += len(tokens)

    def merge_ranks(self) -> None:
        """Merge over all ranks of torch.distributed; every rank holds the same result."""
        self.count = sum_across_ranks(self.count)
        self.layer_gram = sum_across_ranks(self.layer_gram)
        self.hidden_gram = sum_across_ranks(self.hidden_gram)

    def state_dict(self) -> dict[str, Tensor]:
        """Centre, scale and sums."""
        names = ("mean", "scale", "count", "layer_gram", "hidden_gram")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        for name, tensor in self.state_dict().items():
            setattr(self, name, state[name].to(tensor, copy=True))

    def factors(self, layers: int | float, hidden: int | float) -> Factors:
        """Truncated factors.

        Args:
            layers: r_L, a number of columns or a share of the energy in (0, 1): the fewest that keep it.
            hidden: r_D, likewise.

        Raises:
            LoriError: If a rank exceeds its dimension, a share is not in (0, 1), or nothing was observed.
        """
        layers = checked_rank(layers, self.layer_gram.shape[0], "layers")
        hidden = checked_rank(hidden, self.hidden_gram.shape[0], "hidden")
        check_observed(self.count, self.energy)
        layer_spectrum, layer = _eigenvectors(self.layer_gram)
        hidden_spectrum, hidden_vectors = _eigenvectors(self.hidden_gram)
        complete = Factors(layer, hidden_vectors, layer_spectrum, hidden_spectrum)
        return complete.truncated(_resolve_rank(layers, layer_spectrum), _resolve_rank(hidden, hidden_spectrum))


def _token_chunks(hidden: Tensor, mask: Tensor | None, like: Tensor) -> Iterator[Tensor]:
    """Fresh copies (n, L, D) of the kept tokens of `hidden` (B, L, T, D), in the dtype and on the device of `like`."""
    if hidden.dim() != 4 or (hidden.shape[1], hidden.shape[3]) != like.shape:
        raise LoriError(
            f"alignment: trajectories have shape {tuple(hidden.shape)}; give (batch, {like.shape[0]} layers, tokens, "
            f"{like.shape[1]})"
        )
    batch, tokens = hidden.shape[0], hidden.shape[2]
    if mask is None:
        mask = torch.ones(batch, tokens, dtype=torch.bool, device=hidden.device)
    if mask.shape != (batch, tokens):
        raise LoriError(
            f"alignment: the token mask has shape {tuple(mask.shape)}; trajectories {tuple(hidden.shape)} need "
            f"({batch}, {tokens})"
        )
    rows, columns = mask.to(hidden.device, torch.bool).nonzero(as_tuple=True)
    size = max(1, _CHUNK_ELEMENTS // like.numel())
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        if len(row):
            # moved, then widened: MPS has no fp64
            yield hidden[row, :, column].to(like.device).to(like.dtype, copy=True)


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, not negative) and eigenvectors whose largest entry is positive, the first of equals."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    return values, vectors * leading_sign(vectors)


def leading_sign(vectors: Tensor) -> Tensor:
    """Signs (1, N) that make the largest entry of each column of (D, N) positive, the first of equals."""
    size = vectors.abs()
    # two layers of unit RMS always have equal entries: rounding must not choose between them
    is_largest = (size > (1 - 1e-6) * size.amax(0)).to(torch.uint8)
    largest = vectors.gather(0, is_largest.argmax(0, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def _energy_share(spectrum: Tensor, rank: int) -> float:
    total = spectrum.sum()
    return float(spectrum[:rank].sum() / total) if total > 0 else 1.0


def _resolve_rank(rank: int | float, spectrum: Tensor) -> int:
    return rank if isinstance(rank, int) else directions_with(rank, spectrum)


def directions_with(share: float, spectrum: Tensor) -> int:
    """The fewest directions that hold a share of the energy.

    Args:
        share: The share, above 0 and up to 1.
        spectrum: Energy of each direction, in descending order, shape (N,).
    """
    kept = spectrum.cumsum(0)
    # a hair below the share, else rounding asks for empty directions where the share is 1
    return min(int((kept < share * (1 - 1e-12) * kept[-1]).sum()) + 1, len(spectrum))
