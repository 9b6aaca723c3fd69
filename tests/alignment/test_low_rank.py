"""LowRankAlignment's losses: worked by hand, their zeros, their invariances (and no others), gradients, edge cases."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.alignment import LowRankAlignment, Signals, TrajectoryShape, trajectory_moments

SHAPE = TrajectoryShape(3, 8)
SWITCHES = [
    {"second_order": second_order, "core": core, "scope": scope, "covariance_loss": covariance_loss}
    for second_order, core, scope, covariance_loss in itertools.product(
        ("covariance", "raw_moment"), ("per_layer_mode", "joint"), ("problem", "batch"), ("relative", "whitened")
    )
]


def rationales(problems=24, tokens=7, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape.hidden, shape.hidden, generator=torch.Generator().manual_seed(99))
    hidden = torch.randn(problems, shape.layers, tokens, shape.hidden, generator=generator)
    hidden = hidden.cumsum(1) * torch.logspace(0.3, -0.7, shape.hidden) @ mixing + 3.0
    mask = torch.rand(problems, tokens, generator=generator) < 0.8
    mask[:, :2] = True
    return Signals(trajectory=hidden, mask=mask)


def fitted(teacher=None, student=None, **arguments):
    """A term fitted on `teacher` (and `student`), one batch a sweep."""
    teacher = teacher or rationales()
    term = LowRankAlignment(**{"rank_hidden": 4} | arguments)
    shapes = [TrajectoryShape(s.trajectory.shape[1], s.trajectory.shape[3]) for s in (student or teacher, teacher)]
    term.prepare(*shapes, [])
    for sweep in range(term.sweeps):
        term.begin_sweep(sweep)
        term.observe(sweep, teacher, student or teacher)
        term.end_sweep(sweep)
    return term


def latents(problems=24, steps=3, shape=SHAPE, seed=1):
    return Signals(trajectory=rationales(problems, steps, shape, seed).trajectory)


def losses(term, student, teacher):
    return term(student, term.teacher_statistics(teacher))


WHITENED = {"covariance_loss": "whitened"}
HAND_TEACHER = Signals(trajectory=torch.tensor([[[[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]]]))
HAND_STUDENT = Signals(trajectory=torch.tensor([[[[3.0, 0.0], [1.0, 2.0]]]]))


@pytest.mark.parametrize(
    ("arguments", "covariance"), [({}, 3.25 / 4.675), ({"core": "joint"}, 3.25 / 4.675), (WHITENED, 3.25 / 2.2)]
)
def test_a_rationale_of_one_token_has_no_covariance_to_follow(arguments, covariance):
    """By hand, as below: nine such problems beside the one neither weigh nor change eps and S."""
    hidden = torch.zeros(10, 1, 4, 2)
    hidden[0] = HAND_TEACHER.trajectory
    mask = torch.arange(4) < torch.tensor([4] + [1] * 9).unsqueeze(1)
    teacher = Signals(trajectory=hidden, mask=mask)
    student = Signals(trajectory=HAND_STUDENT.trajectory.repeat(10, 1, 1, 1))
    term = fitted(teacher, rank_hidden=2, layer_scale="none", **arguments)
    assert losses(term, student, teacher)["covariance"].item() == pytest.approx(covariance / 10, rel=1e-5)


def test_rationales_of_one_token_alone_are_told(caplog):
    teacher = Signals(trajectory=rationales().trajectory[:, :, :1])
    term = fitted(teacher)
    assert "no rationale has two tokens that differ" in caplog.text
    assert losses(term, latents(len(teacher.trajectory)), teacher)["covariance"].item() == 0
    assert losses(term, latents(len(teacher.trajectory)), teacher)["mean"].item() > 0
    assert term.diagnostics(latents(len(teacher.trajectory)), term.teacher_statistics(teacher))["covariance_floor"] == 0


def test_a_batch_pools_rationales_of_one_token():
    """Their means are what its covariance is made of."""
    teacher = Signals(trajectory=rationales().trajectory[:, :, :1])
    term = fitted(teacher, scope="batch")
    assert 0 < losses(term, latents(len(teacher.trajectory)), teacher)["covariance"].item() < 100


@pytest.mark.parametrize("layer_scale", ["none", "rms"])  # both losses are relative: a common scale drops out
@pytest.mark.parametrize(
    ("arguments", "covariance"),
    [
        # Sigma_T = diag(2, 1/2), |.|^2 = 4.25, eps 0.425; Sigma_S = [[1, -1], [-1, 1]]; differences -1, -1, -1, 1/2
        ({}, 3.25 / 4.675),
        ({"core": "joint"}, 3.25 / 4.675),
        # S^-1 = diag(1/sqrt 2, sqrt 2): differences -1/2, -1, -1, 1; whitened Sigma_T = I, eps 0.2
        ({"covariance_loss": "whitened"}, 3.25 / 2.2),
        # raw Sigma_S = ([[9, 0], [0, 0]] + [[1, 2], [2, 4]]) / 2 = [[5, 1], [1, 2]]; differences 3, 1, 1, 3/2
        ({"second_order": "raw_moment"}, 13.25 / 4.675),
    ],
)
def test_one_problem_by_hand(arguments, covariance, layer_scale):
    term = fitted(HAND_TEACHER, rank_hidden=2, layer_scale=layer_scale, **arguments)
    # mean of the teacher 0, sd sqrt 2 and sqrt 1/2; mean of the student (2, 1): both sqrt 2 deviations away
    found = losses(term, HAND_STUDENT, HAND_TEACHER)
    assert found["mean"].item() == pytest.approx(2**0.5 - 0.5, rel=1e-5)
    assert found["covariance"].item() == pytest.approx(covariance, rel=1e-5)
    assert term.weights == {"mean": 0.3, "covariance": 0.3}
    # smooth-L1 at delta 2: x^2 / 4 = 1/2
    quadratic = fitted(HAND_TEACHER, rank_hidden=2, delta=2.0, **arguments)
    assert losses(quadratic, HAND_STUDENT, HAND_TEACHER)["mean"].item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("core", ["per_layer_mode", "joint"])
def test_several_layers_by_the_formulas(core):
    term = fitted(core=core, rank_layers=2)
    teacher, student = rationales(seed=5), latents()
    target = term.subspace.target
    cores = []
    for side in (student, teacher):
        normalised = (side.trajectory - target.mean.unsqueeze(1)) / target.scale.view(-1, 1, 1)
        cores.append(torch.einsum("bltd,lk,dr->btkr", normalised, target.layer_factor, target.hidden_factor))
    expected_mean, expected_covariance = [], []
    for own, other, keep in zip(*cores, teacher.mask, strict=True):
        other = other[keep]
        difference = (own.mean(0) - other.mean(0)) / term.deviation
        expected_mean.append(torch.nn.functional.smooth_l1_loss(difference, torch.zeros(2, 4)))
        blocks = [slice(0, 1), slice(1, 2)] if core == "per_layer_mode" else [slice(0, 2)]
        for block, epsilon in zip(blocks, term.epsilon, strict=True):
            mine, theirs = (torch.cov(side[:, block].flatten(1).mT, correction=0).reshape(-1) for side in (own, other))
            expected_covariance.append((mine - theirs).square().sum() / (theirs.square().sum() + epsilon))
    found = losses(term, student, teacher)
    assert torch.allclose(found["mean"], torch.stack(expected_mean).mean(), rtol=1e-4)
    assert torch.allclose(found["covariance"], torch.stack(expected_covariance).mean(), rtol=1e-4)


def test_rank_one_by_hand():
    # only the first axis is left: mean sqrt 2 deviations away; Sigma 2 against 1, eps 0.4
    found = losses(fitted(HAND_TEACHER, rank_hidden=1), HAND_STUDENT, HAND_TEACHER)
    assert found["mean"].item() == pytest.approx(2**0.5 - 0.5, rel=1e-5)
    assert found["covariance"].item() == pytest.approx(1 / 4.4, rel=1e-5)


def test_batch_scope_by_hand():
    # problems (0) (2) and (-1) (-1): M = 0, sd sqrt 3/2; problem means 1, -1; Sigma_i 1, 0; pooled 1/2 + 1 = 3/2
    teacher = Signals(trajectory=torch.tensor([[[[0.0], [2.0]]], [[[-1.0], [-1.0]]]]))
    term = fitted(teacher, rank_hidden=1, scope="batch", layer_scale="none")
    # student means 2 and 0, Sigma_i 1 and 4: pooled mean 1, Sigma 5/2 + 1 = 7/2
    student = Signals(trajectory=torch.tensor([[[[1.0], [3.0]]], [[[-2.0], [2.0]]]]))
    found = losses(term, student, teacher)
    assert found["mean"].item() == pytest.approx(0.5 * 1 / 1.5, rel=1e-5)
    assert found["covariance"].item() == pytest.approx(4 / (2.25 * 1.1), rel=1e-5)


def test_second_order_none_has_the_mean_alone():
    term = fitted(second_order="none")
    assert set(term.weights) == {"mean"}
    statistics = term.teacher_statistics(rationales())
    assert set(statistics) == {"mean", "weight"}
    assert set(term(latents(), statistics)) == {"mean"}


@pytest.mark.parametrize("arguments", SWITCHES, ids=lambda switches: "-".join(switches.values()))
def test_equal_trajectories_have_no_loss_and_others_have(arguments):
    term = fitted(**arguments)
    teacher = rationales(seed=5)
    for value in losses(term, teacher, teacher).values():
        assert value < 1e-9
    twice = Signals(teacher.trajectory.repeat_interleave(2, 2), teacher.mask.repeat_interleave(2, 1))
    for value in losses(term, twice, teacher).values():
        assert value < 1e-9  # the length does not matter
    for value in losses(term, latents(), teacher).values():
        assert value > 1e-2


def rotated_losses(term, mode, teacher, student):
    """The covariance loss before and after a rotation of one mode's factor, all else (S, eps) kept."""
    before = losses(term, student, teacher)["covariance"]
    layer, hidden = (factor.clone() for factor in term.subspace.target.factors())
    size = (layer if mode == "layers" else hidden).shape[1]
    rotation = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(3)))[0]
    term.subspace.target.set_factors(
        layer @ rotation if mode == "layers" else layer, hidden @ rotation if mode == "hidden" else hidden
    )
    return before.item(), losses(term, student, teacher)["covariance"].item()


@pytest.mark.parametrize("second_order", ["covariance", "raw_moment"])
@pytest.mark.parametrize("scope", ["problem", "batch"])
@pytest.mark.parametrize(
    ("core", "covariance_loss", "mode", "is_invariant"),
    [
        ("joint", "relative", "layers", True),
        ("joint", "relative", "hidden", True),
        ("per_layer_mode", "relative", "hidden", True),
        ("per_layer_mode", "relative", "layers", False),
        ("per_layer_mode", "whitened", "hidden", False),
        ("per_layer_mode", "whitened", "layers", False),
        ("joint", "whitened", "hidden", False),
        ("joint", "whitened", "layers", False),
    ],
)
def test_covariance_loss_has_these_invariances_and_no_others(
    core, covariance_loss, mode, is_invariant, scope, second_order
):
    term = fitted(core=core, covariance_loss=covariance_loss, scope=scope, second_order=second_order)
    before, after = rotated_losses(term, mode, rationales(seed=5), latents())
    if is_invariant:
        assert after == pytest.approx(before, rel=1e-4)
    else:
        assert abs(after - before) > 1e-2 * before


@pytest.mark.parametrize("mode", ["layers", "hidden"])
def test_mean_loss_is_invariant_under_neither_rotation(mode):
    term = fitted()
    teacher, student = rationales(seed=5), latents()
    before = losses(term, student, teacher)["mean"]
    rotated_losses(term, mode, teacher, student)
    assert abs(losses(term, student, teacher)["mean"] - before) > 1e-2 * before


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 4),
    scope=st.sampled_from(["problem", "batch"]),
    core=st.sampled_from(["per_layer_mode", "joint"]),
)
def test_batch_order_padding_and_accumulation_change_nothing(seed, steps, scope, core):
    term = _TERMS.setdefault((scope, core), fitted(scope=scope, core=core))
    teacher, student = rationales(problems=6, seed=seed), latents(6, steps, seed=seed + 1)
    expected = losses(term, student, teacher)

    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    padding = torch.full((6, SHAPE.layers, 3, SHAPE.hidden), float("nan"))
    teacher_changed = Signals(
        torch.cat([padding, teacher.trajectory], 2)[order],
        torch.cat([torch.zeros(6, 3, dtype=torch.bool), teacher.mask], 1)[order],
    )
    changed = losses(term, Signals(student.trajectory[order]), teacher_changed)
    for name, value in expected.items():
        assert torch.allclose(changed[name], value, rtol=1e-4)
    if scope == "problem":
        statistics = term.teacher_statistics(teacher)
        for name, value in expected.items():
            alone = [
                term(Signals(student.trajectory[i : i + 1]), {key: rows[i : i + 1] for key, rows in statistics.items()})
                for i in range(6)
            ]
            assert torch.allclose(torch.stack([one[name] for one in alone]).mean(), value, rtol=1e-4)


_TERMS: dict[tuple[str, str], LowRankAlignment] = {}


@pytest.mark.parametrize("arguments", SWITCHES, ids=lambda switches: "-".join(switches.values()))
def test_gradient_reaches_the_student_alone_and_is_finite_for_few_latents(arguments):
    term = fitted(**arguments)
    teacher = rationales(seed=5)
    teacher.trajectory.requires_grad_()
    statistics = term.teacher_statistics(teacher)
    assert not any(tensor.requires_grad for tensor in statistics.values())
    for tensor in statistics.values():
        tensor.requires_grad_()  # even statistics that ask for gradients get none
    for steps in (1, 2):  # fewer than the rank, so the student's covariance is singular
        student = latents(steps=steps)
        student.trajectory.requires_grad_()
        sum(term(student, statistics).values()).backward()
        assert student.trajectory.grad.isfinite().all()
        assert student.trajectory.grad.abs().sum() > 0
    assert teacher.trajectory.grad is None
    assert all(tensor.grad is None for tensor in statistics.values())


@pytest.mark.parametrize("arguments", SWITCHES[::3], ids=lambda switches: "-".join(switches.values()))
def test_gradient_equals_finite_differences(arguments):
    term = fitted(**arguments).double()
    student = latents(problems=2, steps=2).trajectory.double().requires_grad_()
    statistics = term.teacher_statistics(rationales(problems=2, seed=5))
    assert torch.autograd.gradcheck(lambda hidden: sum(term(Signals(hidden), statistics).values()), student)


@pytest.mark.parametrize("scope", ["problem", "batch"])
def test_a_problem_without_rationale_counts_nothing(scope):
    term = fitted(scope=scope)
    teacher, student = rationales(problems=4, seed=5), latents(problems=4)
    statistics = term.teacher_statistics(teacher)
    kept = term(Signals(student.trajectory[:3]), {key: rows[:3] for key, rows in statistics.items()})
    teacher.mask[3] = False
    student.trajectory.requires_grad_()
    found = losses(term, student, teacher)
    share = 3 / 4 if scope == "problem" else 1.0  # per problem its loss is zero; pooled, it is left out
    for name, value in found.items():
        assert torch.allclose(value, kept[name] * share, rtol=1e-5)
    sum(found.values()).backward()
    assert torch.count_nonzero(student.trajectory.grad[3]) == 0
    teacher.mask[:] = False
    for value in losses(term, student, teacher).values():
        assert value == 0


@pytest.mark.parametrize("scope", ["problem", "batch"])
def test_no_latents_and_one_rationale_token_are_finite(scope):
    term = fitted(scope=scope)
    teacher = rationales(problems=3, tokens=2, seed=5)
    teacher.mask[:, 1] = False
    student = Signals(torch.zeros(3, SHAPE.layers, 0, SHAPE.hidden, requires_grad=True))
    for value in losses(term, student, teacher).values():
        assert value.isfinite()
        value.backward(retain_graph=True)
    assert losses(term, latents(3), teacher)["covariance"] < 100


def test_identity_compares_whole_centred_states_and_shared_full_rank_equals_it_up_to_rotation():
    teacher, student = rationales(seed=5), latents()
    identity = fitted(student_factors="identity", rank_hidden=3, core="joint", layer_scale="none")
    statistics = identity.teacher_statistics(teacher)
    states = teacher.trajectory - identity.subspace.target.mean.unsqueeze(1)
    flat = states.transpose(1, 2).flatten(2)
    assert torch.allclose(statistics["mean"].squeeze(1), trajectory_moments(flat, teacher.mask).mean, atol=1e-5)
    whole = fitted(rank_hidden=8, core="joint", layer_scale="none")
    assert torch.allclose(
        losses(identity, student, teacher)["covariance"], losses(whole, student, teacher)["covariance"], rtol=1e-4
    )
    for value in losses(identity, teacher, teacher).values():
        assert value < 1e-9


def test_statistics_are_fp32_under_autocast_and_survive_a_cast_of_the_model():
    term = fitted(student_factors="learned")
    teacher, student = rationales(seed=5), latents()
    expected = losses(term, student, teacher)
    term.to(torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in term.parameters())
    assert all(tensor.dtype == torch.float32 for tensor in term.buffers() if tensor.is_floating_point())
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(term, student, teacher)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, expected[name], rtol=1e-6)
    student.trajectory = student.trajectory.bfloat16()
    widened = losses(term, Signals(student.trajectory.float()), teacher)
    for name, value in losses(term, student, teacher).items():
        assert torch.equal(value, widened[name])
    assert all(tensor.dtype == torch.float64 for tensor in term.double().parameters())
