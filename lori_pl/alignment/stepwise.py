"""The control with order: each latent follows one rationale token, or trajectories are compared part by part.

Not of the published method, whose statistics do not know which token came first: a control that tells what that costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from lori_pl.alignment.losses import standardised_smooth_l1
from lori_pl.alignment.low_rank import LowRankAlignment, only_projection
from lori_pl.alignment.precision import autocast_off
from lori_pl.alignment.terms import Signals, Term, TrajectoryShape, token_mask, trajectory_of
from lori_pl.errors import LoriError, check_choice

Pairing = Literal["tokens", "parts"]


class StepwiseAlignment(Term):
    r"""Smooth-L1 between the cores of latents and of the rationale tokens that stand in their place.

        stepwise: smooth-L1((g_S,i - g_T,i) / sd), mean over the core's entries, over i, then over problems

    g and sd are those of the `LowRankAlignment` among the terms, whose own weights may be zero; a problem whose
    rationale has no token counts zero. Under ``tokens`` g_i is the core of the i-th latent, or of the i-th chosen
    token, as far as the shorter side goes; with ``data.rationale_tokens: before_results`` that token predicts the i-th
    step's result. Under ``parts`` both sides are cut into equal parts, whatever their lengths, and g_i is the i-th
    part's mean core: a token that two parts share counts for each by its share. One part is the `mean` of
    `LowRankAlignment`. Not of the published method.

    Args:
        w_stepwise: Weight of the loss.
        positions: How many of a rationale's tokens are kept, from its first: latents beyond follow none; or the parts.
        pairing: What is compared: ``tokens`` or ``parts``.
        delta: Where the smooth-L1 turns from quadratic to linear, in standard deviations.

    Raises:
        LoriError: If an argument is out of range; from `prepare`, if there is not exactly one `LowRankAlignment`.
    """

    needs = frozenset({"trajectory"})

    def __init__(
        self, w_stepwise: float = 1.0, positions: int = 8, pairing: Pairing = "tokens", delta: float = 1.0
    ) -> None:
        super().__init__()
        check_choice("StepwiseAlignment: pairing", pairing, Pairing)
        if positions < 1:
            raise LoriError(f"StepwiseAlignment: positions={positions}: give 1 or more")
        if delta <= 0:
            raise LoriError(f"StepwiseAlignment: delta={delta} must be positive")
        self.weights = {"stepwise": w_stepwise}
        self.positions = positions
        self.pairing = pairing
        self.delta = delta
        self._projection: tuple[LowRankAlignment, ...] = ()  # in a tuple: not a sub-module, its keys stand once

    @property
    def measured_with(self) -> dict[str, Any]:
        """What a cache holds of a problem."""
        return {"positions": self.positions, "pairing": self.pairing}

    def rests_on(self, other: Term) -> bool:
        """On the projection and its deviations."""
        return isinstance(other, LowRankAlignment)

    def check(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Refuse `others` that do not hold exactly one `LowRankAlignment`.

        Raises:
            LoriError: Naming how many there are.
        """
        only_projection(others, "StepwiseAlignment")

    def prepare(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Find the projection; the order of the terms does not matter.

        Raises:
            LoriError: As `check`.
        """
        self._projection = (only_projection(others, "StepwiseAlignment"),)

    @torch.no_grad()
    def teacher_statistics(self, teacher: Signals) -> dict[str, Tensor]:
        """`cores` (B, positions, r_L, r_D), zero where there is none, and `real` (B, positions): 1 where one is."""
        core = self._low_rank.subspace.target_core(trajectory_of(teacher)).transpose(1, 2)
        mask = token_mask(teacher)
        if self.pairing == "parts":
            real = mask.any(1, keepdim=True).expand(-1, self.positions)
            return {"cores": parts(core, mask, self.positions), "real": real.to(core)}
        if (lacking := self.positions - core.shape[1]) > 0:
            core, mask = pad(core, (0, 0, 0, 0, 0, lacking)), pad(mask, (0, lacking))
        # padding may stand on either side, and between tokens
        first = (~mask).int().argsort(stable=True, dim=1)[:, : self.positions]
        real = mask.gather(1, first)
        cores = core.gather(1, first[..., None, None].expand(-1, -1, *core.shape[2:]))
        return {"cores": cores.masked_fill(~real[..., None, None], 0.0), "real": real.to(cores)}

    def pack(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In standard deviations of the core's entries."""
        return {**statistics, "cores": statistics["cores"] / self._low_rank.deviation}

    def unpack(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `teacher_statistics` gave them, to rounding."""
        found = {name: tensor.to(self._low_rank.deviation) for name, tensor in packed.items()}
        return {**found, "cores": found["cores"] * self._low_rank.deviation}

    def forward(self, student: Signals, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss `stepwise`.

        Raises:
            LoriError: If the projection is not fitted, or the statistics were made with other ranks or another batch.
        """
        hidden = trajectory_of(student)
        if not self._low_rank.is_fitted:
            raise LoriError("StepwiseAlignment: the LowRankAlignment that it rests on is not fitted")
        with autocast_off(hidden.device):
            own = self._low_rank.subspace.student_core(hidden).transpose(1, 2)
            if self.pairing == "parts":
                own = parts(own, own.new_ones(own.shape[:2], dtype=torch.bool), self.positions)
            pairs = min(own.shape[1], self.positions)
            own = own[:, :pairs]
            target, real = (statistics[name].detach().to(own)[:, :pairs] for name in ("cores", "real"))
            if target.shape != own.shape:
                raise LoriError(
                    f"StepwiseAlignment: the teacher's cores have shape {tuple(target.shape)}, the student's "
                    f"{tuple(own.shape)}; make them with the same batch, ranks and positions"
                )
            deviation = self._low_rank.deviation
            apart = standardised_smooth_l1(own.flatten(0, 1), target.flatten(0, 1), deviation, self.delta)
            by_problem = (apart.view(real.shape) * real).sum(1) / real.sum(1).clamp_min(1)
            return {"stepwise": by_problem.mean()}

    @property
    def _low_rank(self) -> LowRankAlignment:
        if not self._projection:
            raise LoriError("StepwiseAlignment: call prepare(student, teacher, others) first")
        return self._projection[0]


def parts(core: Tensor, mask: Tensor, count: int) -> Tensor:
    """Mean cores of ``count`` equal parts of each row's tokens.

    With n real tokens in a row, token j covers [j / n, (j + 1) / n] and part i [i / count, (i + 1) / count]; a token
    counts for a part by how much of the part it covers.

    Args:
        core: (B, T, ...).
        mask: (B, T) true at real tokens, wherever they stand.
        count: Number of parts.

    Returns:
        (B, count, ...); zero in a row without tokens.
    """
    real = mask.to(core)
    number = real.sum(1, keepdim=True).clamp_min(1)
    end = real.cumsum(1) / number
    begin = end - real / number
    edge = torch.arange(count + 1, device=core.device, dtype=core.dtype)[:, None] / count
    covered = torch.minimum(end[:, None], edge[1:]) - torch.maximum(begin[:, None], edge[:-1])
    share = covered.clamp_min(0.0) * real[:, None] * count
    with autocast_off(core.device):
        return torch.einsum("bpt,bt...->bp...", share, core.masked_fill(~mask[(...,) + (None,) * (core.ndim - 2)], 0.0))
