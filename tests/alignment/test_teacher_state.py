"""What a cache keeps of a fitted term: the teacher's side, and statistics packed for half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, Signals, TrajectoryShape
from lori_pl.errors import LoriError

TEACHER = TrajectoryShape(3, 8)
STUDENT = TrajectoryShape(4, 10)
FACTORS = ["shared", "learned", "pca", "random", "free", "identity"]
KINDS = [
    {},
    {"rank_hidden": 0.9, "rank_layers": 2},
    {"core": "joint", "second_order": "raw_moment"},
    {"second_order": "none"},
    {"covariance_loss": "whitened", "scope": "batch"},
]


def signals(shape, seed, problems=30, tokens=6):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(problems, shape.layers, tokens, shape.hidden, generator=generator).cumsum(1)
    hidden = hidden * torch.logspace(0.5, -0.5, shape.hidden) + 5 * torch.randn(shape.hidden, generator=generator)
    mask = torch.rand(problems, tokens, generator=generator) < 0.8
    mask[:, 0] = True
    mask[-1] = False
    return Signals(hidden, mask, hidden[:, :, -1] + 1)


def prepared(student_factors, student, anchor_space="low_rank", **arguments):
    torch.manual_seed(0)
    low_rank = LowRankAlignment(**{"rank_hidden": 4, "student_factors": student_factors} | arguments)
    anchor = AnchorAlignment(anchor_space=anchor_space)
    low_rank.prepare(student, TEACHER, [anchor])
    anchor.prepare(student, TEACHER, [low_rank])
    return nn.ModuleDict({"low_rank": low_rank, "anchor": anchor})


def sweep(terms, teacher_of, student):
    waiting = [term for term in terms.values() if not term.is_fitted]
    for number in range(3):
        working = [term for term in waiting if number < term.sweeps]
        for term in working:
            term.begin_sweep(number)
        for term in working:
            term.observe(number, teacher_of(term), student if term.observes_student else None)
        for term in working:
            term.end_sweep(number)


def live(student_factors, student_shape, teacher, student, **arguments):
    terms = prepared(student_factors, student_shape, **arguments)
    sweep(terms, lambda term: teacher, student)
    return terms


@pytest.mark.parametrize("student_factors", FACTORS)
@pytest.mark.parametrize("arguments", KINDS, ids=["default", "energy", "joint_raw", "mean_only", "whitened_batch"])
def test_fitted_from_the_teachers_state_and_statistics_a_term_is_the_one_fitted_live(student_factors, arguments):
    shape = TEACHER if student_factors in ("shared", "identity") else STUDENT
    teacher, student = signals(TEACHER, 0), signals(shape, 1)
    one = live(student_factors, shape, teacher, student, **arguments)
    statistics = {name: term.teacher_statistics(teacher) for name, term in one.items()}
    other = prepared(student_factors, shape, **arguments)
    for name, term in other.items():
        term.load_teacher_state(one[name].teacher_state())
    assert other["low_rank"].is_fitted == (student_factors == "shared")
    assert other["anchor"].is_fitted
    sweep(other, lambda term: Signals(statistics=statistics["low_rank"]), student)
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_the_teachers_state_holds_nothing_of_the_student():
    terms = live("learned", STUDENT, signals(TEACHER, 0), signals(STUDENT, 1))
    other = live("learned", STUDENT, signals(TEACHER, 0), signals(STUDENT, 2))
    for name, term in terms.items():
        state = term.teacher_state()
        assert "fitted" not in state
        for key, value in other[name].teacher_state().items():
            assert torch.equal(value, state[key]), key
    assert {"deviation", "epsilon", "subspace.target.mean"} < set(terms["low_rank"].teacher_state())


@pytest.mark.parametrize("student_factors", FACTORS)
def test_the_teachers_side_is_the_same_measured_alone(student_factors):
    shape = TEACHER if student_factors in ("shared", "identity") else STUDENT
    teacher = signals(TEACHER, 0)
    both = live(student_factors, shape, teacher, signals(shape, 1))
    alone = prepared(student_factors, shape)
    for term in alone.values():
        term.measure_teacher_alone()
    sweep(alone, lambda term: teacher, None)
    for name, term in alone.items():
        assert term.is_fitted
        for key, value in both[name].teacher_state().items():
            assert torch.equal(value, term.teacher_state()[key]), key


@pytest.mark.parametrize("arguments", KINDS, ids=["default", "energy", "joint_raw", "mean_only", "whitened_batch"])
@pytest.mark.parametrize("anchor_space", ["low_rank", "full"])
def test_packed_and_unpacked_the_statistics_are_the_same(arguments, anchor_space):
    teacher = signals(TEACHER, 0)
    terms = live("shared", TEACHER, teacher, None, anchor_space=anchor_space, **arguments)
    for term in terms.values():
        statistics = term.teacher_statistics(teacher)
        unpacked = term.unpack(term.pack(statistics))
        assert unpacked.keys() == statistics.keys()
        for name, value in statistics.items():
            assert torch.allclose(unpacked[name], value, rtol=1e-6, atol=1e-6 * value.abs().max()), name


def test_the_symmetric_part_is_stored_once_and_in_units_of_one():
    teacher = signals(TEACHER, 0)
    scale = 1e4  # of hidden states whose covariance no half precision holds
    teacher = Signals(scale * teacher.trajectory, teacher.mask, scale * teacher.anchor)
    terms = live("shared", TEACHER, teacher, None, layer_scale="none", anchor_space="full")
    packed = {name: term.pack(term.teacher_statistics(teacher)) for name, term in terms.items()}
    assert terms["low_rank"].teacher_statistics(teacher)["second"].max() > 65504
    assert packed["low_rank"]["second"].shape == (30, 3, 4 * 5 // 2)
    for term in packed.values():
        for name, value in term.items():
            assert value.abs().max() < 50, name
    second = terms["low_rank"].unpack(packed["low_rank"])["second"]
    assert torch.equal(second, second.mT)


def test_a_loss_from_half_precision_is_close_to_the_one_from_full():
    teacher, student = signals(TEACHER, 0), signals(TEACHER, 1)
    for term in live("shared", TEACHER, teacher, None, anchor_space="full").values():
        statistics = term.teacher_statistics(teacher)
        half = {name: value.half() for name, value in term.pack(statistics).items()}
        exact, near = term(student, statistics), term(student, term.unpack(half))
        for name, value in exact.items():
            assert near[name] == pytest.approx(value.item(), rel=2e-3)
            assert near[name].dtype == torch.float32


def test_the_state_of_another_teacher_is_refused():
    terms = live("shared", TEACHER, signals(TEACHER, 0), None)
    other = LowRankAlignment(rank_layers=3, rank_hidden=4)
    other.prepare(STUDENT, STUDENT, [])
    with pytest.raises(LoriError, match="fitted to a teacher of 3 layers x 8"):
        other.load_teacher_state(terms["low_rank"].teacher_state())
    other = LowRankAlignment(rank_hidden=3)
    other.prepare(TEACHER, TEACHER, [])
    with pytest.raises(LoriError, match=r"ranks \(3, 4\).*\(3, 3\)"):
        other.load_teacher_state(terms["low_rank"].teacher_state())


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ({"student_factors": "learned"}, True),
        ({"student_factors": "pca", "seed": 5}, True),
        ({"w_mean": 9.0, "delta": 2.0}, True),
        ({"student_factors": "random"}, False),
        ({"student_factors": "identity"}, False),
        ({"rank_hidden": 3}, False),
        ({"core": "joint"}, False),
    ],
)
def test_what_the_teachers_side_depends_on(arguments, same):
    one = LowRankAlignment(rank_hidden=4).teacher_measured_with
    assert (LowRankAlignment(**{"rank_hidden": 4} | arguments).teacher_measured_with == one) == same
