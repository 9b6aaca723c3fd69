"""A loss or a gradient that is no number: the run stops with the problems' ids, or leaves the step out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from failing import fails
from tiny_world import BACKBONE, assert_same, checkpoint

from lori_pl.callbacks.finite_loss import FiniteLoss
from lori_pl.methods import ExplicitCoT

SKIP = ["--non_finite.policy", "skip"]

pytestmark = pytest.mark.faults
FLAGS = ["--model.schedule.decay", "none", "--model.schedule.warmup", "0", "--test_after_fit", "false"]


def poison(monkeypatch, calls: set[int], gradient_alone: bool = False) -> list[list[str]]:
    """Makes the loss of these batches, counted from 1, no number; gives each batch's problems."""
    original = ExplicitCoT.task_loss
    seen: list[list[str]] = []

    def poisoned(self, batch):
        loss = original(self, batch)
        if not self.training:
            return loss
        problems = self.data.splits["train"].problems
        seen.append([problems[i].id for i in batch.index.tolist()])
        if len(seen) not in calls:
            return loss
        if gradient_alone:  # the square root's derivative at zero is infinite
            zero = loss - loss.detach()
            return loss + zero.abs().sqrt()
        return loss * float("nan")

    monkeypatch.setattr(ExplicitCoT, "task_loss", poisoned)
    return seen


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [False, True])
def test_under_a_gradient_scaler_a_loss_without_a_number_is_left_out_too(monkeypatch, fused, bad):
    """Where its gradients are finite, the scaler would let it through."""
    callback, seen = FiniteLoss("skip"), []
    monkeypatch.setattr(callback, "_skip", lambda trainer: seen.append(trainer))
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=torch.amp.GradScaler("cpu")))
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    optimizer._step_supports_amp_scaling = fused
    module(torch.ones(2)).sum().backward()
    callback.on_before_backward(trainer, module, torch.tensor(float("inf") if bad else 1.0))
    callback.on_before_optimizer_step(trainer, module, optimizer)
    assert len(seen) == bad
    gradients = [parameter.grad for parameter in module.parameters()]
    if not bad:
        assert all(gradient.isfinite().all() for gradient in gradients)
    elif fused:
        assert all(gradient.isnan().all() for gradient in gradients)
    else:
        assert gradients == [None, None]


def records(world, root: str) -> list[dict]:
    return [json.loads(line) for line in (world.folder / root / "non_finite.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("gradient_alone", "what"), [(False, "loss 'task'"), (True, "gradient")])
def test_a_run_stops_and_lists_the_problems(world, capsys, monkeypatch, gradient_alone, what):
    seen = poison(monkeypatch, {3}, gradient_alone)
    fails(
        world,
        capsys,
        f"the {what} is not finite at step 3; the last",
        "non_finite.jsonl",
        flags=FLAGS,
        backbone=BACKBONE,
    )
    (record,) = records(world, "run")
    assert record["problems"] == seen[2]
    assert (record["step"], record["rank"]) == (3, 0)
    assert ("gradient" if gradient_alone else "task") in record["parts"]
    assert checkpoint(world.folder / "run")["global_step"] == 2


def test_without_a_checkpoint_none_is_said_to_be_kept(world, capsys, monkeypatch):
    poison(monkeypatch, {1})
    words = ("loss 'task' is not finite at step 1; no checkpoint was due", "lower the learning rate")
    fails(world, capsys, *words, flags=FLAGS, backbone=BACKBONE)
    assert not list((world.folder / "run").rglob("*.ckpt"))


@pytest.mark.parametrize("gradient_alone", [False, True])
def test_a_step_that_is_left_out_changes_nothing(world, caplog, monkeypatch, gradient_alone):
    """Weights and moments are those of the step before; the next step is as if it had not been."""
    before = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    with monkeypatch.context() as patch:
        seen = poison(patch, {3}, gradient_alone)
        assert world.fit("ExplicitCoT", "run", *FLAGS, *SKIP, "--trainer.max_steps", "3", backbone=BACKBONE) == 0
    assert "step 3 is left out" in caplog.text
    assert records(world, "run")[0]["problems"] == seen[2]
    assert world.fit("ExplicitCoT", "two", *FLAGS, *before, backbone=BACKBONE) == 0
    run, two = checkpoint(world.folder / "run"), checkpoint(world.folder / "two")
    assert run["global_step"] == 3
    assert_same(run["state_dict"], two["state_dict"])
    moments, expected = (saved["optimizer_states"][0]["state"] for saved in (run, two))
    assert moments.keys() == expected.keys()
    for number, state in moments.items():
        for key, value in state.items():
            assert torch.equal(value, expected[number][key]), key


def test_all_that_was_accumulated_is_left_out(world, monkeypatch):
    flags = [*FLAGS, *SKIP, "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "2"]
    flags += ["--trainer.val_check_interval", "2"]
    seen = poison(monkeypatch, {3})
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    (record,) = records(world, "run")
    assert record["step"] == 2
    assert record["problems"] == seen[2] + seen[3]
    saved = checkpoint(world.folder / "run")
    assert all(float(state["step"]) == 1 for state in saved["optimizer_states"][0]["state"].values())


def test_more_than_the_limit_stops(world, capsys, monkeypatch):
    poison(monkeypatch, {2, 3, 4})
    flags = [*FLAGS, *SKIP, "--non_finite.limit", "2"]
    fails(world, capsys, "step 4 is number 3 of those whose", "non_finite.limit is 2", flags=flags, backbone=BACKBONE)
    assert [record["step"] for record in records(world, "run")] == [2, 3, 4]


def test_a_resumed_run_goes_on_counting(world, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, {2})
        flags = [*FLAGS, *SKIP, "--non_finite.limit", "1"]
        assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    capsys.readouterr()
    poison(monkeypatch, {1})
    flags += ["--ckpt_path", "last", "--trainer.max_steps", "6"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 2
    assert "step 5 is number 2 of those whose" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--non_finite.limit=-1", "--non_finite.every=0"])
def test_limits_out_of_range(world, capsys, flag):
    fails(world, capsys, "non_finite.limit is", "give 0 or more, and 1 or more", flags=[flag], backbone=BACKBONE)
