"""The low-rank tensor subspace in which both sides' trajectories meet, and how it is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lori_pl.alignment.distributed import is_distributed
from lori_pl.alignment.packing import prefixed
from lori_pl.alignment.procrustes import mode_procrustes
from lori_pl.alignment.projection import FactorKind, Projection, random_factors
from lori_pl.alignment.stiefel import orthonormality_error
from lori_pl.alignment.terms import TrajectoryShape
from lori_pl.alignment.tucker import LayerScale, TrajectoryScale, TuckerFactors, checked_rank
from lori_pl.errors import LoriError

StudentFactors = Literal["shared", "learned", "pca", "random", "free", "identity"]

_OWN_KIND: dict[StudentFactors, FactorKind] = {
    "learned": "stiefel",
    "free": "free",
    "pca": "fixed",
    "random": "fixed",
    "identity": "identity",
}


def ranks_within(
    student: TrajectoryShape,
    teacher: TrajectoryShape,
    rank_layers: int | float | None,
    rank_hidden: int | float,
    student_factors: StudentFactors,
) -> tuple[int | float, int | float]:
    """What r_L and r_D are for these shapes; arguments as of `TensorSubspace`.

    Returns:
        Numbers of columns (int) or shares of the energy (float), for layers and hidden size.

    Raises:
        LoriError: If a rank exceeds a dimension of either side, or shapes differ where they must agree.
    """
    if student_factors in ("shared", "identity") and student != teacher:
        raise LoriError(
            f"LowRankAlignment: student_factors={student_factors} needs equal trajectories, but the teacher "
            f"has {teacher} and the student {student}; use student_factors=learned, or select as many layers"
        )
    layers, hidden = min(student.layers, teacher.layers), min(student.hidden, teacher.hidden)
    if student_factors == "identity":
        return layers, hidden
    rank_layers = layers if rank_layers is None else rank_layers
    return checked_rank(rank_layers, layers, "layers"), checked_rank(rank_hidden, hidden, "hidden")


class TensorSubspace(nn.Module):
    r"""Centre, scale and Tucker factors of both sides.

    `target` projects the teacher's trajectories, `own` the student's, or None where they share the teacher's. A rank
    given as a share of energy stands at 1 until `end_sweep(1)` or until `adopt_ranks` takes it from a checkpoint;
    parameters keep their identity then.

    Args:
        student: Shape of the student's trajectories.
        teacher: Shape of the teacher's trajectories.
        rank_layers: r_L: columns (int), share of the teacher's energy (float), or None for the most there can be.
        rank_hidden: r_D: columns (int) or share of the energy (float).
        student_factors: What the student is projected on; see `LowRankAlignment`.
        layer_scale: Whether each layer is divided by its root mean square.
        seed: Seed of the random factors.

    Raises:
        LoriError: If a rank exceeds a dimension of either side, or shapes differ where they must agree.
    """

    energy: Tensor
    layer_spectrum: Tensor
    hidden_spectrum: Tensor
    start_correlation: Tensor

    def __init__(
        self,
        student: TrajectoryShape,
        teacher: TrajectoryShape,
        rank_layers: int | float | None,
        rank_hidden: int | float,
        student_factors: StudentFactors,
        layer_scale: LayerScale,
        seed: int,
    ) -> None:
        super().__init__()
        self.rank_layers, self.rank_hidden = ranks_within(student, teacher, rank_layers, rank_hidden, student_factors)
        self.student, self.teacher = student, teacher
        self.student_factors = student_factors
        self.layer_scale = layer_scale
        self.seed = seed

        ranks = (_provisional(self.rank_layers), _provisional(self.rank_hidden))
        # called `target`, not `teacher`: a checkpoint is searched for the frozen teacher by that word
        self.target = Projection(teacher, ranks, "identity" if student_factors == "identity" else "fixed")
        self.own = None if student_factors == "shared" else Projection(student, ranks, _OWN_KIND[student_factors])
        self.register_buffer("energy", torch.zeros(3))
        self.register_buffer("layer_spectrum", torch.zeros(teacher.layers))
        self.register_buffer("hidden_spectrum", torch.zeros(teacher.hidden))
        if self.is_paired:
            self.register_buffer("start_correlation", torch.zeros(()))
        self._scales: list[TrajectoryScale] = []
        self._tuckers: list[TuckerFactors] = []
        self.measures_teacher = self.measures_own = True  # what sweeps measure, of what is not loaded

    @property
    def ranks(self) -> tuple[int, int]:
        """r_L and r_D."""
        return self.target.ranks

    @property
    def sides(self) -> list[Projection]:
        """The teacher's projection and, where the student has one, its own."""
        return [self.target] if self.own is None else [self.target, self.own]

    @property
    def measured(self) -> list[Projection]:
        """Those of the `sides` that are still to be measured."""
        return self.sides[0 if self.measures_teacher else 1 : None if self.measures_own else 1]

    @property
    def is_paired(self) -> bool:
        """Whether the student's factors have axes of their own, to be rotated onto the teacher's."""
        has_own_axes = self.student_factors in ("pca", "learned", "free")
        return has_own_axes or (self.student_factors == "random" and self.student != self.teacher)

    def target_core(self, hidden: Tensor) -> Tensor:
        """The teacher's cores (B, r_L, T, r_D) of its hidden states (B, L, T, D), without gradients."""
        with torch.no_grad():
            return self.target(hidden)

    def student_core(self, hidden: Tensor) -> Tensor:
        """The student's cores (B, r_L, T, r_D) of its hidden states (B, L', T, D')."""
        return (self.target if self.own is None else self.own)(hidden)

    def begin_sweep(self, sweep: int) -> None:
        """Start measuring centres and scales (0) or Gram matrices (1)."""
        if sweep == 0:
            device = self.energy.device
            shapes = [side.shape for side in self.measured]
            self._scales = [TrajectoryScale(s.layers, s.hidden, self.layer_scale, device) for s in shapes]
        else:
            self._tuckers = [TuckerFactors(scale) for scale in self._scales]

    def observe(self, sweep: int, trajectories: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take in trajectories (B, L, T, D) and masks (B, T) of each side that is `measured`."""
        accumulators: Sequence[TrajectoryScale | TuckerFactors] = self._scales if sweep == 0 else self._tuckers
        for accumulator, (hidden, mask) in zip(accumulators, trajectories, strict=True):
            accumulator.update(hidden, mask)

    def sweep_state(self) -> dict[str, Tensor]:
        """The sums so far."""
        parts = {f"scale{i}": scale.state_dict() for i, scale in enumerate(self._scales)}
        parts |= {f"tucker{i}": tucker.state_dict() for i, tucker in enumerate(self._tuckers)}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}

    def resume_sweep(self, sweep: int, state: Mapping[str, Tensor]) -> None:
        """Go on from what `sweep_state` gave in this sweep."""
        self.begin_sweep(0)
        for i, scale in enumerate(self._scales):
            scale.load_state_dict(prefixed(state, f"scale{i}."))
        if sweep > 0:
            self.begin_sweep(1)
            for i, tucker in enumerate(self._tuckers):
                tucker.load_state_dict(prefixed(state, f"tucker{i}."))

    def end_sweep(self, sweep: int) -> None:
        """Merge the ranks of torch.distributed and set centres and scales (0) or factors (1)."""
        if sweep == 0:
            for side, scale in zip(self.measured, self._scales, strict=True):
                scale.merge_ranks()
                side.set_scale(scale.mean, scale.scale * self._size_ratio(side))
        else:
            for tucker in self._tuckers:
                tucker.merge_ranks()
            if self.measures_teacher:
                self._set_teacher_factors()
            self._set_own_factors()

    def _size_ratio(self, side: Projection) -> float:
        """What makes the energy of a token, summed over layers and entries, the same on both sides of unequal size."""
        if self.layer_scale == "none":
            return 1.0
        return ((side.shape.layers * side.shape.hidden) / (self.teacher.layers * self.teacher.hidden)) ** 0.5

    @torch.no_grad()
    def _set_teacher_factors(self) -> None:
        factors = self._tuckers[0].factors(self.rank_layers, self.rank_hidden)
        # a share of energy can ask for more than the student's side has
        factors = factors.truncated(self.student.layers, self.student.hidden)
        for shares, spectrum in (
            (self.layer_spectrum, factors.layer_spectrum),
            (self.hidden_spectrum, factors.hidden_spectrum),
        ):
            shares.copy_(spectrum / spectrum.sum().clamp_min(torch.finfo(spectrum.dtype).tiny))
        self.energy[0], self.energy[1] = factors.layer_energy, factors.hidden_energy
        ranks = (factors.layer.shape[1], factors.hidden.shape[1])
        if ranks != self.ranks and is_distributed() and self.student_factors in ("learned", "free"):
            raise LoriError(
                f"LowRankAlignment: rank_layers={self.rank_layers}, rank_hidden={self.rank_hidden} come to {ranks[0]} "
                f"and {ranks[1]} columns, and trainable factors cannot change their shape once several processes share "
                "them; give those numbers instead of shares of the energy"
            )
        self.set_ranks(ranks)
        if self.student_factors == "random":
            self.target.set_factors(*random_factors(self.teacher, ranks, self.seed))
        elif self.student_factors != "identity":
            self.target.set_factors(factors.layer, factors.hidden)

    @torch.no_grad()
    def _set_own_factors(self) -> None:
        if self.own is None or not self.measures_own or self.student_factors == "identity":
            return
        if self.student_factors == "random":
            self.own.set_factors(*random_factors(self.student, self.ranks, self.seed + self.is_paired))
        else:
            own = self._tuckers[-1].factors(*self.ranks)
            self.own.set_factors(own.layer, own.hidden)

    @torch.no_grad()
    def finish(self, core_energy: Tensor | None, cross: Tensor | None, norm: Tensor | None) -> None:
        r"""Record the energy kept and rotate the student's own factors onto the teacher's axes; drop the sums.

        Args:
            core_energy: Sum of squares of the teacher's cores over the tokens that the factors were fitted on; None
                where the teacher's side was loaded.
            cross: (r_L, r_D, r_L, r_D) cross moment of paired mean cores, `sum_i G'_i[a, b] G_i[c, d]`; where paired.
            norm: `sqrt(sum_i |G'_i|^2 sum_i |G_i|^2)`, scalar; where paired.
        """
        # NaN-free for trajectories that never vary: then nothing is lost either
        if core_energy is not None:
            whole = self._tuckers[0].energy
            self.energy[2] = core_energy / whole if whole > 0 else 1.0
        self._scales, self._tuckers = [], []
        if self.own is None or cross is None or norm is None:
            return
        factors = self.own.factors()
        assert factors is not None
        layer_rotation, hidden_rotation = mode_procrustes(cross)
        layer, hidden = (factor.to(cross.device).to(cross.dtype) for factor in factors)  # MPS cannot widen
        self.own.set_factors(layer @ layer_rotation, hidden @ hidden_rotation)
        overlap = torch.einsum("abcd,ac,bd->", cross, layer_rotation, hidden_rotation)
        self.start_correlation.copy_(overlap / norm.clamp_min(torch.finfo(norm.dtype).tiny))

    def set_ranks(self, ranks: tuple[int, int]) -> None:
        """Give the factors these ranks; where they change, values are undefined until set or loaded."""
        for side in self.sides:
            side.set_ranks(ranks)

    def adopt_ranks(self, ranks: tuple[int, int]) -> None:
        """Take ranks that were given as a share of energy from a checkpoint.

        Raises:
            LoriError: If the checkpoint's ranks differ from ranks given as numbers.
        """
        current = self.ranks
        asked = (self.rank_layers, self.rank_hidden)
        for held, now, rank in zip(ranks, current, asked, strict=True):
            if held != now and not isinstance(rank, float):
                raise LoriError(
                    f"LowRankAlignment: the checkpoint has ranks {ranks} (layers, hidden), this configuration "
                    f"{current}; set rank_layers and rank_hidden to the checkpoint's"
                )
        self.set_ranks(ranks)

    @torch.no_grad()
    def diagnostics(self, trajectory: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        """Ranks, shares of energy, spectra, orthonormality error and, of a student trajectory, its energy share."""
        side = self.target if self.own is None else self.own
        factors = side.factors()
        values = {
            "rank_layers": self.energy.new_tensor(float(side.ranks[0])),
            "rank_hidden": self.energy.new_tensor(float(side.ranks[1])),
            "energy_layers": self.energy[0].clone(),
            "energy_hidden": self.energy[1].clone(),
            "energy_core": self.energy[2].clone(),
            "spectrum_layers": self.layer_spectrum.clone(),
            "spectrum_hidden": self.hidden_spectrum.clone(),
        }
        if factors is not None:
            values["orthonormality_error"] = torch.stack([orthonormality_error(factor) for factor in factors]).amax()
        if self.is_paired:
            values["start_correlation"] = self.start_correlation.clone()
        if trajectory is not None and mask is not None:
            keep = mask[:, None, :, None]
            kept = torch.where(keep, side(trajectory), 0.0).square().sum()
            whole = torch.where(keep, side.normalise(trajectory), 0.0).square().sum()
            values["student_energy_share"] = kept / whole.clamp_min(torch.finfo(whole.dtype).tiny)
        return values

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mean = state_dict.get(f"{prefix}target.mean")
        if mean is not None and mean.shape != (self.teacher.layers, self.teacher.hidden):
            raise LoriError(
                f"LowRankAlignment: the checkpoint was fitted to a teacher of {TrajectoryShape(*mean.shape)}, this one "
                f"has {self.teacher}; use the checkpoint's teacher and layers"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _provisional(rank: int | float) -> int:
    return rank if isinstance(rank, int) else 1
