"""The open interface: a term written outside needs no more than the abstract methods."""

from __future__ import annotations

import pytest
import torch

from lori_pl.alignment import Signals, Term
from lori_pl.errors import LoriError
from lori_pl.methods.terms import weighted_terms


class Distance(Term):
    """Mean squared distance of anchors, without any fitting."""

    needs = frozenset({"anchor"})

    def __init__(self, w_distance: float = 0.5) -> None:
        super().__init__()
        self.weights = {"distance": w_distance}

    def prepare(self, student, teacher, others):
        pass

    def teacher_statistics(self, teacher):
        return {"anchor": teacher.anchor.detach()}

    def forward(self, student, statistics):
        return {"distance": (student.anchor - statistics["anchor"]).square().mean()}


def test_a_small_term_works_with_the_defaults():
    term = Distance()
    assert term.is_fitted  # it wants no sweeps
    assert not term.observes_student
    assert term.diagnostics() == {}
    statistics = term.teacher_statistics(Signals(anchor=torch.zeros(2, 1, 3)))
    assert term(Signals(anchor=torch.full((2, 1, 3), 2.0)), statistics)["distance"] == 4


def test_the_interface_itself_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Term()


def test_fitted_travels_with_the_state():
    term, other = Distance(), Distance()
    term.sweeps = other.sweeps = 1
    assert not term.is_fitted
    term.mark_fitted()
    other.load_state_dict(term.state_dict())
    assert other.is_fitted
    assert list(term.state_dict()) == ["fitted"]


def test_what_a_term_needs_must_be_there():
    for needs in ((), ("trajectories",)):
        term = Distance()
        term.needs = frozenset(needs)
        with pytest.raises(LoriError, match=r"Distance: needs is .* let it name 'trajectory', 'anchor' or both"):
            weighted_terms([term], {})
