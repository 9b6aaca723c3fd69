"""A run says what it cost: problems, and arithmetic that some of its batches were counted for."""

from __future__ import annotations

import json

import pytest
from tiny_world import BACKBONE, assert_same, checkpoint

from lori_pl.alignment import LowRankAlignment
from lori_pl.callbacks import training_cost
from lori_pl.methods import measuring

FLAGS = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--model.max_new_tokens", "4"]


def summary(world, root):
    return json.loads((world.folder / root / "summary.json").read_text())


def test_a_count_changes_nothing_and_a_few_say_what_all_do(world, lori_args, monkeypatch):
    for root in ("all", "some", "none"):
        if root == "some":  # of six batches, and of two in each sweep
            monkeypatch.setattr(training_cost, "SAMPLES", 2)
            monkeypatch.setattr(measuring, "SAMPLES", 1)
        if root == "none":
            monkeypatch.setattr(training_cost, "can_count", lambda _: False)
            monkeypatch.setattr(measuring, "can_count", lambda _: False)
        assert world.fit("LoRi", root, *FLAGS, "--data.eval_batch_size", "8", **lori_args) == 0
    every, some, none = (summary(world, root) for root in ("all", "some", "none"))
    assert every["problems_seen"] == some["problems_seen"] == none["problems_seen"] == 6 * 8
    assert every["training_tflop"] > every["teacher_tflop"] > 0
    assert every["training_seconds"] > 0
    for name in ("training_tflop", "teacher_tflop", "measuring_tflop"):
        assert some[name] == pytest.approx(every[name], rel=0.3)  # of batches of other lengths
        assert name not in none
    for root in ("some", "none"):
        assert_same(checkpoint(world.folder / "all")["state_dict"], checkpoint(world.folder / root)["state_dict"])


@pytest.mark.slow
def test_a_resumed_run_counts_on(world, teacher):
    settings = {"backbone": {}, "teacher": {"name": teacher}, "latents": 2}
    flags = ["--trainer.val_check_interval", "3", "--model.schedule.decay", "none"]
    assert world.fit("CODI", "whole", *flags, "--trainer.max_steps", "6", **settings) == 0
    assert world.fit("CODI", "parts", *flags, "--trainer.max_steps", "3", **settings) == 0
    resumed = ["--trainer.max_steps", "6", "--ckpt_path", "last"]
    assert world.fit("CODI", "parts", *flags, *resumed, **settings) == 0
    whole, parts = summary(world, "whole"), summary(world, "parts")
    for name in ("problems_seen", "training_tflop", "teacher_tflop"):
        assert whole[name] == parts[name]
    assert whole["teacher_tflop"] == 0  # it is its own
    assert whole["training_tflop"] > 0
    assert whole["measuring_tflop"] == whole["measuring_seconds"] == 0


@pytest.mark.slow
def test_what_terms_measure_before_training_is_counted_once(world, lori_args):
    """The teacher's passes, over the 64 problems in each sweep, are those of eight batches of the training's."""
    lori_args = {**lori_args, "statistics_problems": 64}
    flags = ["--trainer.val_check_interval", "4", "--model.schedule.decay", "none"]
    assert world.fit("LoRi", "parts", *flags, "--trainer.max_steps", "4", **lori_args) == 0
    first = summary(world, "parts")
    resumed = ["--trainer.max_steps", "8", "--ckpt_path", "last"]
    assert world.fit("LoRi", "parts", *flags, *resumed, **lori_args) == 0
    second = summary(world, "parts")
    assert second["measuring_tflop"] == first["measuring_tflop"] > 0
    assert second["measuring_seconds"] == first["measuring_seconds"]
    sweeps = LowRankAlignment.sweeps
    assert second["measuring_tflop"] == pytest.approx(sweeps * second["teacher_tflop"], rel=0.05)


def test_no_cot_costs_less_than_words(world):
    for name in ("NoCoT", "ExplicitCoT"):
        assert world.fit(name, name, *FLAGS, backbone=BACKBONE) == 0
    assert summary(world, "NoCoT")["training_tflop"] < summary(world, "ExplicitCoT")["training_tflop"]
