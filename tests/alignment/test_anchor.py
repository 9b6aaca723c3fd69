"""AnchorAlignment: one scale a layer, in full or in the rationale term's subspace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, Signals, TrajectoryShape
from lori_pl.errors import LoriError

SHAPE = TrajectoryShape(3, 6)


def sides(problems=20, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(problems, shape.layers, 5, shape.hidden, generator=generator).cumsum(1)
    anchor = torch.randn(problems, shape.layers, shape.hidden, generator=generator) + 2.0
    return Signals(trajectory=hidden, anchor=anchor)


def fit(terms, student_shape, teacher_shape, teacher, student):
    for term in terms:
        term.prepare(student_shape, teacher_shape, [other for other in terms if other is not term])
    for sweep in range(max(term.sweeps for term in terms)):
        wanting = [term for term in terms if sweep < term.sweeps]
        for term in wanting:
            term.begin_sweep(sweep)
        for term in wanting:
            term.observe(sweep, teacher, student)
        for term in wanting:
            term.end_sweep(sweep)


def test_by_hand():
    term = AnchorAlignment(w_anchor=2.0)
    # layer 0: deviations +-1 and +-3, sigma sqrt 5; layer 1: +-2 and +-4, sigma sqrt 10; the means drop out
    teacher = Signals(anchor=torch.tensor([[[11.0, 3.0], [2.0, 4.0]], [[9.0, -3.0], [-2.0, -4.0]]]))
    fit([term], TrajectoryShape(2, 2), TrajectoryShape(2, 2), teacher, None)
    assert torch.allclose(term.deviation.square(), torch.tensor([5.0, 10.0]))
    student = Signals(anchor=teacher.anchor.clone())
    student.anchor[0, 0, 0] += 5.0  # sqrt 5 deviations: sqrt 5 - 1/2
    student.anchor[1, 1, 1] += 1.0  # 1 / sqrt 10: 1/20
    found = term(student, term.teacher_statistics(teacher))
    assert found["anchor"].item() == pytest.approx((5**0.5 - 0.5 + 0.05) / 8, rel=1e-5)
    term.delta = 2.0  # a quarter of the square where that is below two deviations
    assert term(student, term.teacher_statistics(teacher))["anchor"].item() == pytest.approx(
        (5**0.5 - 1 + 0.025) / 8, rel=1e-5
    )
    assert term.weights == {"anchor": 2.0}
    assert term.needs == {"anchor"}


def test_chosen_layers_are_those_of_sides_that_have_no_others():
    teacher, student = sides(), sides(seed=1)
    chosen, alone = AnchorAlignment(layers=[3, 1]), AnchorAlignment()
    fit([chosen], SHAPE, SHAPE, teacher, None)
    picked = [Signals(anchor=side.anchor[:, [2, 0]]) for side in (teacher, student)]
    fit([alone], TrajectoryShape(2, 6), TrajectoryShape(2, 6), picked[0], None)
    student.anchor.requires_grad_()
    loss = chosen(student, chosen.teacher_statistics(teacher))["anchor"]
    assert loss == alone(picked[1], alone.teacher_statistics(picked[0]))["anchor"]
    loss.backward()
    assert student.anchor.grad[:, [0, 2]].ne(0).all()
    assert student.anchor.grad[:, 1].eq(0).all()
    assert chosen.state_dict().keys() == alone.state_dict().keys()
    assert torch.equal(chosen.deviation, alone.deviation)


def test_the_last_layer_is_each_sides_own():
    teacher, student = sides(), sides(shape=TrajectoryShape(2, 6), seed=1)
    term = AnchorAlignment(layers=[-1])
    fit([term], TrajectoryShape(2, 6), SHAPE, teacher, None)
    student.anchor[:, -1] = teacher.anchor[:, -1]
    assert term(student, term.teacher_statistics(teacher))["anchor"] == 0
    assert term.measured_with == {"anchor_space": "full", "layers": [-1]}
    assert AnchorAlignment().measured_with == {"anchor_space": "full"}  # as caches have it that are older


def test_only_the_low_rank_anchor_rests_on_a_projection():
    low_rank = LowRankAlignment(rank_hidden=4)
    assert AnchorAlignment(anchor_space="low_rank").rests_on(low_rank)
    assert not AnchorAlignment().rests_on(low_rank)
    assert not low_rank.rests_on(AnchorAlignment(anchor_space="low_rank"))


@pytest.mark.parametrize("anchor_space", ["full", "low_rank"])
def test_zero_for_equal_anchors_and_no_gradient_to_the_teacher(anchor_space):
    low_rank, anchor = LowRankAlignment(rank_hidden=4), AnchorAlignment(anchor_space=anchor_space)
    teacher = sides()
    teacher.anchor.requires_grad_()
    fit([anchor, low_rank], SHAPE, SHAPE, teacher, None)
    statistics = anchor.teacher_statistics(teacher)
    assert not statistics["anchor"].requires_grad
    assert statistics["anchor"].shape == (20, 3, 6 if anchor_space == "full" else 4)
    assert anchor(Signals(anchor=teacher.anchor.detach()), statistics)["anchor"] < 1e-9
    student = sides(seed=1).anchor.requires_grad_()
    loss = anchor(Signals(anchor=student), statistics)["anchor"]
    assert loss > 0.1
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.anchor.grad is None


def test_low_rank_uses_the_other_terms_projection_without_owning_it():
    student_shape = TrajectoryShape(4, 9)
    low_rank = LowRankAlignment(rank_hidden=4, student_factors="learned")
    anchor = AnchorAlignment(anchor_space="low_rank")
    terms = nn.ModuleList([anchor, low_rank])
    teacher, student = sides(), sides(shape=student_shape, seed=2)
    fit(list(terms), student_shape, SHAPE, teacher, student)
    assert list(anchor.parameters()) == []
    assert set(anchor.state_dict()) == {"fitted", "deviation", "centre"}
    core = low_rank.subspace.target_core(teacher.anchor.unsqueeze(2)).squeeze(2)
    sigma = (core - core.mean(0)).square().mean((0, 2)).sqrt()
    assert torch.allclose(anchor.deviation, sigma, rtol=1e-5)
    own = low_rank.subspace.student_core(student.anchor.unsqueeze(2)).squeeze(2)
    expected = nn.functional.smooth_l1_loss(own / sigma.view(1, -1, 1), core / sigma.view(1, -1, 1))
    loss = anchor(student, anchor.teacher_statistics(teacher))["anchor"]
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in low_rank.parameters())


def test_ranks_by_energy_and_a_state_round_trip():
    teacher = sides()

    def build():
        terms = nn.ModuleList([AnchorAlignment(anchor_space="low_rank"), LowRankAlignment(0.9, 0.7)])
        for term in terms:
            term.prepare(SHAPE, SHAPE, [other for other in terms if other is not term])
        return terms

    first, second = build(), build()
    fit(list(first), SHAPE, SHAPE, teacher, None)
    second.load_state_dict(first.state_dict())
    assert second[0].is_fitted
    student = sides(seed=3)
    losses = [terms[0](student, terms[0].teacher_statistics(teacher))["anchor"] for terms in (first, second)]
    assert torch.equal(*losses)


def test_a_layer_that_never_varies_and_bf16_states_are_finite():
    term = AnchorAlignment()
    teacher = sides()
    teacher.anchor[:, 0] = 0.1
    fit([term], SHAPE, SHAPE, teacher, None)
    with torch.autocast("cpu", torch.bfloat16):
        value = term(Signals(anchor=sides(seed=1).anchor.bfloat16()), term.teacher_statistics(teacher))["anchor"]
    assert value.isfinite()
    assert value.dtype == torch.float32


def test_bad_input_is_refused():
    other = TrajectoryShape(2, 6)
    with pytest.raises(LoriError, match="anchor_space is 'other': give one of full, low_rank"):
        AnchorAlignment(anchor_space="other")
    with pytest.raises(LoriError, match="delta=0 must be positive"):
        AnchorAlignment(delta=0)
    with pytest.raises(LoriError, match=r"teacher has 3 layers x 6 and the student 2 layers x 6; use .*low_rank"):
        AnchorAlignment().prepare(other, SHAPE, [])
    with pytest.raises(LoriError, match="needs exactly one LowRankAlignment among the terms, found 0"):
        AnchorAlignment(anchor_space="low_rank").prepare(SHAPE, SHAPE, [AnchorAlignment()])
    with pytest.raises(LoriError, match=r"or name as many layers of each, as layers=\[-1\]"):
        AnchorAlignment().prepare(other, SHAPE, [])
    with pytest.raises(LoriError, match=r"layers=\[1\] with anchor_space=low_rank: the projection is of all"):
        AnchorAlignment(anchor_space="low_rank", layers=[1])
    for layers in ([], [0], [3], [-3], [1, -2]):
        with pytest.raises(LoriError, match=r"of the student's 2 selected layers: name some of 1 to 2 \(or -1 to -2\)"):
            AnchorAlignment(layers=layers).prepare(other, SHAPE, [])
    with pytest.raises(LoriError, match="teacher has 3 layers x 5 and the student 2 layers x 6"):
        AnchorAlignment(layers=[1, 2]).prepare(other, TrajectoryShape(3, 5), [])
    term = AnchorAlignment()
    with pytest.raises(LoriError, match="call prepare"):
        term.begin_sweep(0)
    term.prepare(SHAPE, SHAPE, [])
    with pytest.raises(LoriError, match="not fitted"):
        term(sides(), {})
    term.begin_sweep(0)
    with pytest.raises(LoriError, match="anchor states are missing"):
        term.observe(0, Signals(), None)
    term.observe(0, sides(), None)
    term.end_sweep(0)
    larger = AnchorAlignment()
    larger.prepare(TrajectoryShape(4, 6), TrajectoryShape(4, 6), [])
    with pytest.raises(LoriError, match="checkpoint was fitted to 3 layers, and here there are 4 of the teacher's 4"):
        larger.load_state_dict(term.state_dict())
    with pytest.raises(LoriError, match=r"teacher's anchor states have shape \(20, 3, 6\), the student's \(4, 3, 6\)"):
        term(sides(problems=4), term.teacher_statistics(sides()))
