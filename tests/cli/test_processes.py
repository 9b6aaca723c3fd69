"""Two processes are one on the same global batch: losses, weights after training, and each test problem once.

And the two hold one model: the same weights bit for bit, or each its part of every weight.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from forked import forked
from test_peers import PEERS, arguments
from tiny_world import BACKBONE, BASE, checkpoint
from watching import WATCH, assert_one_model, logged, losses, updates

from lori_pl.cli import main
from lori_pl.evaluation.records import read_outcomes

ONE_AND_MORE = ["--data.source.test", "17"]  # an uneven last batch

pytestmark = pytest.mark.distributed
# Adam would make steps of the rounding in a gradient that is zero
DIVIDING = ["sharded", "fsdp1"]
STRATEGIES = ["ddp", *DIVIDING]
CELLS = pytest.mark.parametrize(("factors", "scope"), list(product(["shared", "learned"], ["problem", "batch"])))
SGD = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1", "--trainer.max_steps=10", *WATCH]
# at a rate that does without
NO_CLIPPING = ["--trainer.gradient_clip_val=null", "--model.optimizer.init_args.lr=0.001"]
METHODS = ["ExplicitCoT", "NoCoT", "Pause", *PEERS]


def alignment(factors, scope) -> list[str]:
    """The flags of a cell; the two first are all that a cache asks."""
    flags = [f"--model.alignment.student_factors={factors}", f"--model.alignment.scope={scope}"]
    return [*flags, *(NO_CLIPPING if factors == "shared" else [])]


def settings_of(name, teacher):
    return arguments(name, teacher) if name in PEERS else {"backbone": {"name": teacher}}


def start(*command) -> subprocess.CompletedProcess:
    """Runs Python, which finds the callbacks of the tests."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=900, env=environment)


def started_by_torchrun(rank, port, command) -> None:
    """Runs a command in a process that has what torchrun gives it."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in places.items()})
    assert main(command) == 0


def train_in_two(world, method, *flags, strategy="ddp", batch=4, forking=False, **init_args) -> None:
    """A run in the folder ``two``, whose processes share the batches of a run in one.

    Those of ``forking`` need not import everything anew.
    """
    run = ["fit", "--config", world.config("base", BASE), "--config", world.method(method, **init_args), *flags]
    run += [f"--trainer.strategy={strategy}", "--trainer.devices=2", f"--data.batch_size={batch}"]
    run += [f"--trainer.default_root_dir={world.folder / 'two'}"]
    if forking:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        forked(started_by_torchrun, port, run)
    else:
        done = start("-m", "lori_pl", *run)
        assert done.returncode == 0, done.stderr
    if WATCH[0] in flags:
        assert_one_model(world.folder / "two", checkpoint(world.folder / "two")["state_dict"], strategy in DIVIDING)


def assert_equal_runs(world, accumulated: bool = False) -> None:
    one, two = (checkpoint(world.folder / name)["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    one, two = (losses(world.folder / name) for name in ("one", "two"))  # of a run that went on its last part's
    assert two
    assert two == pytest.approx({place: one[place] for place in two}, rel=0, abs=1e-5)
    if not accumulated:  # of whose batches the last alone is written
        one, two = (logged(world.folder / name) for name in ("one", "two"))
        assert {step for step, _ in two} == set(range(checkpoint(world.folder / "two")["global_step"]))
        assert two == pytest.approx(one, rel=0, abs=1e-5)
    one, two = (read_outcomes(world.folder / name / "correct.npz") for name in ("one", "two"))
    assert len(two.ids) == 17
    assert two.ids == one.ids
    assert one.bits.keys() == two.bits.keys()
    for label, bits in one.bits.items():
        assert (two.bits[label] == bits).all()


@pytest.mark.parametrize(
    ("strategy", "factors", "scope", "forking"),
    [("ddp", "learned", "batch", False), ("sharded", "shared", "problem", True)],
)
def test_the_first_steps(world, lori_args, strategy, factors, scope, forking):
    """Two of the cells of `test_lori`, in short: one started by the command line itself, one by torchrun."""
    flags = [*SGD, *ONE_AND_MORE, *alignment(factors, scope), "--trainer.max_steps=2"]
    assert world.fit("LoRi", "one", *flags, **lori_args) == 0
    train_in_two(world, "LoRi", *flags, strategy=strategy, forking=forking, **lori_args)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@CELLS
def test_lori(world, lori_args, strategy, factors, scope):
    """Student, terms and live teacher; of shared factors with no norm that gradients are clipped to.

    A clipped gradient has lost a factor that all of it had wrong.
    """
    flags = [*SGD, *ONE_AND_MORE, *alignment(factors, scope)]
    arguments = {**lori_args, "student_init": "teacher"}
    if scope == "batch":
        arguments |= {"student_init": "base", "backbone": BACKBONE}
    assert world.fit("LoRi", "one", *flags, **arguments) == 0
    train_in_two(world, "LoRi", *flags, strategy=strategy, **arguments)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_another_method(world, teacher, name):
    settings = settings_of(name, teacher)
    flags = [*SGD, *ONE_AND_MORE]  # with stages that end
    assert world.fit(name, "one", *flags, **settings) == 0
    train_in_two(world, name, *flags, **settings)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIVIDING)
def test_measuring_with_batches_of_unequal_number_sharded(world, lori_args, strategy):
    """One process has two, the other one: the passes over the teacher's weights are still everyone's."""
    flags = [*SGD, "--data.eval_batch_size=8", *ONE_AND_MORE]
    arguments = {**lori_args, "statistics_problems": 17}
    assert world.fit("LoRi", "one", *flags, **arguments) == 0
    train_in_two(world, "LoRi", *flags, strategy=strategy, **arguments)
    assert_equal_runs(world)


def poisoned(world, strategy, *flags) -> subprocess.CompletedProcess:
    """Four steps of two processes, the third of which has no number as loss in the second process."""
    script = world.folder / "poisoned.py"
    script.write_text(POISONED)
    run = ["fit", "--config", world.config("base", BASE), "--config", world.method("ExplicitCoT", backbone=BACKBONE)]
    run += [f"--trainer.strategy={strategy}", "--trainer.devices=2", "--data.batch_size=4", *SGD, *flags]
    return start(str(script), *run, "--trainer.max_steps=4", f"--trainer.default_root_dir={world.folder / 'run'}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loss_that_is_no_number_in_one_process_stops_all(world, strategy):
    """Each lists its problems and says in one line why, and nobody waits for the other."""
    began = time.monotonic()
    done = poisoned(world, strategy)
    assert done.returncode == 2, done.stderr
    assert time.monotonic() - began < 180
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert 1 <= len(said) <= 2, done.stderr  # the second process may be ended before it says its own
    for line in said:
        assert re.match(r"error: the (gradient|loss 'task') is not finite at step 3; the last checkpoint before", line)
    ids = []
    for rank, part in enumerate(["gradient", "task"]):  # the other's loss is a number
        (record,) = map(json.loads, (world.folder / "run" / f"rank{rank}_non_finite.jsonl").read_text().splitlines())
        assert (record["step"], record["rank"]) == (3, rank)
        assert part in record["parts"]
        ids += record["problems"]
    assert len(set(ids)) == 8
    assert checkpoint(world.folder / "run")["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_that_is_no_number_in_one_process_is_left_out_of_all(world, strategy):
    """Gradients come together before anybody looks at them."""
    done = poisoned(world, strategy, "--non_finite.policy=skip")
    assert done.returncode == 0, done.stderr
    assert "step 3 is left out" in done.stderr
    for rank in range(2):
        (record,) = (world.folder / "run" / f"rank{rank}_non_finite.jsonl").read_text().splitlines()
        assert json.loads(record)["step"] == 3
    saved = checkpoint(world.folder / "run")
    assert saved["global_step"] == 4
    assert all(value.isfinite().all() for value in saved["state_dict"].values() if value.is_floating_point())


POISONED = """
import os, sys
from lori_pl.cli import main
from lori_pl.methods import ExplicitCoT

original = ExplicitCoT.task_loss
calls = []

def poisoned(self, batch):
    loss = original(self, batch)
    if self.training:
        calls.append(None)
        if len(calls) == 3 and self.global_rank == 1:
            loss = loss * float("nan")
    return loss

ExplicitCoT.task_loss = poisoned
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@CELLS
def test_lori_from_a_cache(world, lori_args, strategy, factors, scope):
    """No process has a teacher."""
    cell, folder = alignment(factors, scope), str(world.folder / "cache")
    flags = [*SGD, *ONE_AND_MORE, *cell]
    assert world.run("cache", "--folder", folder, "--dtype=float32", *cell[:2], method="LoRi", **lori_args) == 0
    arguments = {**lori_args, "cache": folder}
    assert world.fit("LoRi", "one", *flags, **arguments) == 0
    train_in_two(world, "LoRi", *flags, strategy=strategy, **arguments)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIVIDING)
def test_adapters_sharded(world, lori_args, strategy):
    """A frozen base, adapters and the markers' own rows."""
    arguments = {**lori_args, "backbone": {"lora": {"rank": 4, "dropout": 0.0}}}
    assert world.fit("LoRi", "one", *SGD, *ONE_AND_MORE, **arguments) == 0
    train_in_two(world, "LoRi", *SGD, *ONE_AND_MORE, strategy=strategy, **arguments)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--model.backbone.dtype=bfloat16"],
            "all weights of layer 1 .* must be of one type: .*take trainer.strategy sharded",
        ),
        (["--trainer.strategy.cpu_offload=true"], "cpu_offload is for GPUs"),
    ],
)
def test_what_fsdp1_does_not_take(world, teacher, flags, said):
    backbone = {"name": teacher, "lora": {"rank": 4, "dropout": 0.0}}
    run = ["fit", "--config", world.config("base", BASE), "--config", world.method("NoCoT", backbone=backbone)]
    run += [
        "--trainer.strategy=lori_pl.sharding.FSDP1Strategy",
        "--trainer.strategy.timeout_minutes=5",
        "--trainer.devices=2",
        *flags,
        f"--trainer.default_root_dir={world.folder / 'run'}",
    ]
    done = start("-m", "lori_pl", *run)
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIVIDING)
def test_a_process_without_a_gradient_answers_the_others(world, strategy):
    """FSDP1 cuts a layer's weights in a row: with few adapters one process has frozen ones alone."""
    backbone = {**BACKBONE, "lora": {"rank": 4, "dropout": 0.0, "targets": ["q_proj"]}}
    flags = [*SGD, *ONE_AND_MORE, "--non_finite.policy=skip"]
    assert world.fit("NoCoT", "one", *flags, backbone=backbone) == 0
    train_in_two(world, "NoCoT", *flags, strategy=strategy, backbone=backbone)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accumulated_with_recomputed_layers(world, lori_args, strategy):
    flags = [*SGD, *ONE_AND_MORE]
    assert world.fit("LoRi", "one", *flags, **lori_args) == 0
    more = ["--trainer.accumulate_grad_batches=2", "--model.backbone.gradient_checkpointing=true"]
    train_in_two(world, "LoRi", *flags, *more, strategy=strategy, batch=2, **lori_args)
    assert_equal_runs(world, accumulated=True)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIVIDING)
def test_half_precision_in_parts(world, lori_args, strategy):
    """Losses and what each weight has become differ by rounding in bfloat16, whose numbers have 8 bits."""
    flags = [*SGD, *ONE_AND_MORE, *NO_CLIPPING, "--trainer.precision=bf16-mixed", "--trainer.max_steps=3"]
    assert world.fit("LoRi", "one", *flags, **lori_args) == 0
    train_in_two(world, "LoRi", *flags, strategy=strategy, **lori_args)
    one, two = (losses(world.folder / name) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=2**-6)
    one, two = (updates(world.folder / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, update in one.items():
        assert (two[name] - update).norm() <= 2**-4 * update.norm(), name  # the most that was seen is 0.023


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIVIDING)
@pytest.mark.parametrize("name", METHODS)
def test_another_method_sharded(world, teacher, name, strategy):
    settings = settings_of(name, teacher)
    flags = [*SGD, *ONE_AND_MORE]
    assert world.fit(name, "one", *flags, **settings) == 0
    train_in_two(world, name, *flags, strategy=strategy, **settings)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_decoder_that_waits_for_the_first_latents(world, teacher, strategy):
    """In a stage without latents; its weights decay all the same."""
    settings = {**settings_of("SIMCoTCoconut", teacher), "first_stage": 0}
    flags = [*SGD, *ONE_AND_MORE, "--model.optimizer.init_args.weight_decay=0.1"]
    assert world.fit("SIMCoTCoconut", "one", *flags, **settings) == 0
    train_in_two(world, "SIMCoTCoconut", *flags, strategy=strategy, **settings)
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, "sharded"),
        ("sharded", None),
        ("sharded", "sharded"),
        (None, "fsdp1"),
        ("fsdp1", "sharded"),
        ("fsdp1", "fsdp1"),
    ],
)
def test_a_run_goes_on_under_another_strategy(world, lori_args, first, second):
    """With AdamW's moments, which a sharded run holds in parts."""
    adam = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.init_args.eps=0.01"]
    flags = [*adam, "--model.schedule.decay=none", "--model.schedule.warmup=0", *ONE_AND_MORE, "--trainer.max_steps=8"]
    flags += WATCH
    assert world.fit("LoRi", "one", *flags, **lori_args) == 0
    for strategy, more in ((first, ["--trainer.max_steps=4"]), (second, ["--ckpt_path=last"])):
        if strategy is None:
            assert world.fit("LoRi", "two", *flags, *more, **lori_args) == 0
        else:
            train_in_two(world, "LoRi", *flags, *more, strategy=strategy, **lori_args)
        if "--ckpt_path=last" not in more:
            assert checkpoint(world.folder / "two")["global_step"] == 4
            for left in ("correct.npz", "rank0.pt", "rank1.pt"):
                (world.folder / "two" / left).unlink(missing_ok=True)
    one, two = (checkpoint(world.folder / name)["optimizer_states"][0]["state"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for number, state in one.items():
        for key, value in state.items():
            torch.testing.assert_close(
                two[number][key],
                value,
                rtol=1e-3,
                atol=1e-5,
                msg=lambda text, place=f"{number} {key}": f"{place}: {text}",
            )
    assert_equal_runs(world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIVIDING)
def test_a_folder_is_tested_in_parts(world, lori_args, strategy):
    """The first process alone reads it."""
    assert world.fit("LoRi", "run", *SGD, *ONE_AND_MORE, **lori_args) == 0
    student = world.folder / "run" / "student"
    test = [
        "test",
        "--config",
        world.config("base", BASE),
        "--config",
        world.method("LoRi", **lori_args),
        *ONE_AND_MORE,
    ]
    test += [f"--ckpt_path={student}", f"--trainer.strategy={strategy}", "--trainer.devices=2"]
    done = start("-m", "lori_pl", *test, f"--trainer.default_root_dir={world.folder / 'parts'}")
    assert done.returncode == 0, done.stderr
    one, two = (read_outcomes(world.folder / name / "correct.npz") for name in ("run", "parts"))
    assert two.ids == one.ids
    for label, bits in one.bits.items():
        assert (two.bits[label] == bits).all()


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
