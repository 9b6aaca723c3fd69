"""Gradients of two batches of 4, accumulated, are those of one batch of 8: the same weights after training."""

from __future__ import annotations

import pytest
from test_peers import PEERS, arguments
from tiny_world import BACKBONE, checkpoint

# Adam would make steps of the rounding in a gradient that is zero
SGD = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1"]
FLAGS = [*SGD, "--test_after_fit", "false", "--trainer.max_steps", "3"]
HALVES = ["--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "6"]
OVER_BATCH = {
    "CODI": "L_KD",
    "KaVa": "L_KD",
    "PCCoT": "L_KD",
    "SIMCoT": "L_KD",
    "Coconut": "the batch's tokens",
    "SIMCoTCoconut": "the batch's tokens",
}


def difference(world, method, *flags, **settings) -> float:
    """The largest between the two runs' weights."""
    assert world.fit(method, "whole", *FLAGS, "--trainer.val_check_interval", "3", *flags, **settings) == 0
    assert world.fit(method, "halves", *FLAGS, *HALVES, *flags, **settings) == 0
    whole, halves = (checkpoint(world.folder / name) for name in ("whole", "halves"))
    assert whole["global_step"] == halves["global_step"] == 3
    assert whole["state_dict"].keys() == halves["state_dict"].keys()
    pairs = ((value, halves["state_dict"][key]) for key, value in whole["state_dict"].items())
    return max(float((one.float() - other.float()).abs().max()) for one, other in pairs)


def test_explicit_cot(world, caplog):
    assert difference(world, "ExplicitCoT", backbone=BACKBONE) < 1e-5
    assert "accumulate_grad_batches" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["problem", "batch"])
def test_lori(world, lori_args, caplog, scope):
    flags = ["--model.alignment.student_factors", "learned", "--model.alignment.scope", scope]
    found = difference(world, "LoRi", *flags, **lori_args)
    if scope == "problem":
        assert found < 1e-5
        assert "accumulate_grad_batches" not in caplog.text
    else:
        assert found > 1e-5
        assert "alignment.scope is batch: each batch of 4 has its own" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer(world, teacher, caplog, name):
    """Equal, or a warning says what of the loss is the batch's."""
    found = difference(world, name, **arguments(name, teacher))
    if name in OVER_BATCH:
        assert OVER_BATCH[name] in caplog.text
        assert OVER_BATCH[name] != "L_KD" or found > 1e-7  # here all answers are of one length
    else:
        assert found < 1e-5
        assert "accumulate_grad_batches" not in caplog.text


COMPAT = {
    "CODI": (["--data.template.drop_last_step=true"], "the cross-entropies are means over the batch's tokens"),
    "ICoTSI": ([], "the loss is the mean over the batch's tokens"),
    "SIMCoTCoconut": ([], "peer_compat sums CE_steps over the batch"),
}


@pytest.mark.parametrize("name", COMPAT)
def test_means_over_a_batch_as_published_are_warned_of(world, teacher, caplog, name):
    """What ``peer_compat`` takes over a batch's tokens, no accumulation of smaller ones can give."""
    more, said = COMPAT[name]
    flags = [
        *FLAGS,
        *HALVES,
        *more,
        "--model.peer_compat=true",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
    ]
    assert world.fit(name, "run", *flags, **arguments(name, teacher)) == 0
    assert "accumulate_grad_batches is 2, but" in caplog.text
    assert f"{said}: each batch of 4 has its own" in caplog.text
