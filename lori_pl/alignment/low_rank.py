"""The rationale-level term: trajectories of teacher and student compared in a low-rank tensor subspace.

A reconstruction of LoRi (Solgi, Tian, Zhang; arXiv 2606.05315): known are the Tucker subspace and the first- and
second-order statistics over layers and tokens; every argument below is a choice of this reconstruction.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lori_pl.alignment.core_statistics import CoreStatistics, has_spread, inverse_square_root
from lori_pl.alignment.distributed import copy_from_first_rank
from lori_pl.alignment.losses import relative_frobenius, relative_frobenius_floor, standardised_smooth_l1
from lori_pl.alignment.moments import Moments, SecondOrder, batch_moments, trajectory_moments
from lori_pl.alignment.packing import pack_statistics, prefixed, unpack_statistics
from lori_pl.alignment.precision import autocast_off
from lori_pl.alignment.subspace import StudentFactors, TensorSubspace, ranks_within
from lori_pl.alignment.terms import Signals, Term, TrajectoryShape, token_mask, trajectory_of
from lori_pl.alignment.tucker import LayerScale
from lori_pl.errors import LoriError, check_choice

log = logging.getLogger(__name__)

Core = Literal["per_layer_mode", "joint"]
Scope = Literal["problem", "batch"]
CovarianceLoss = Literal["relative", "whitened"]

_STUDENT_STATE = ("fitted", "subspace.own.", "subspace.start_correlation")
_EPSILON = 0.1  # of the squared norm of the mean block: caps what a problem of little variation weighs


class LowRankAlignment(Term):
    r"""First- and second-order alignment of the cores of teacher and student trajectories.

    Each side's hidden states H (layers x tokens x hidden) are centred and scaled by its M and s, and projected token by
    token on its factors: `G_t = U_L^T ((H_t - M) / s) U_D`, `g_t = vec(G_t)`. With mu and Sigma the mean and the
    second-order statistic of g_t over tokens (rationale tokens for the teacher, latent steps for the student), the
    losses are, per problem and then averaged over the batch (a problem whose rationale has no token counts zero, in
    the covariance also one of a single token, which has none to follow):

        mean:        smooth-L1((mu_S - mu_T) / sd), mean over the core's entries
        covariance:  |Sigma_S - Sigma_T|_F^2 / (|Sigma_T|_F^2 + eps), mean over blocks

    sd is the standard deviation of each core entry over the training rationales' tokens. eps is a tenth of the squared
    norm of the block's mean Sigma_T (over problems of several tokens, or with `scope=batch` of all pooled), so that a
    small Sigma_T has a bounded weight.

    The covariance loss does not change under a rotation of U_D on both sides, with the joint core neither under one of
    U_L; whitened by a fixed S, it changes under both. Statistics are computed in fp32 outside autocast, and no gradient
    reaches the teacher. Before training, three passes over the training rationales measure M and s, the factors
    (truncated HOSVD), and sd. Memory of a problem's Sigma is r_L r_D^2 numbers, (r_L r_D)^2 with the joint core: large
    under `identity`.

    Args:
        rank_layers: Rank r_L of the layer mode: a number of columns, or a share of the teacher's energy in (0, 1),
            capped at what both sides have; None takes the smaller of both numbers of layers.
        rank_hidden: Rank r_D of the hidden mode: a number of columns or a share of the energy in (0, 1). Where
            several processes train, trainable factors (`learned`, `free`) take numbers only.
        w_mean: Weight of the mean loss.
        w_covariance: Weight of the covariance loss.
        student_factors: What the student is projected on: `shared`, the teacher's factors, centre and scale (needs
            equal shapes); `learned`, own trainable orthonormal factors (any shapes); for ablation `pca`, own HOSVD,
            fixed; `random`, fixed random orthonormal factors, the same on both sides where shapes agree; `free`, own
            trainable factors without constraint; `identity`, no projection on either side (ranks are ignored; needs
            equal shapes). All but `shared` centre and scale the student by its own initial trajectories on the same
            rationales. Own factors start from the student's HOSVD (`random` of unequal shapes: from random ones),
            rotated mode by mode onto the teacher's per-problem mean cores (orthogonal Procrustes).
        second_order: `covariance` about the mean, `raw_moment` about zero, or `none` (no covariance loss).
        core: `per_layer_mode`, r_L blocks of r_D x r_D; or `joint`, one r_L r_D x r_L r_D matrix.
        scope: `problem`, statistics of each problem; or `batch`, of all problems of the batch on all ranks, each
            problem weighing the same: Sigma_B = mean Sigma_i + Cov(mu_i).
        covariance_loss: `relative`; or `whitened`, the same of S^-1 Sigma S^-1 with S^2 the teacher's mean Sigma over
            the training set (under `batch`, of all training problems pooled).
        layer_scale: `rms` divides each layer by the root mean square of its centred states (of sides of unequal size,
            so that a token has the same energy on both); `none` does not.
        delta: Where the smooth-L1 turns linear, in standard deviations.
        floor: Least sd, as a share of the largest; the same for the eigenvalues of S.
        seed: Seed of the `random` factors.

    Raises:
        LoriError: If an argument is out of range; from `prepare`, if shapes or ranks do not fit.
    """

    needs = frozenset({"trajectory"})
    sweeps = 3

    subspace: TensorSubspace
    deviation: Tensor
    epsilon: Tensor
    whitening: Tensor | None

    def __init__(
        self,
        rank_layers: int | float | None = None,
        rank_hidden: int | float = 32,
        w_mean: float = 0.3,
        w_covariance: float = 0.3,
        student_factors: StudentFactors = "shared",
        second_order: SecondOrder = "covariance",
        core: Core = "per_layer_mode",
        scope: Scope = "problem",
        covariance_loss: CovarianceLoss = "relative",
        layer_scale: LayerScale = "rms",
        delta: float = 1.0,
        floor: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given: list[tuple[str, str, object]] = [
            ("student_factors", student_factors, StudentFactors),
            ("second_order", second_order, SecondOrder),
            ("core", core, Core),
            ("scope", scope, Scope),
            ("covariance_loss", covariance_loss, CovarianceLoss),
            ("layer_scale", layer_scale, LayerScale),
        ]
        for option, value, known in given:
            check_choice(f"LowRankAlignment: {option}", value, known)
        if delta <= 0:
            raise LoriError(f"LowRankAlignment: delta={delta} must be positive")
        if not 0 < floor <= 1:
            raise LoriError(f"LowRankAlignment: floor={floor} is a share of the largest deviation; choose it in (0, 1]")
        self.weights = {"mean": w_mean}
        if second_order != "none":
            self.weights["covariance"] = w_covariance
        self.rank_layers = rank_layers
        self.rank_hidden = rank_hidden
        self.student_factors = student_factors
        self.second_order = second_order
        self.core = core
        self.scope = scope
        self.over_batch = "alignment.scope is batch" if scope == "batch" else ""
        self.is_whitened = covariance_loss == "whitened" and second_order != "none"
        self.layer_scale = layer_scale
        self.delta = delta
        self.floor = floor
        self.seed = seed
        self.observes_student = student_factors != "shared"
        self._is_prepared = False
        self._statistics: CoreStatistics | None = None

    @property
    def measured_with(self) -> dict[str, Any]:
        """All but the weights and delta."""
        names = ("rank_layers", "rank_hidden", "student_factors", "second_order", "core", "scope", "is_whitened")
        return {name: getattr(self, name) for name in (*names, "layer_scale", "floor", "seed")}

    @property
    def teacher_measured_with(self) -> dict[str, Any]:
        """The same without what concerns the student's factors alone; where they are the teacher's too, they count."""
        values = {name: value for name, value in self.measured_with.items() if name not in ("student_factors", "seed")}
        target = {"identity": "identity", "random": f"random, seed {self.seed}"}
        return values | {"target_factors": target.get(self.student_factors, "hosvd")}

    def teacher_state(self) -> dict[str, Tensor]:
        """Centre, scale, factors, spectra and the losses' scales."""
        state = self.state_dict()
        return {name: state[name] for name in state if not name.startswith(_STUDENT_STATE)}

    def measure_teacher_alone(self) -> None:
        """As in `Term`."""
        self._require_prepared()
        super().measure_teacher_alone()
        self.subspace.measures_own = False

    def load_teacher_state(self, state: Mapping[str, Tensor]) -> None:
        """As in `Term`; the student's own side, where it has one, is still to be measured."""
        super().load_teacher_state(state)
        if self.observes_student:
            self.subspace.measures_teacher = False

    def check(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Refuse a rank that exceeds a dimension of either side, and shapes that differ where they must agree.

        Raises:
            LoriError: Naming them and the remedy.
        """
        ranks_within(student, teacher, self.rank_layers, self.rank_hidden, self.student_factors)

    def prepare(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Check shapes and ranks and allocate.

        A rank given as a share of energy stands at 1 until the second sweep ends or a checkpoint is loaded; parameters
        keep their identity then, but wrap the module for distributed training only afterwards.

        Raises:
            LoriError: As `check`.
        """
        if self._is_prepared and (self.subspace.student, self.subspace.teacher) == (student, teacher):
            return
        self.subspace = TensorSubspace(
            student, teacher, self.rank_layers, self.rank_hidden, self.student_factors, self.layer_scale, self.seed
        ).to(self.fitted.device)
        self._is_prepared = True
        self._allocate()

    def begin_sweep(self, sweep: int) -> None:
        """Start measuring centres and scales (0), factors (1) or core statistics (2)."""
        self._require_prepared()
        if sweep < 2:
            self.subspace.begin_sweep(sweep)
        else:
            paired = self.subspace.is_paired and self.observes_student
            self._statistics = CoreStatistics(
                self.subspace.ranks, self._block_shape, self.second_order, paired, self.fitted.device
            )

    @torch.no_grad()
    def observe(self, sweep: int, teacher: Signals, student: Signals | None) -> None:
        """Take in the trajectories of one batch.

        Raises:
            LoriError: If trajectories are missing or not of the prepared shape.
        """
        if sweep < 2:
            trajectories = [(trajectory_of(teacher), token_mask(teacher))] if self.subspace.measures_teacher else []
            if self.observes_student:
                trajectories.append((trajectory_of(student), token_mask(student)))
            self.subspace.observe(sweep, trajectories)
            return
        assert self._statistics is not None
        if not self.subspace.measures_teacher:
            assert teacher.statistics is not None
            mean, has_tokens = teacher.statistics["mean"], teacher.statistics["weight"] > 0
        else:
            hidden, mask = trajectory_of(teacher), token_mask(teacher)
            core = self.subspace.target_core(hidden)
            moments = trajectory_moments(self._blocks(core), mask, self.second_order)
            self._statistics.observe(core, mask, moments)
            mean, has_tokens = moments.mean, mask.any(1)
        if self.subspace.is_paired and self.observes_student:
            own_hidden, own_mask = trajectory_of(student), token_mask(student)
            own = trajectory_moments(self._blocks(self.subspace.student_core(own_hidden)), own_mask, "none")
            self._statistics.observe_pair(own.mean, mean, has_tokens & own_mask.any(1))

    def sweep_state(self) -> dict[str, Tensor]:
        """As in `Term`."""
        sums = {} if self._statistics is None else self._statistics.sums
        return {**self.subspace.sweep_state(), **{f"core.{name}": value for name, value in sums.items()}}

    def resume_sweep(self, sweep: int, state: Mapping[str, Tensor]) -> None:
        """As in `Term`."""
        self._require_prepared()
        self.subspace.resume_sweep(sweep, state)
        if sweep > 1:
            self.begin_sweep(sweep)
            assert self._statistics is not None
            for name, value in prefixed(state, "core.").items():
                self._statistics.sums[name].copy_(value)

    @torch.no_grad()
    def end_sweep(self, sweep: int) -> None:
        """Merge the ranks' observations and set centres and scales (0), factors (1), or the losses' scales (2).

        Raises:
            LoriError: If no rationale token was observed, or a hidden state was not finite.
        """
        if sweep < 2:
            self.subspace.end_sweep(sweep)
            if self.subspace.measures_teacher:
                self._allocate()
            return
        assert self._statistics is not None
        self._statistics.merge_ranks(require_tokens=self.subspace.measures_teacher)
        self._set_statistics(self._statistics)
        copy_from_first_rank(self)
        self.mark_fitted()
        self._statistics = None

    def _set_statistics(self, statistics: CoreStatistics) -> None:
        if not self.subspace.measures_teacher:
            self.subspace.finish(None, statistics.cross, statistics.cross_norm)
            return
        self.deviation.copy_(statistics.deviation(self.floor))
        if self.second_order != "none":
            second = statistics.second(pooled=self.scope == "batch")
            if not second.any():
                log.warning(
                    "LowRankAlignment: no rationale has two tokens that differ, so the covariance counts zero; take "
                    "more tokens (data.rationale_tokens), or set second_order to none"
                )
            if self.whitening is not None:
                whitening = inverse_square_root(second, self.floor)
                self.whitening.copy_(whitening)
                second = whitening @ second @ whitening
            norm = second.square().sum((1, 2))
            least = max(self.floor**4 * float(norm.amax()), 1e-12)
            self.epsilon.copy_(_EPSILON * norm.clamp_min(least))
        self.subspace.finish(statistics.core_energy, statistics.cross, statistics.cross_norm)

    @torch.no_grad()
    def teacher_statistics(self, teacher: Signals) -> dict[str, Tensor]:
        """`mean` (B, blocks, d), `second` (B, blocks, d, d) unless off, `weight` (B,): 0 without a rationale token."""
        self.require_fitted()
        hidden, mask = trajectory_of(teacher), token_mask(teacher)
        moments = trajectory_moments(self._blocks(self.subspace.target_core(hidden)), mask, self.second_order)
        statistics = {"mean": moments.mean, "weight": mask.any(1).to(moments.mean)}
        if moments.second is not None:
            statistics["second"] = moments.second
        return statistics

    def pack(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In standard deviations of the core's entries; of the symmetric `second` the upper triangle, row by row."""
        return pack_statistics(statistics, self.deviation.view(self._block_shape))

    def unpack(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `teacher_statistics` gave them, to rounding."""
        return unpack_statistics(packed, self.deviation.view(self._block_shape))

    def forward(self, student: Signals, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses `mean` and, unless `second_order` is none, `covariance`.

        Raises:
            LoriError: If the term is not fitted, or the statistics were made with other ranks or another batch.
        """
        self.require_fitted()
        hidden = trajectory_of(student)
        with autocast_off(hidden.device):
            own = trajectory_moments(self._blocks(self.subspace.student_core(hidden)), student.mask, self.second_order)
            target = self._target_moments(own, statistics)
            weights = statistics["weight"].detach().to(own.mean)
            # where the whole batch has one statistic, a problem of one token adds to it
            spread = weights if target.second is None else weights * has_spread(target.second)
            if self.scope == "batch":
                own = batch_moments(own, weights, self.second_order)
                target = batch_moments(target, weights, self.second_order)
                weights = spread = weights.new_ones(1)
            difference = standardised_smooth_l1(
                own.mean, target.mean, self.deviation.view(own.mean.shape[1:]), self.delta
            )
            losses = {"mean": (weights * difference).mean()}
            if own.second is not None and target.second is not None:
                difference = relative_frobenius(own.second, target.second, self.epsilon, self.whitening)
                losses["covariance"] = (spread * difference).mean()
            return losses

    def _target_moments(self, own: Moments, statistics: Mapping[str, Tensor]) -> Moments:
        mean, second = statistics["mean"], statistics["second"] if own.second is not None else None
        if mean.shape != own.mean.shape:
            raise LoriError(
                f"LowRankAlignment: the teacher's statistics have shape {tuple(mean.shape)}, the student's "
                f"{tuple(own.mean.shape)}; make them with the same batch, ranks and core"
            )
        return Moments(mean.detach().to(own.mean), None if second is None else second.detach().to(own.mean))

    @torch.no_grad()
    def diagnostics(
        self, student: Signals | None = None, statistics: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Ranks, shares of energy kept, spectra (as shares), orthonormality error; with a batch, more.

        `energy_core` is what both factors keep together; `start_correlation` the cosine between paired mean cores after
        the Procrustes rotation. With `student`: `student_energy_share`, the share of its centred, scaled trajectories'
        energy in its subspace. With `statistics` too: `covariance_floor`, the least covariance loss that the rank of
        its statistic (K - 1 for the covariance of K latents) permits on this batch; under `scope=batch`, on this
        rank's part of it.
        """
        self._require_prepared()
        if student is None:
            return self.subspace.diagnostics(None, None)
        hidden = trajectory_of(student)
        values = self.subspace.diagnostics(hidden, token_mask(student))
        if statistics is not None and self.second_order != "none":
            values["covariance_floor"] = self._covariance_floor(hidden.shape[2], statistics)
        return values

    def _covariance_floor(self, latents: int, statistics: Mapping[str, Tensor]) -> Tensor:
        weights = statistics["weight"].to(self.epsilon)
        target = Moments(statistics["mean"].to(self.epsilon), statistics["second"].to(self.epsilon))
        if self.scope == "batch":
            latents *= len(weights)
            target = batch_moments(target, weights, self.second_order, across_ranks=False)
            weights = weights.new_ones(1)
        assert target.second is not None
        rank = latents - 1 if self.second_order == "covariance" else latents
        return (weights * relative_frobenius_floor(target.second, rank, self.epsilon, self.whitening)).mean()

    @property
    def _block_shape(self) -> tuple[int, int]:
        """Number and size of the blocks of which second-order statistics are compared."""
        layers, hidden = self.subspace.ranks
        return (layers, hidden) if self.core == "per_layer_mode" else (1, layers * hidden)

    def _blocks(self, core: Tensor) -> Tensor:
        """Cores (B, r_L, T, r_D) as blocks (B, blocks, T, d)."""
        return core if self.core == "per_layer_mode" else core.transpose(1, 2).flatten(2).unsqueeze(1)

    def _allocate(self) -> None:
        """Give the buffers the shapes that the ranks ask for."""
        device = self.fitted.device
        number, size = self._block_shape
        self.register_buffer("deviation", torch.ones(self.subspace.ranks, device=device))
        self.register_buffer("epsilon", torch.ones(number, device=device))
        whitening = torch.eye(size, device=device).repeat(number, 1, 1) if self.is_whitened else None
        self.register_buffer("whitening", whitening)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        deviation = state_dict.get(f"{prefix}deviation")
        if deviation is not None:
            self._require_prepared()
            if deviation.shape != self.deviation.shape:
                self.subspace.adopt_ranks(tuple(deviation.shape))
                self._allocate()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _require_prepared(self) -> None:
        if not self._is_prepared:
            raise LoriError("LowRankAlignment: call prepare(student, teacher, others) first")


def only_projection(others: Sequence[Term], who: str, else_what: str = "") -> LowRankAlignment:
    """The `LowRankAlignment` among other terms, of which there must be one.

    Args:
        others: The other terms of the same model.
        who: Who needs it, for the complaint.
        else_what: What else can be done than to add one.

    Raises:
        LoriError: If there is none, or more than one.
    """
    found = [term for term in others if isinstance(term, LowRankAlignment)]
    if len(found) != 1:
        raise LoriError(
            f"{who} needs exactly one LowRankAlignment among the terms, found {len(found)}; add one{else_what}"
        )
    return found[0]
