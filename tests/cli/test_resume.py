"""Going on with a run: the same weights as without a break, flags that win, the steps behind the last validation."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_stop_signals import tell
from tiny_world import BACKBONE, assert_same, checkpoint
from watching import logged

from lori_pl import LatentReasoner
from lori_pl.evaluation.records import read_outcomes
from lori_pl.methods import ExplicitCoT, LoRi

pytestmark = pytest.mark.resume
MEASURED = ("val/", "alignment/")


@pytest.mark.parametrize("method", [pytest.param("ExplicitCoT", marks=pytest.mark.slow), "LoRi"])
def test_resumed_in_mid_epoch_equals_uninterrupted(world, lori_args, method):
    """Also the dropout that it draws: LoRA's is on in every recipe for a real model."""
    dropout = {"dropout": 0.3}
    arguments = lori_args | {"backbone": dropout} if method == "LoRi" else {"backbone": BACKBONE | dropout}
    flags = ["--trainer.val_check_interval", "3", "--model.schedule.decay", "none", "--test_after_fit", "false"]
    flags += ["--model.schedule.warmup", "0"]  # a share would depend on the number of steps
    assert world.fit(method, "whole", *flags, "--trainer.max_steps", "11", **arguments) == 0
    assert world.fit(method, "parts", *flags, "--trainer.max_steps", "6", **arguments) == 0
    assert checkpoint(world.folder / "parts")["global_step"] == 6
    resume = ["--ckpt_path", "last", "--trainer.max_steps", "11"]
    assert world.fit(method, "parts", *flags, *resume, **arguments) == 0
    whole, parts = checkpoint(world.folder / "whole"), checkpoint(world.folder / "parts")
    assert whole["global_step"] == parts["global_step"] == 11
    assert_same(whole["state_dict"], parts["state_dict"])
    one, two = (logged(world.folder / name, "train/", *MEASURED) for name in ("whole", "parts"))
    assert {step for step, name in one if name == "val/loss"} == {2, 5, 8, 10}
    assert two == one


@pytest.mark.parametrize(
    "decay", ["cosine", *(pytest.param(name, marks=pytest.mark.slow) for name in ("late", "linear"))]
)
def test_resumed_in_mid_decay_equals_uninterrupted(world, monkeypatch, decay):
    """Stopped where the rate falls: rate, moments and weights are, bit for bit, those of a run that nothing stopped."""
    flags = [f"--model.schedule.decay={decay}", "--model.schedule.decay_share=0.8", "--model.schedule.warmup=0.1"]
    flags += ["--trainer.max_steps=11", "--trainer.val_check_interval=11", "--test_after_fit=false"]
    flags += ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.init_args.lr=0.01"]
    assert world.fit("ExplicitCoT", "whole", *flags, backbone=BACKBONE) == 0
    with monkeypatch.context() as patch:
        tell(patch, "training_step", 6)
        assert world.fit("ExplicitCoT", "parts", *flags, backbone=BACKBONE) == 143
    stopped = checkpoint(world.folder / "parts")
    assert stopped["global_step"] == 6
    (rate,) = {group["lr"] for group in stopped["optimizer_states"][0]["param_groups"]}
    assert 0.001 < rate < 0.009
    assert world.fit("ExplicitCoT", "parts", *flags, "--ckpt_path=last", backbone=BACKBONE) == 0
    whole, parts = checkpoint(world.folder / "whole"), checkpoint(world.folder / "parts")
    assert whole["global_step"] == parts["global_step"] == 11
    assert_same(whole["state_dict"], parts["state_dict"])
    assert whole["lr_schedulers"] == parts["lr_schedulers"]
    one, two = (saved["optimizer_states"][0] for saved in (whole, parts))
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for number, state in one["state"].items():
        assert_same(state, two["state"][number])


def test_another_teacher_is_refused(world, teacher, lori_args, capsys):
    """By its weights: one that was only moved is the same."""
    moved, other = world.folder / "moved", world.folder / "other"
    for copy in (moved, other):
        shutil.copytree(teacher, copy)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    flags = ["--trainer.max_steps=2", "--test_after_fit=false"]
    assert world.fit("LoRi", "run", *flags, **lori_args) == 0
    flags += ["--ckpt_path=last", "--trainer.max_steps=3"]
    capsys.readouterr()
    assert world.fit("LoRi", "run", *flags, **{**lori_args, "teacher": {"name": str(other)}}) == 2
    (said,) = capsys.readouterr().err.splitlines()[-1:]
    assert re.search(rf"was trained with the teacher {teacher} \(digest \w+\), and this run has {other} \(", said)
    assert world.fit("LoRi", "run", *flags, **{**lori_args, "teacher": {"name": str(moved)}}) == 0
    # a checkpoint that notes no teacher
    file = world.folder / "run" / "checkpoints" / "last.ckpt"
    old = checkpoint(world.folder / "run")
    assert old["lori_pl"].pop("teacher")["name"] == str(moved)
    torch.save(old, file)
    flags += ["--trainer.max_steps=4", f"--ckpt_path={file}"]
    assert world.fit("LoRi", "run", *flags, **{**lori_args, "teacher": {"name": str(other)}}) == 0
    assert checkpoint(world.folder / "run")["lori_pl"]["teacher"]["name"] == str(other)


def test_a_run_whose_folder_was_moved_keeps_its_best_checkpoint(world, monkeypatch):
    """Also where what comes is worse, and where nothing comes."""
    right = [True]
    monkeypatch.setattr(ExplicitCoT, "judge", lambda self, answers, *_: torch.full((len(answers),), right[0]))
    assert world.fit("ExplicitCoT", "before", "--test_after_fit=false", backbone=BACKBONE) == 0
    best = checkpoint(world.folder / "before", "best.ckpt")
    (world.folder / "before").rename(world.folder / "after")
    flags = ["--ckpt_path=last", "--test_after_fit=false"]
    assert world.fit("ExplicitCoT", "after", *flags, backbone=BACKBONE) == 0  # at its end already
    right[0] = False
    assert world.fit("ExplicitCoT", "after", *flags, "--trainer.max_steps=8", backbone=BACKBONE) == 0
    kept, last = (checkpoint(world.folder / "after", name) for name in ("best.ckpt", "last.ckpt"))
    assert last["global_step"] == 8
    assert kept["global_step"] == best["global_step"] <= 4
    student = LatentReasoner.from_pretrained(world.folder / "after" / "student").lm.state_dict()
    assert torch.equal(student["lm_head.weight"], best["state_dict"]["reasoner.lm.lm_head.weight"])


@pytest.mark.slow
def test_a_flag_wins_over_the_checkpoint_on_resume(world, lori_args, monkeypatch):
    assert world.fit("LoRi", "run", **lori_args) == 0
    file = world.folder / "run" / "checkpoints" / "last.ckpt"
    # what a method of one's own that calls save_hyperparameters() leaves there, and LightningCLI takes up
    kept = {"hyper_parameters": {"_class_path": "lori_pl.methods.LoRi", "max_new_tokens": 7}}
    torch.save(checkpoint(world.folder / "run") | kept, file)
    seen = []
    original = LoRi.on_fit_start

    def look(self):
        original(self)
        seen.append((self.max_new_tokens, {name: w for term in self.active_terms for name, w in term.weights.items()}))

    monkeypatch.setattr(LoRi, "on_fit_start", look)
    flags = ["--ckpt_path", str(file), "--trainer.max_steps", "6"]
    flags += ["--model.anchor.w_anchor", "0.25", "--model.max_new_tokens", "9"]
    assert world.fit("LoRi", "run", *flags, **lori_args) == 0
    ((most, weights),) = seen
    assert most == 9
    assert weights["anchor"] == 0.25


def test_the_optimisers_flags_win_on_resume(world, monkeypatch):
    def flags(rate, decay, steps):
        names = {"class_path": "torch.optim.AdamW", "init_args.lr": rate, "init_args.weight_decay": decay}
        optimizer = [f"--model.optimizer.{name}={value}" for name, value in names.items()]
        return [
            *optimizer,
            "--model.schedule.decay=linear",
            "--model.schedule.warmup=0",
            f"--trainer.max_steps={steps}",
        ]

    assert world.fit("ExplicitCoT", "run", *flags(1e-3, 0.1, 4), "--test_after_fit=false", backbone=BACKBONE) == 0
    seen = []

    def look(self, batch, batch_idx):
        groups = self.optimizers().param_groups
        seen.append({group["name"]: (group["lr"], group["weight_decay"], group["betas"]) for group in groups})
        return original(self, batch, batch_idx)

    original = ExplicitCoT.training_step
    monkeypatch.setattr(ExplicitCoT, "training_step", look)
    resume = [*flags(5e-4, 0.3, 6), "--ckpt_path=last", "--test_after_fit=false"]
    assert world.fit("ExplicitCoT", "run", *resume, backbone=BACKBONE) == 0
    expected = [5e-4 * (1 - step / 6) for step in (4, 5)]
    for values, rate in zip(seen, expected, strict=True):
        assert values["backbone/decay"] == (pytest.approx(rate), 0.3, (0.9, 0.999))
        assert values["backbone/no_decay"] == (pytest.approx(rate), 0.0, (0.9, 0.999))
    saved = yaml.safe_load((world.folder / "run" / "config.yaml").read_text())
    assert saved["ckpt_path"] is None  # the file repeats the run from its start


@pytest.mark.parametrize("end", [["--trainer.max_steps", "5"], ["--trainer.max_steps=-1", "--trainer.max_epochs=1"]])
def test_the_steps_behind_the_last_interval_are_validated_and_saved(world, end):
    """Lightning alone validates and saves at whole intervals only."""
    flags = ["--trainer.val_check_interval", "3", "--test_after_fit", "false"]
    if "5" in end:
        flags += ["--trainer.check_val_every_n_epoch", "null"]
    assert world.fit("ExplicitCoT", "run", *flags, *end, backbone=BACKBONE) == 0
    assert checkpoint(world.folder / "run")["global_step"] == (5 if "5" in end else 64 // 8)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [8, 6])
def test_resumed_behind_its_last_validation_equals_uninterrupted(world, steps):
    """Also from the last step of an epoch, of which Lightning alone would train one more batch."""
    flags = ["--trainer.val_check_interval", "5", "--test_after_fit", "false", "--model.schedule.decay", "none"]
    flags += ["--model.schedule.warmup", "0"]
    assert world.fit("ExplicitCoT", "whole", *flags, "--trainer.max_steps", "13", backbone=BACKBONE) == 0
    assert world.fit("ExplicitCoT", "parts", *flags, "--trainer.max_steps", str(steps), backbone=BACKBONE) == 0
    assert checkpoint(world.folder / "parts")["global_step"] == steps
    more = ["--trainer.max_steps", "13", "--ckpt_path", "last"]
    assert world.fit("ExplicitCoT", "parts", *flags, *more, backbone=BACKBONE) == 0
    whole, parts = checkpoint(world.folder / "whole"), checkpoint(world.folder / "parts")
    assert whole["global_step"] == parts["global_step"] == 13
    assert_same(whole["state_dict"], parts["state_dict"])
    # and what is logged stands under the same steps
    one, two = (logged(world.folder / name) for name in ("whole", "parts"))
    assert {step for step, _ in one} == set(range(13))
    assert two == one
    one, two = (logged(world.folder / name, *MEASURED) for name in ("whole", "parts"))
    assert {step for step, _ in one} == {4, 9, 12}
    assert {step for step, _ in two} == {4, steps - 1, 9, 12}  # also where it was stopped
    assert {place: two[place] for place in one} == one


def test_a_resumed_run_may_be_tested_on_other_problems(world):
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    flags = ["--ckpt_path=last", "--trainer.max_steps=6", "--data.test_problems=5"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    assert len(read_outcomes(world.folder / "run" / "correct.npz").ids) == 5
