"""The open interface of an alignment term: a module that compares a student's signals with a teacher's."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lori_pl.errors import LoriError


@dataclass(frozen=True)
class TrajectoryShape:
    """What a side's trajectories look like: number of selected `layers` L and size `hidden` D of a hidden state."""

    layers: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.layers} layers x {self.hidden}"


@dataclass
class Signals:
    """One side's hidden states for a batch of B problems.

    Attributes:
        trajectory: (B, L, T, D), the selected layers at each rationale token or latent step.
        mask: (B, T), true where a token counts; None counts all.
        anchor: (B, L, D), the selected layers at the token that predicts the answer's first token.
        statistics: Of a teacher whose states are not at hand: what a cache holds of it for this term, as
            `Term.teacher_statistics` gives it.
    """

    trajectory: Tensor | None = None
    mask: Tensor | None = None
    anchor: Tensor | None = None
    statistics: Mapping[str, Tensor] | None = None


def trajectory_of(signals: Signals | None) -> Tensor:
    """The trajectory (B, L, T, D) of one side.

    Raises:
        LoriError: If it is missing.
    """
    if signals is None or signals.trajectory is None:
        raise LoriError("alignment: a trajectory is missing; give Signals(trajectory=...) of this side")
    return signals.trajectory


def token_mask(signals: Signals | None) -> Tensor:
    """The token mask (B, T) as bool; all true where none is given."""
    hidden = trajectory_of(signals)
    mask = signals.mask if signals is not None else None
    if mask is None:
        return torch.ones(hidden.shape[0], hidden.shape[2], dtype=torch.bool, device=hidden.device)
    return mask.to(hidden.device, torch.bool)


class Term(nn.Module, abc.ABC):
    """A named part of the distillation loss, fitted on the training rationales before training starts.

    The order of calls is: `prepare` once; then, unless `is_fitted`, for each `sweep` in `range(sweeps)`:
    `begin_sweep(sweep)`, `observe(sweep, ...)` for every training batch, `end_sweep(sweep)` (on every rank); then in
    training `teacher_statistics`, or the same tensors from a cache, and `forward`. Floating-point state stays in at
    least fp32 when the module it belongs to is cast to half precision.

    With a cache the teacher's side was fitted elsewhere: `load_teacher_state` comes before the sweeps. In a term that
    `observes_student` these then measure the student alone; `observe` gets `Signals(statistics=...)` as the teacher.

    Attributes:
        needs: What it reads of `Signals`: a subset of {'trajectory', 'anchor'}.
        weights: The weight of each loss in the total, by the name `forward` returns it under.
        sweeps: Number of passes over the training rationales it wants before training.
        observes_student: Whether `observe` also needs the initial student's signals on the same rationales (its
            tokenizer, hence its number of tokens, may differ from the teacher's).
        over_batch: What of its losses is of a whole batch and not of each problem, in words.
        fitted: A bool buffer, true after the last sweep, so that a resumed checkpoint skips the sweeps.
    """

    needs: frozenset[str] = frozenset()
    weights: dict[str, float]
    sweeps: int = 0
    observes_student: bool = False
    over_batch: str = ""
    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weights = {}
        self.register_buffer("fitted", torch.tensor(False))
        self._fitted_on_host = False

    @property
    def weighs(self) -> bool:
        """Whether a weight is not zero: else the loss is not computed."""
        return any(weight != 0 for weight in self.weights.values())

    def rests_on(self, other: Term) -> bool:
        """Whether this loss is computed with what another term measures, which is then measured at any weight."""
        return False

    @property
    def is_fitted(self) -> bool:
        """Whether `forward` may be called: the value of `fitted`, or no sweeps wanted; no device synchronisation."""
        return self._fitted_on_host or self.sweeps == 0

    def require_fitted(self) -> None:
        """Refuses to go on before the sweeps.

        Raises:
            LoriError: If the term is not fitted.
        """
        if not self.is_fitted:
            raise LoriError(
                f"{type(self).__name__}: the term is not fitted; run its sweeps over the training rationales, or load "
                "a checkpoint that holds them"
            )

    def assume_fitted(self) -> None:
        """Lets `forward` be called with what the buffers hold, for a look at sizes alone."""
        self._fitted_on_host = True

    @property
    def measured_with(self) -> dict[str, Any]:
        """The arguments on which the buffers of a fitted term depend, as plain values; a resumed run must agree."""
        return {}

    @property
    def teacher_measured_with(self) -> dict[str, Any]:
        """That part of `measured_with` on which `teacher_state` and the statistics depend."""
        return self.measured_with

    def teacher_state(self) -> dict[str, Tensor]:
        """The fitted buffers that come from the teacher alone: what a cache keeps beside the statistics."""
        buffers = {name for name, _ in self.named_buffers()} - {"fitted"}
        return {name: tensor for name, tensor in self.state_dict().items() if name in buffers}

    def measure_teacher_alone(self) -> None:
        """Leave the student's side out of the sweeps: for who wants the `teacher_state` only. Comes after `prepare`."""
        self.observes_student = False

    def load_teacher_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `teacher_state` gave; the term is fitted then, unless it `observes_student`.

        Raises:
            LoriError: If the state is of other shapes than this term was prepared for.
        """
        self.load_state_dict(dict(state), strict=False)
        if not self.observes_student:
            self.mark_fitted()

    def mark_fitted(self) -> None:
        """Record that the last sweep has ended."""
        self.fitted.fill_(True)
        self._fitted_on_host = True

    def check(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Refuse what the term cannot work with, before anything is loaded or allocated.

        Args:
            student: Shape of the student's trajectories.
            teacher: Shape of the teacher's trajectories.
            others: The other terms of the same model.

        Raises:
            LoriError: If the term cannot work with these shapes or without another term.
        """

    def prepare(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Allocate parameters and buffers for these shapes; a second call with the same shapes changes nothing.

        Args:
            student: Shape of the student's trajectories.
            teacher: Shape of the teacher's trajectories.
            others: The other terms of the same model; must not be registered as sub-modules.

        Raises:
            LoriError: As `check`.
        """
        self.check(student, teacher, others)

    def begin_sweep(self, sweep: int) -> None:
        """Start pass number `sweep` (from 0) over the training rationales."""

    def observe(self, sweep: int, teacher: Signals, student: Signals | None) -> None:
        """Take in one batch of training rationales; rows of `teacher` and `student` are the same problems."""

    def sweep_state(self) -> dict[str, Tensor] | None:
        """The sums of the sweep at work, and of those before it, for an interrupted build of a cache to go on from.

        ``None`` from a term that cannot give them; measuring then begins anew.
        """
        return None if self.sweeps else {}

    def resume_sweep(self, sweep: int, state: Mapping[str, Tensor]) -> None:
        """As `begin_sweep`, and goes on from what `sweep_state` gave; the buffers were loaded before."""
        raise NotImplementedError

    def end_sweep(self, sweep: int) -> None:
        """Finish a pass: merge what the ranks observed, set buffers, and after the last pass call `mark_fitted`."""

    @abc.abstractmethod
    def teacher_statistics(self, teacher: Signals) -> dict[str, Tensor]:
        """What `forward` needs of the teacher, one row a problem, without gradients: what a cache stores."""

    def pack(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The statistics as a cache stores them: nothing twice, and in units in which half precision holds them."""
        return dict(statistics)

    def unpack(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The statistics again, in fp32, from what `pack` made."""
        return {name: tensor.float() for name, tensor in packed.items()}

    @abc.abstractmethod
    def forward(self, student: Signals, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted scalar losses by name: means over entries, then over the problems of the batch."""

    def diagnostics(
        self, student: Signals | None = None, statistics: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Values for the log, scalars and (spectra) vectors; those that depend on a batch only where one is given.

        Makes no collective calls, so one rank may call it alone.
        """
        return {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            is_halved = tensor.is_floating_point() and moved.element_size() < 4 <= tensor.element_size()
            return tensor.to(moved.device) if is_halved else moved

        return super()._apply(keep_precision, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._fitted_on_host = bool(self.fitted) if not self.fitted.is_meta else False
