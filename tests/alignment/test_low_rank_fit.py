"""LowRankAlignment's fitting: own factors of another shape, rotation, ranks by energy, state, diagnostics, errors."""

from __future__ import annotations

import copy

import pytest
import torch

from lori_pl.alignment import (
    LowRankAlignment,
    Signals,
    TrajectoryShape,
    orthonormality_error,
    stiefel_parameters,
)
from lori_pl.alignment.projection import Projection
from lori_pl.errors import LoriError

SHAPE = TrajectoryShape(3, 8)
OWN = ["pca", "learned", "free"]
HALF = (torch.eye(3), 0.5 * torch.eye(8))


def rationales(problems=40, tokens=6, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(problems, shape.layers, tokens, shape.hidden, generator=generator).cumsum(1)
    hidden = hidden * torch.logspace(0.5, -0.5, shape.hidden) + torch.randn(shape.hidden, generator=generator)
    mask = torch.rand(problems, tokens, generator=generator) < 0.8
    mask[:, 0] = True
    return Signals(trajectory=hidden, mask=mask)


def orthonormal(rows, columns, seed):
    return torch.linalg.qr(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))[0]


def copied(teacher, layer_map, hidden_map):
    """The teacher's trajectories under linear maps of both modes, each token twice: a student's own."""
    hidden = torch.einsum("bltd,ml,ed->bmte", teacher.trajectory, layer_map, hidden_map)
    return Signals(hidden.repeat_interleave(2, 2), teacher.mask.repeat_interleave(2, 1))


def shape_of(signals):
    return TrajectoryShape(signals.trajectory.shape[1], signals.trajectory.shape[3])


def sweep_over(term, batches):
    for sweep in range(term.sweeps):
        term.begin_sweep(sweep)
        for teacher, student in batches:
            term.observe(sweep, teacher, student)
        term.end_sweep(sweep)


def fitted(teacher, student=None, **arguments):
    term = LowRankAlignment(**{"rank_hidden": 4} | arguments)
    term.prepare(shape_of(student or teacher), shape_of(teacher), [])
    sweep_over(term, [(teacher, student)])
    return term


@pytest.mark.parametrize("student_factors", OWN)
@pytest.mark.parametrize(
    ("layer_map", "hidden_map", "layer_scale"),
    [
        (orthonormal(3, 3, 1), orthonormal(8, 8, 2), "none"),
        (orthonormal(5, 3, 1), orthonormal(12, 8, 2), "none"),  # another number of layers, another hidden size
        (torch.diag(torch.tensor([1.0, 10.0, 0.1])), orthonormal(12, 8, 2), "rms"),  # layers of other norms
        (torch.eye(3).repeat_interleave(2, 0), orthonormal(12, 8, 2), "rms"),  # twice the layers
        (torch.eye(3), torch.eye(8), "rms"),
    ],
    ids=["rotated", "larger", "rescaled", "doubled", "same"],
)
def test_a_student_that_is_a_rotated_copy_starts_exactly_on_the_teacher(
    student_factors, layer_map, hidden_map, layer_scale
):
    teacher = rationales()
    student = copied(teacher, layer_map, hidden_map)
    term = fitted(teacher, student, student_factors=student_factors, layer_scale=layer_scale, rank_layers=2)
    assert term.diagnostics()["start_correlation"].item() == pytest.approx(1, abs=1e-5)
    for value in term(student, term.teacher_statistics(teacher)).values():
        assert value < 1e-6


def test_problems_that_one_side_has_no_token_of_are_left_out_of_the_pairs():
    teacher = rationales()
    student = Signals(teacher.trajectory, teacher.mask.clone())
    student.mask[::2] = False
    term = fitted(teacher, student, student_factors="pca", layer_scale="none", rank_hidden=8)
    term.subspace.own.set_scale(term.subspace.target.mean, term.subspace.target.scale)
    term.begin_sweep(2)
    term.observe(2, teacher, student)
    statistics = term._statistics
    assert statistics.sums["student_norm"].item() == pytest.approx(statistics.sums["teacher_norm"].item(), rel=1e-4)


def test_without_the_rotation_that_student_would_not_start_there(monkeypatch):
    monkeypatch.setattr(
        "lori_pl.alignment.subspace.mode_procrustes",
        lambda cross: (torch.eye(cross.shape[0]).double(), torch.eye(cross.shape[1]).double()),
    )
    teacher = rationales()
    student = copied(teacher, -torch.eye(3), orthonormal(8, 8, 2))
    term = fitted(teacher, student, student_factors="pca", layer_scale="none")
    assert term.diagnostics()["start_correlation"] < 0.9


@pytest.mark.parametrize("student_factors", ["learned", "free", "pca", "random"])
def test_other_layers_and_hidden_size_train_and_the_losses_fall(student_factors):
    torch.manual_seed(0)
    teacher = rationales()
    student_shape = TrajectoryShape(5, 12)
    own = rationales(tokens=9, shape=student_shape, seed=3)
    term = fitted(teacher, own, student_factors=student_factors, rank_layers=2)
    latents = torch.randn(40, 5, 3, 12, requires_grad=True)
    statistics = term.teacher_statistics(teacher)
    optimizer = torch.optim.AdamW([latents, *term.parameters()], lr=0.03, weight_decay=0.1)
    frozen = copy.deepcopy(term.subspace.target.state_dict())
    history = []
    for _ in range(40):
        values = term(Signals(latents), statistics)
        history.append({name: value.item() for name, value in values.items()})
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
    assert history[-1]["mean"] < 0.5 * history[0]["mean"]
    assert history[-1]["covariance"] < 0.8 * history[0]["covariance"]
    for name, tensor in term.subspace.target.state_dict().items():
        assert torch.equal(tensor, frozen[name])
    trains = {"learned": 2, "free": 2, "pca": 0, "random": 0}[student_factors]
    assert len(list(term.parameters())) == trains
    assert len(stiefel_parameters(term)) == (2 if student_factors == "learned" else 0)
    error = term.diagnostics()["orthonormality_error"]
    assert (error > 1e-3) if student_factors == "free" else (error < 5e-6)


def test_random_factors_are_one_basis_for_equal_shapes_and_follow_the_seed():
    teacher = rationales()
    first = fitted(teacher, teacher, student_factors="random", seed=1)
    for mine, theirs in zip(first.subspace.own.factors(), first.subspace.target.factors(), strict=True):
        assert torch.equal(mine, theirs)
        assert orthonormality_error(mine) < 5e-6
    again, other = (fitted(teacher, teacher, student_factors="random", seed=seed) for seed in (1, 2))
    assert torch.equal(again.subspace.target.hidden_factor, first.subspace.target.hidden_factor)
    assert not torch.allclose(other.subspace.target.hidden_factor, first.subspace.target.hidden_factor)
    assert first.diagnostics()["energy_core"] < first.diagnostics()["energy_hidden"]  # worse than the HOSVD


@pytest.mark.parametrize("student_factors", ["shared", "learned", "free"])
def test_ranks_by_energy_are_resolved_in_the_fit_and_taken_from_a_checkpoint(student_factors):
    teacher = rationales()
    student = teacher if student_factors == "shared" else copied(teacher, torch.eye(3), orthonormal(12, 8, 2))
    arguments = {"rank_layers": 0.9, "rank_hidden": 0.8, "student_factors": student_factors}
    term = LowRankAlignment(**arguments)
    term.prepare(shape_of(student), shape_of(teacher), [])
    parameters = list(term.parameters())
    sweep_over(term, [(teacher, student)])
    assert all(now is then for now, then in zip(term.parameters(), parameters, strict=True))
    found = term.diagnostics()
    layers, hidden = term.subspace.ranks
    assert 1 < hidden < 8
    assert found["energy_layers"] >= 0.9 > found["spectrum_layers"][: layers - 1].sum()
    assert found["energy_hidden"] >= 0.8 > found["spectrum_hidden"][: hidden - 1].sum()

    restored = LowRankAlignment(**arguments)
    restored.prepare(shape_of(student), shape_of(teacher), [])
    parameters = list(restored.parameters())
    assert not restored.is_fitted
    restored.load_state_dict(term.state_dict())
    assert restored.is_fitted
    assert restored.fitted
    assert all(now is then for now, then in zip(restored.parameters(), parameters, strict=True))
    expected = term(student, term.teacher_statistics(teacher))
    for name, value in restored(student, restored.teacher_statistics(teacher)).items():
        assert torch.equal(value, expected[name])
    assert not any("teacher" in name for name in term.state_dict())


def test_a_share_of_energy_is_capped_at_what_the_student_has():
    teacher = rationales()
    student = rationales(shape=TrajectoryShape(2, 5))
    term = fitted(teacher, student, rank_layers=1 - 1e-9, rank_hidden=1 - 1e-9, student_factors="learned")
    assert term.subspace.ranks == (2, 5)
    assert term.diagnostics()["energy_hidden"] < 1


@pytest.mark.parametrize("arguments", [{}, {"covariance_loss": "whitened", "scope": "batch"}, {"core": "joint"}])
def test_batches_of_any_size_and_order_fit_the_same(arguments):
    teacher = rationales()
    student = rationales(tokens=4, shape=TrajectoryShape(4, 9), seed=2)
    whole = fitted(teacher, student, student_factors="pca", **arguments)
    parts = LowRankAlignment(rank_hidden=4, student_factors="pca", **arguments)
    parts.prepare(shape_of(student), shape_of(teacher), [])
    batches = [
        tuple(Signals(side.trajectory[rows], side.mask[rows]) for side in (teacher, student))
        for rows in torch.arange(40).flip(0).split(7)
    ]
    sweep_over(parts, batches)
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(parts.state_dict()[name].float(), tensor.float(), atol=2e-4, rtol=2e-4), name


def test_deviation_and_whitening_measure_what_they_say():
    teacher = rationales()
    term = fitted(teacher, rank_hidden=8, covariance_loss="whitened", floor=0.2)
    core = term.subspace.target_core(teacher.trajectory)
    tokens = core.transpose(1, 2)[teacher.mask]
    deviation = tokens.std(0, correction=0)
    assert (deviation < 0.2 * deviation.max()).any()  # the floor is at work
    assert torch.allclose(term.deviation, deviation.clamp_min(0.2 * deviation.max()), rtol=1e-3)
    mean_second = term.teacher_statistics(teacher)["second"].mean(0)
    whitened = term.whitening @ mean_second @ term.whitening
    values = torch.linalg.eigvalsh(mean_second)
    expected = (values / torch.maximum(values, 0.04 * values.amax(1, keepdim=True))).sort(1).values
    assert torch.allclose(torch.linalg.eigvalsh(whitened), expected, atol=1e-3)
    whole = fitted(teacher, covariance_loss="whitened", rank_hidden=2, floor=1e-6, core="joint", rank_layers=1)
    second = whole.teacher_statistics(teacher)["second"].mean(0)
    assert torch.allclose(whole.whitening @ second @ whole.whitening, torch.eye(2), atol=1e-4)


def test_diagnostics_of_the_teacher_as_its_own_student():
    teacher = rationales()
    term = fitted(teacher, rank_layers=2)
    statistics = term.teacher_statistics(teacher)
    found = term.diagnostics(teacher, statistics)
    low = found["energy_layers"] + found["energy_hidden"] - 1
    assert low - 1e-6 <= found["energy_core"] <= min(found["energy_layers"], found["energy_hidden"]) + 1e-6
    assert found["student_energy_share"].item() == pytest.approx(found["energy_core"].item(), rel=1e-4)
    assert found["spectrum_hidden"].sum().item() == pytest.approx(1, rel=1e-5)
    assert found["orthonormality_error"] < 5e-6
    assert found["covariance_floor"] < 1e-9  # six tokens, rank four
    few = Signals(torch.randn(40, 3, 2, 8))
    floor = term.diagnostics(few, statistics)["covariance_floor"]
    assert 0.01 < floor <= term(few, statistics)["covariance"]
    by_steps = [
        term.diagnostics(Signals(torch.randn(40, 3, steps, 8)), statistics)["covariance_floor"]
        for steps in (1, 2, 4, 5)
    ]
    assert 1 > by_steps[0] > by_steps[1] > by_steps[2] > 1e-6 > by_steps[3]  # rank four needs five latents
    raw = fitted(teacher, second_order="raw_moment")
    assert (
        raw.diagnostics(Signals(torch.randn(40, 3, 4, 8)), raw.teacher_statistics(teacher))["covariance_floor"] < 1e-6
    )
    pooled = fitted(teacher, rank_layers=2, scope="batch")
    assert pooled.diagnostics(few, pooled.teacher_statistics(teacher))["covariance_floor"] < 1e-6


def test_trajectories_that_never_vary_give_no_nan():
    teacher = Signals(torch.full((4, 3, 5, 8), 0.1))
    student = Signals(torch.randn(4, 3, 2, 8, requires_grad=True))
    for arguments in ({}, {"covariance_loss": "whitened"}, {"student_factors": "learned"}):
        term = fitted(teacher, teacher, **arguments)
        values = term(student, term.teacher_statistics(teacher))
        sum(values.values()).backward()
        assert all(value.isfinite() for value in values.values())
        assert student.trajectory.grad.isfinite().all()
        assert all(tensor.isfinite().all() for tensor in term.diagnostics(student).values())


def test_preparing_twice_keeps_the_fit_and_the_meta_device_builds():
    teacher = rationales()
    term = fitted(teacher, teacher, student_factors="learned")
    before = copy.deepcopy(term.state_dict())
    term.prepare(SHAPE, SHAPE, [])
    assert term.is_fitted
    for name, tensor in term.state_dict().items():
        assert torch.equal(tensor, before[name])
    with torch.device("meta"):
        whole = LowRankAlignment(student_factors="learned", rank_hidden=64)
        whole.prepare(TrajectoryShape(16, 2048), TrajectoryShape(32, 4096), [])
    assert whole.subspace.ranks == (16, 64)
    assert all(tensor.is_meta for tensor in whole.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {},
            "student_factors=shared needs equal .*teacher has 3 layers x 8 and the student 2 layers x 6; use .*learned",
        ),
        ({"student_factors": "identity"}, "student_factors=identity needs equal trajectories"),
        ({"student_factors": "learned", "rank_hidden": 7}, "rank_hidden=7 does not fit .* 6; .*between 1 and 6"),
        ({"student_factors": "learned", "rank_layers": 3, "rank_hidden": 2}, "rank_layers=3 .* dimension 2"),
        ({"student_factors": "learned", "rank_hidden": 1.5}, "rank_hidden=1.5: give a whole number of columns"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(LoriError, match=message):
        LowRankAlignment(**arguments).prepare(TrajectoryShape(2, 6), SHAPE, [])


def test_arguments_out_of_range_are_refused():
    for option in ("student_factors", "second_order", "core", "scope", "covariance_loss", "layer_scale"):
        with pytest.raises(LoriError, match=f"LowRankAlignment: {option} is 'other': give one of "):
            LowRankAlignment(**{option: "other"})
    with pytest.raises(LoriError, match="delta=0 must be positive"):
        LowRankAlignment(delta=0)
    with pytest.raises(LoriError, match="floor=2 is a share"):
        LowRankAlignment(floor=2)


def test_wrong_use_is_refused():
    teacher = rationales()
    term = LowRankAlignment(rank_hidden=4, student_factors="learned")
    with pytest.raises(LoriError, match="call prepare"):
        term.begin_sweep(0)
    term.prepare(SHAPE, SHAPE, [])
    with pytest.raises(LoriError, match="not fitted; run its sweeps"):
        term(teacher, {})
    with pytest.raises(LoriError, match="not fitted"):
        term.teacher_statistics(teacher)
    term.begin_sweep(0)
    with pytest.raises(LoriError, match="a trajectory is missing"):
        term.observe(0, teacher, None)
    with pytest.raises(LoriError, match="no rationale token was observed"):
        term.end_sweep(0)
    sweep_over(term, [(teacher, teacher)])
    with pytest.raises(LoriError, match=r"prepared for \(batch, 3 layers, tokens, 8\)"):
        term.teacher_statistics(rationales(shape=TrajectoryShape(2, 8)))
    with pytest.raises(LoriError, match="make them with the same batch, ranks and core"):
        term(rationales(problems=3), term.teacher_statistics(teacher))


def test_checkpoints_of_other_ranks_or_another_teacher_are_refused():
    teacher = rationales()
    state = fitted(teacher).state_dict()
    other = LowRankAlignment(rank_hidden=3)
    other.prepare(SHAPE, SHAPE, [])
    with pytest.raises(LoriError, match=r"checkpoint has ranks \(3, 4\) .* this configuration \(3, 3\)"):
        other.load_state_dict(state)
    larger = LowRankAlignment(rank_layers=3, rank_hidden=4)
    larger.prepare(TrajectoryShape(4, 9), TrajectoryShape(4, 9), [])
    with pytest.raises(LoriError, match="fitted to a teacher of 3 layers x 8, this one has 4 layers x 9"):
        larger.load_state_dict(state)


def test_shares_of_energy_cannot_change_trainable_factors_among_processes(monkeypatch):
    """DDP laid out its buckets before the sweeps: another shape would not be summed, or break the step."""
    monkeypatch.setattr("lori_pl.alignment.subspace.is_distributed", lambda: True)
    teacher = rationales()
    for factors in ("learned", "free"):
        with pytest.raises(LoriError, match=r"rank_hidden=0.9 come to 2 and \d columns.* give those numbers instead"):
            fitted(teacher, copied(teacher, *HALF), student_factors=factors, rank_layers=2, rank_hidden=0.9)
    fitted(teacher, copied(teacher, *HALF), student_factors="learned", rank_layers=2)
    fitted(teacher, copied(teacher, *HALF), student_factors="pca", rank_hidden=0.9)


def test_the_layout_of_free_factors_is_the_one_they_are_set_to():
    projection = Projection(SHAPE, (2, 4), "free")
    layout = projection.hidden_factor.stride()
    projection.set_factors(torch.eye(3, 2), orthonormal(8, 4, 0))
    assert projection.hidden_factor.stride() == layout
