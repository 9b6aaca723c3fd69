"""The anchor-level term: student and teacher agree at the token that predicts the answer's first token.

The published description names an anchor at the passage from thought to answer; the distance is that of CODI
(github.com/zhenyi4/codi), with one scale a layer from the training set: a reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lori_pl.alignment.distributed import copy_from_first_rank
from lori_pl.alignment.losses import standardised_smooth_l1
from lori_pl.alignment.low_rank import LowRankAlignment, only_projection
from lori_pl.alignment.precision import at_least_float32, autocast_off
from lori_pl.alignment.terms import Signals, Term, TrajectoryShape
from lori_pl.alignment.tucker import TrajectoryScale
from lori_pl.errors import LoriError, check_choice

AnchorSpace = Literal["full", "low_rank"]


class AnchorAlignment(Term):
    r"""Smooth-L1 between the anchor states of student and teacher, in units of the teacher's deviation in that layer.

        anchor: smooth-L1((a_S - a_T) / sigma_l), mean over the entries of all selected layers, then over problems

    a is the hidden state (L, D) at the token that predicts the answer's first token, with all selected layers or
    those of `layers`; sigma_l the root mean square deviation of the teacher's a in layer l from its mean over the
    training set (one number a layer).

    Args:
        w_anchor: Weight of the anchor loss.
        anchor_space: `full` compares hidden states (needs equal layers and hidden sizes); `low_rank` compares their
            cores under the projections of the `LowRankAlignment` among the terms, whose own weights may be zero; sigma
            is then one number a row of the core.
        delta: Where the smooth-L1 turns from quadratic to linear, in units of sigma.
        layers: Which of the selected layers are compared, by their place among them from 1 (-1 is the last of each
            side); all where none is given. Only under `full`: a projection is of all layers.

    Raises:
        LoriError: If delta is not positive or the space unknown, or `layers` is empty, or given under `low_rank`; from
            `prepare`, if shapes differ under `full`, `layers` names none or one twice, or `low_rank` finds no
            `LowRankAlignment`.
    """

    needs = frozenset({"anchor"})

    deviation: Tensor
    centre: Tensor

    def __init__(
        self,
        w_anchor: float = 1.0,
        anchor_space: AnchorSpace = "full",
        delta: float = 1.0,
        layers: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("AnchorAlignment: anchor_space", anchor_space, AnchorSpace)
        if delta <= 0:
            raise LoriError(f"AnchorAlignment: delta={delta} must be positive")
        if layers is not None and anchor_space == "low_rank":
            raise LoriError(
                f"AnchorAlignment: layers={layers} with anchor_space=low_rank: the projection is of all selected "
                "layers; use anchor_space=full, or leave layers out"
            )
        self.weights = {"anchor": w_anchor}
        self.anchor_space = anchor_space
        self.delta = delta
        self.layers = layers
        # the other term's factors stand after its second sweep
        self.sweeps = 1 if anchor_space == "full" else 3
        self._shapes: tuple[TrajectoryShape, TrajectoryShape] | None = None
        self._projection: tuple[LowRankAlignment, ...] = ()  # in a tuple: not a sub-module, its keys stand once
        self._scale: TrajectoryScale | None = None

    @property
    def measured_with(self) -> dict[str, Any]:
        """The space and the layers that the anchor states are compared in."""
        layers = {} if self.layers is None else {"layers": self.layers}
        return {"anchor_space": self.anchor_space} | layers

    def rests_on(self, other: Term) -> bool:
        """On the projection, under `low_rank`."""
        return self.anchor_space == "low_rank" and isinstance(other, LowRankAlignment)

    def check(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Refuse unequal shapes or unknown layers under `full`, and `low_rank` without exactly one `LowRankAlignment`.

        Raises:
            LoriError: Naming the remedy.
        """
        own, target = (
            (len(self._places(side, shape.layers)), shape.hidden)
            for side, shape in (("student", student), ("teacher", teacher))
        )
        if self.anchor_space == "full" and own != target:
            raise LoriError(
                f"AnchorAlignment: anchor_space=full needs equal anchor states, but the teacher has {teacher} and the "
                f"student {student}; use anchor_space=low_rank"
                + (", or name as many layers of each, as layers=[-1]" if student.hidden == teacher.hidden else "")
            )
        if self.anchor_space == "low_rank":
            only_projection(others, "AnchorAlignment: anchor_space=low_rank", ", or use anchor_space=full")

    def prepare(self, student: TrajectoryShape, teacher: TrajectoryShape, others: Sequence[Term]) -> None:
        """Find the projection, and allocate; the order of the terms does not matter.

        Raises:
            LoriError: As `check`.
        """
        if self._shapes == (student, teacher):
            return
        self.check(student, teacher, others)
        if self.anchor_space == "low_rank":
            self._projection = (only_projection(others, type(self).__name__),)
        self._shapes = (student, teacher)
        layers = len(self._places("teacher", teacher.layers))
        self.register_buffer("deviation", torch.ones(layers))
        # of the core under low_rank, whose shape the other term's fit decides
        size = (1, 1) if self._projection else (layers, teacher.hidden)
        self.register_buffer("centre", torch.zeros(size))

    def begin_sweep(self, sweep: int) -> None:
        """Start measuring sigma in the last sweep; earlier ones do nothing."""
        if sweep == self.sweeps - 1:
            self._require_shapes()
            layers, hidden = self._projection[0].subspace.ranks if self._projection else self.centre.shape
            self._scale = TrajectoryScale(layers, hidden, device=self.fitted.device)

    @torch.no_grad()
    def observe(self, sweep: int, teacher: Signals, student: Signals | None) -> None:
        """Take in the teacher's anchor states of one batch."""
        if self._scale is not None:
            anchor = self._target_anchor(teacher)
            self._scale.update(anchor.unsqueeze(2))

    def sweep_state(self) -> dict[str, Tensor]:
        """As in `Term`."""
        return {} if self._scale is None else self._scale.state_dict()

    def resume_sweep(self, sweep: int, state: Mapping[str, Tensor]) -> None:
        """As in `Term`."""
        self.begin_sweep(sweep)
        if self._scale is not None:
            self._scale.load_state_dict(state)

    @torch.no_grad()
    def end_sweep(self, sweep: int) -> None:
        """Merge the ranks' observations and set sigma."""
        if self._scale is None:
            return
        self._scale.merge_ranks()
        self.deviation = self._scale.scale.to(self.deviation)
        self.centre = self._scale.mean.to(self.centre)
        copy_from_first_rank(self)
        self.mark_fitted()
        self._scale = None

    @torch.no_grad()
    def teacher_statistics(self, teacher: Signals) -> dict[str, Tensor]:
        """`anchor` (B, L, D), L of `layers` where given, or (B, r_L, r_D) under `low_rank`."""
        return {"anchor": self._target_anchor(teacher)}

    def pack(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Centred, in units of sigma."""
        return {"anchor": (statistics["anchor"] - self.centre) / self.deviation.unsqueeze(-1)}

    def unpack(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `teacher_statistics` gave them, to rounding."""
        return {"anchor": packed["anchor"].to(self.centre) * self.deviation.unsqueeze(-1) + self.centre}

    def forward(self, student: Signals, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss `anchor`.

        Raises:
            LoriError: If the term is not fitted, or the statistics do not match the student's anchor states.
        """
        self.require_fitted()
        anchor = self._anchor("student", student)
        with autocast_off(anchor.device):
            own = (
                self._projection[0].subspace.student_core(anchor.unsqueeze(2)).squeeze(2)
                if self._projection
                else anchor
            )
            own = at_least_float32(own)
            target = statistics["anchor"].detach().to(own)
            if target.shape != own.shape:
                raise LoriError(
                    f"AnchorAlignment: the teacher's anchor states have shape {tuple(target.shape)}, the student's "
                    f"{tuple(own.shape)}; make them with the same batch, layers and anchor_space"
                )
            return {"anchor": standardised_smooth_l1(own, target, self.deviation.unsqueeze(-1), self.delta).mean()}

    def _target_anchor(self, teacher: Signals) -> Tensor:
        anchor = self._anchor("teacher", teacher)
        if self._projection:
            return self._projection[0].subspace.target_core(anchor.unsqueeze(2)).squeeze(2)
        return at_least_float32(anchor.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        deviation = state_dict.get(f"{prefix}deviation")
        if deviation is not None:
            _, teacher = self._require_shapes()
            if self._projection:  # as many rows as the core has, which the other term's fit may have decided
                self.deviation = self.deviation.new_ones(deviation.shape)
                self.centre = self.centre.new_zeros(state_dict[f"{prefix}centre"].shape)
            elif deviation.shape != self.deviation.shape:
                raise LoriError(
                    f"AnchorAlignment: the checkpoint was fitted to {len(deviation)} layers, and here there are "
                    f"{len(self.deviation)} of the teacher's {teacher}; use the checkpoint's teacher, layers and "
                    "anchor_space"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _require_shapes(self) -> tuple[TrajectoryShape, TrajectoryShape]:
        if self._shapes is None:
            raise LoriError("AnchorAlignment: call prepare(student, teacher, others) first")
        return self._shapes

    def _places(self, side: str, count: int) -> list[int]:
        """Where the compared layers stand among the `count` selected ones of a side, from 0."""
        if self.layers is None:
            return list(range(count))
        places = [layer - 1 if layer > 0 else count + layer for layer in self.layers]
        if not places or len(set(places)) < len(places) or not all(0 <= place < count for place in places):
            raise LoriError(
                f"AnchorAlignment: layers={self.layers} of the {side}'s {count} selected layers: name some of 1 to "
                f"{count} (or -1 to -{count}), each once"
            )
        return places

    def _anchor(self, side: str, signals: Signals) -> Tensor:
        if signals.anchor is None:
            raise LoriError("AnchorAlignment: the anchor states are missing; give Signals(anchor=...) of this side")
        if self.layers is None:
            return signals.anchor
        # no tensor of indices, which would have to reach the device
        places = self._places(side, signals.anchor.shape[1])
        return torch.stack([signals.anchor[:, place] for place in places], 1)
