"""Two processes are one on the same global batch: weights after training, and each test problem once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import BASE, checkpoint
from test_peers import PEERS, arguments

from lori_pl.evaluation.records import read_outcomes

ONE_AND_MORE = ["--data.source.test", "17"]  # an uneven last batch
# Adam would make steps of the rounding in a gradient that is zero
SGD = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1", "--trainer.max_steps=10"]


def train_in_two(world, method, *flags, **init_args) -> None:
    """A run in the folder ``two``, whose processes share the batches of a run in one."""
    run = ["fit", "--config", world.config("base", BASE), "--config", world.method(method, **init_args), *flags]
    run += ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=4"]
    command = [sys.executable, "-m", "lori_pl", *run, f"--trainer.default_root_dir={world.folder / 'two'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def assert_equal_runs(world) -> None:
    one, two = (checkpoint(world.folder / name)["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=key)
    one, two = (read_outcomes(world.folder / name / "correct.npz") for name in ("one", "two"))
    assert len(two.ids) == 17
    assert two.ids == one.ids
    assert one.bits.keys() == two.bits.keys()
    for label, bits in one.bits.items():
        assert (two.bits[label] == bits).all()


@pytest.mark.parametrize("factors", ["shared", pytest.param("learned", marks=pytest.mark.slow)])
def test_lori(world, lori_args, factors):
    flags = ["--model.alignment.student_factors", factors, "--model.alignment.scope", "batch", *SGD, *ONE_AND_MORE]
    assert world.fit("LoRi", "one", *flags, **lori_args) == 0
    train_in_two(world, "LoRi", *flags, **lori_args)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer(world, teacher, name):
    settings = arguments(name, teacher)
    flags = [*SGD, *ONE_AND_MORE]  # with stages that end
    assert world.fit(name, "one", *flags, **settings) == 0
    train_in_two(world, name, *flags, **settings)
    assert_equal_runs(world)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(world, lori_args):
    """Of the same global batch: from one to two."""
    flags = [*SGD, "--model.schedule.decay=none", "--model.schedule.warmup=0", *ONE_AND_MORE]
    assert world.fit("LoRi", "one", *flags, **lori_args) == 0
    assert world.fit("LoRi", "two", *flags, "--trainer.max_steps=5", **lori_args) == 0
    (world.folder / "two" / "correct.npz").unlink()
    train_in_two(world, "LoRi", *flags, "--ckpt_path=last", **lori_args)
    assert checkpoint(world.folder / "two")["global_step"] == 10
    assert_equal_runs(world)
