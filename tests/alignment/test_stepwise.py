"""StepwiseAlignment: each latent against one rationale token, in the rationale term's subspace."""

from __future__ import annotations

import pytest
import torch
from test_anchor import fit
from torch.nn.functional import smooth_l1_loss

from lori_pl.alignment import LowRankAlignment, Signals, StepwiseAlignment, TrajectoryShape
from lori_pl.alignment.stepwise import parts
from lori_pl.errors import LoriError

SHAPE = TrajectoryShape(3, 6)


def trajectory(problems=20, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(problems, 3, tokens, 6, generator=generator).cumsum(1)


def fitted(positions=8, pairing="tokens", delta=1.0, **settings):
    low_rank = LowRankAlignment(rank_hidden=4, **settings)
    stepwise = StepwiseAlignment(positions=positions, pairing=pairing, delta=delta)
    fit([stepwise, low_rank], SHAPE, SHAPE, Signals(trajectory=trajectory()), Signals(trajectory=trajectory(seed=3)))
    return low_rank, stepwise


def plain(low_rank, student, teacher, tokens, delta=1.0):
    """The formula, pair by pair: problem b has tokens[b] tokens."""
    target = low_rank.subspace.target
    losses = []
    for b, count in enumerate(tokens):
        apart = []
        for i in range(min(count, student.shape[2])):
            own, other = (
                target.layer_factor.T @ ((side[b, :, i] - target.mean) / target.scale[:, None]) @ target.hidden_factor
                for side in (student, teacher)
            )
            difference = (own - other) / low_rank.deviation
            apart.append(smooth_l1_loss(difference, torch.zeros_like(difference), beta=delta))
        losses.append(torch.stack(apart).mean() if apart else torch.tensor(0.0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("latents", "positions", "delta"), [(3, 8, 1.0), (7, 8, 0.3), (7, 4, 2.0), (1, 1, 1.0)])
def test_by_the_formula(latents, positions, delta):
    low_rank, stepwise = fitted(positions, delta=delta)
    teacher, student = trajectory(4, 5, 1), trajectory(4, latents, 2)
    tokens = [5, 2, 0, 1]
    mask = torch.arange(5) < torch.tensor(tokens)[:, None]
    statistics = stepwise.teacher_statistics(Signals(trajectory=teacher, mask=mask))
    found = stepwise(Signals(trajectory=student), statistics)["stepwise"]
    expected = plain(low_rank, student[:, :, :positions], teacher, tokens, delta)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert statistics["cores"].shape == (4, positions, *low_rank.subspace.ranks)


def test_padding_may_stand_anywhere():
    _, stepwise = fitted(positions=4)
    teacher, student = trajectory(2, 3, 1), trajectory(2, 3, 2)
    straight = stepwise.teacher_statistics(Signals(trajectory=teacher))
    spread, mask = torch.full((2, 3, 6, 6), 1e3), torch.zeros(2, 6, dtype=torch.bool)
    for row, columns in enumerate(([1, 2, 5], [0, 3, 4])):
        spread[row, :, columns], mask[row, columns] = teacher[row], True
    padded = stepwise.teacher_statistics(Signals(trajectory=spread, mask=mask))
    for name, value in straight.items():
        assert torch.allclose(padded[name], value)
    losses = [stepwise(Signals(trajectory=student), each)["stepwise"] for each in (straight, padded)]
    assert losses[0] == losses[1]


def test_one_part_is_the_mean_of_the_statistics():
    low_rank, stepwise = fitted(1, "parts")
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    teacher, student = Signals(trajectory(3, 4, 1), mask), Signals(trajectory(3, 3, 2))
    expected = low_rank(student, low_rank.teacher_statistics(teacher))["mean"]
    assert stepwise(student, stepwise.teacher_statistics(teacher))["stepwise"].item() == pytest.approx(expected.item())


def test_parts_are_in_full_precision_under_autocast():
    _, stepwise = fitted(2, "parts")
    teacher, student = Signals(trajectory(3, 4, 1)), Signals(trajectory(3, 3, 2))
    plain = stepwise(student, stepwise.teacher_statistics(teacher))["stepwise"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = stepwise(student, stepwise.teacher_statistics(teacher))["stepwise"]
    assert torch.equal(mixed, plain)


def test_parts_share_a_token_that_lies_in_both():
    core = torch.tensor([[1.0, 10.0, 100.0, 7e3]])[..., None]
    mask = torch.tensor([[True, True, True, False]])
    halves = parts(core, mask, 2)[0, :, 0]
    assert halves.tolist() == pytest.approx([2 / 3 + 10 / 3, 10 / 3 + 200 / 3])
    assert parts(core, mask, 3)[0, :, 0].tolist() == pytest.approx([1.0, 10.0, 100.0], rel=1e-4)
    # more parts than tokens: each is within one
    assert parts(core, mask, 6)[0, :, 0].tolist() == pytest.approx([1.0, 1.0, 10.0, 10.0, 100.0, 100.0], rel=1e-4)
    assert parts(core, torch.zeros_like(mask), 2).abs().sum() == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_do_not_depend_on_length_or_padding(count):
    core = trajectory(2, 6, 1).transpose(1, 2)
    plain = parts(core, torch.ones(2, 6, dtype=torch.bool), count)
    twice = parts(core.repeat_interleave(2, 1), torch.ones(2, 12, dtype=torch.bool), count)
    torch.testing.assert_close(twice, plain)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, [0, 2, 3, 5, 7, 8]] = True
    spread = torch.full((2, 9, 3, 6), torch.nan)
    spread[mask] = core.flatten(0, 1)
    torch.testing.assert_close(parts(spread, mask, count), plain)
    torch.testing.assert_close(plain.mean(1), core.mean(1))


def test_parts_know_an_order_too():
    _, stepwise = fitted(2, "parts")
    teacher = trajectory(4, 3, 1)
    statistics = stepwise.teacher_statistics(Signals(trajectory=teacher))
    assert stepwise(Signals(trajectory=teacher), statistics)["stepwise"] < 1e-9
    assert stepwise(Signals(trajectory=teacher.flip(2)), statistics)["stepwise"] > 0.1
    assert {value.shape[:2] for value in statistics.values()} == {(4, 2)}


def test_it_knows_an_order_that_the_statistics_do_not():
    low_rank, stepwise = fitted()
    teacher = trajectory(4, 3, 1)
    turned = Signals(trajectory=teacher.flip(2))
    assert stepwise(Signals(trajectory=teacher), stepwise.teacher_statistics(Signals(trajectory=teacher)))[
        "stepwise"
    ] < (1e-9)
    assert stepwise(turned, stepwise.teacher_statistics(Signals(trajectory=teacher)))["stepwise"] > 0.1
    of_the_set = low_rank(turned, low_rank.teacher_statistics(Signals(trajectory=teacher)))
    assert max(of_the_set.values()) < 1e-6


def test_gradient_reaches_the_student_alone():
    _, stepwise = fitted(student_factors="learned")
    teacher, student = trajectory(4, 3, 1).requires_grad_(), trajectory(4, 3, 2).requires_grad_()
    stepwise(Signals(trajectory=student), stepwise.teacher_statistics(Signals(trajectory=teacher)))[
        "stepwise"
    ].backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_what_a_cache_keeps_gives_the_same():
    low_rank, stepwise = fitted()
    statistics = stepwise.teacher_statistics(Signals(trajectory=trajectory(4, 3, 1)))
    packed = stepwise.pack(statistics)
    assert packed["cores"].abs().max() < 20  # in deviations
    for name, value in stepwise.unpack(packed).items():
        assert torch.allclose(value, statistics[name], atol=1e-6)
    assert stepwise.measured_with == {"positions": 8, "pairing": "tokens"}
    assert stepwise.rests_on(low_rank)
    assert not stepwise.rests_on(stepwise)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": 0}, "positions=0: give 1"),
        ({"delta": 0}, "delta=0 must be positive"),
        ({"pairing": "halves"}, "pairing is 'halves': give one of tokens, parts"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(LoriError, match=message):
        StepwiseAlignment(**arguments)


def test_complaints():
    with pytest.raises(
        LoriError, match="StepwiseAlignment needs exactly one LowRankAlignment among the terms, found 0"
    ):
        StepwiseAlignment().prepare(SHAPE, SHAPE, [])
    with pytest.raises(LoriError, match="call prepare"):
        StepwiseAlignment()(Signals(trajectory=trajectory()), {})
    low_rank, stepwise = fitted()
    statistics = stepwise.teacher_statistics(Signals(trajectory=trajectory(4)))
    with pytest.raises(LoriError, match="same batch, ranks and positions"):
        stepwise(Signals(trajectory=trajectory(5)), statistics)
    with pytest.raises(LoriError, match="a trajectory is missing"):
        stepwise(Signals(), statistics)
    unfitted = StepwiseAlignment()
    low_rank = LowRankAlignment(rank_hidden=4)
    low_rank.prepare(SHAPE, SHAPE, [])
    unfitted.prepare(SHAPE, SHAPE, [low_rank])
    with pytest.raises(LoriError, match="is not fitted"):
        unfitted(Signals(trajectory=trajectory(4)), statistics)
