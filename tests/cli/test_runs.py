"""Whole runs through the command line: what they leave behind, resume, and what a checkpoint holds."""

from __future__ import annotations

import csv
import json
import logging
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_world import BACKBONE, SOURCE, assert_same, checkpoint
from watching import weights_after

from lori_pl import LatentReasoner
from lori_pl.alignment import AnchorAlignment
from lori_pl.cli import main
from lori_pl.data.sources import Synthetic
from lori_pl.data.tokenizer import synthetic_tokenizer
from lori_pl.methods import ExplicitCoT, LoRi
from lori_pl.methods.base import is_written
from lori_pl.models.backbone import Backbone
from lori_pl.sweep.child import PROGRESS

LOW_RANK_ANCHOR = {
    "anchor": {"class_path": "lori_pl.alignment.AnchorAlignment", "init_args": {"anchor_space": "low_rank"}}
}


def test_a_lori_run_leaves_summary_outcomes_student_config_and_pictures(world, lori_args, pictures, capsys):
    assert world.fit("LoRi", "run", **lori_args) == 0
    run = world.folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    values = summary["methods"]["lori"]
    assert set(values) >= {"accuracy", "low", "high", "n", "passes", "milliseconds", "floor"}
    assert values["n"] == 16
    assert values["passes"] >= 1 + 3 + 1
    with np.load(run / "correct.npz", allow_pickle=False) as outcomes:
        bits = outcomes["lori/0"]
        assert outcomes["problems"] == values["problems"]
    assert bits.mean() == pytest.approx(values["accuracy"])
    assert (run / "spectrum.png").stat().st_size > 10_000
    events = EventAccumulator(str(run / "tensorboard")).Reload().Tags()
    assert "alignment/spectrum" in events["images"]
    assert {"train/loss", "val/accuracy", "alignment/covariance_floor"} <= set(events["scalars"])
    assert 'from_pretrained("student")' in (run / "student" / "README.md").read_text()
    answers = LatentReasoner.from_pretrained(run / "student").answer(["Ann has 4 apples . She finds 3 ."])
    assert answers[0].latents == 3
    assert "lori on test" in capsys.readouterr().out


def test_every_part_of_the_loss_and_the_diagnostics_are_logged(world, lori_args):
    flags = ["--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir"]
    assert world.fit("LoRi", "run", *flags, str(world.folder / "csv"), **lori_args) == 0
    (metrics,) = (world.folder / "csv").rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0].split(",")
    wanted = {"train/task", "train/mean", "train/covariance", "train/anchor", "val/accuracy", "val/accuracy_steps_1"}
    wanted |= {"speed/problems_per_second", "speed/tokens_per_second"}
    alignment = ("orthonormality_error", "student_energy_share", "energy_layers", "energy_hidden", "energy_core")
    alignment += ("covariance_floor",)
    wanted |= {f"alignment/{name}" for name in alignment}
    assert wanted <= set(header), wanted - set(header)
    assert any(name.startswith("gradient_norm/thought") for name in header)


def test_the_teacher_is_unchanged_by_a_fit_and_absent_from_checkpoint_and_optimiser(world, lori_args, monkeypatch):
    seen = []
    start, end = LoRi.on_fit_start, LoRi.on_train_end

    def remember(self):
        seen.append({k: v.clone() for k, v in self.teacher.state_dict().items()})
        start(self)

    def compare(self):
        end(self)
        for key, value in self.teacher.state_dict().items():
            assert torch.equal(value, seen[0][key]), key
        assert not self.teacher.training
        trained = {id(p) for group in self.optimizers().param_groups for p in group["params"]}
        assert not trained & {id(p) for p in self.teacher.parameters()}
        seen.append("compared")

    monkeypatch.setattr(LoRi, "on_fit_start", remember)
    monkeypatch.setattr(LoRi, "on_train_end", compare)
    assert world.fit("LoRi", "run", **lori_args) == 0
    assert seen[-1] == "compared"
    assert not [key for key in checkpoint(world.folder / "run")["state_dict"] if key.startswith("teacher.")]


def test_gradient_norms_are_those_of_the_step_that_is_logged(world):
    norms = {}
    for every in ("1", "2"):
        logger = ["--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir"]
        flags = [*logger, str(world.folder / every), "--trainer.log_every_n_steps", every, "--test_after_fit", "false"]
        assert world.fit("ExplicitCoT", f"run{every}", *flags, backbone=BACKBONE) == 0
        (metrics,) = (world.folder / every).rglob("metrics.csv")
        rows = list(csv.DictReader(metrics.open()))
        norms[every] = {row["step"]: row[key] for row in rows if row[(key := "gradient_norm/backbone/decay")]}
    assert set(norms["2"]) == {"1", "3"}
    assert norms["2"].items() <= norms["1"].items()


def test_the_arguments_of_the_process_stay_for_further_processes(world, monkeypatch, recwarn):
    monkeypatch.setattr(sys, "argv", ["lori_pl", "preview", "--row", "1"])
    assert world.run("preview", method="ExplicitCoT", backbone=BACKBONE) == 0
    assert sys.argv == ["lori_pl", "preview", "--row", "1"]
    assert not [warning for warning in recwarn if "args parameter" in str(warning.message)]


@pytest.mark.parametrize(("lora", "warns"), [(None, True), ({"rank": 2}, False)])
def test_training_all_weights_in_half_precision_is_warned_of(world, caplog, lora, warns):
    backbone = BACKBONE | {"dtype": "bfloat16", "lora": lora}
    flags = ["--trainer.max_steps=1", "--test_after_fit=false"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=backbone) == 0
    assert ("bf16-mixed" in caplog.text) is warns
    caplog.clear()
    LatentReasoner.from_pretrained(world.folder / "run" / "student", dtype="bfloat16")
    assert "bf16-mixed" not in caplog.text


def test_the_saved_config_repeats_the_run(world, lori_args):
    # a null where the default is a number has to be written too
    assert world.fit("LoRi", "first", "--data.val_problems", "null", **lori_args) == 0
    saved = world.folder / "first" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["data"]["val_problems"] is None
    assert main(["fit", "--config", str(saved), "--trainer.default_root_dir", str(world.folder / "second")]) == 0
    assert_same(*(checkpoint(world.folder / name)["state_dict"] for name in ("first", "second")))


@pytest.mark.slow
def test_the_printed_config_repeats_the_run(world, lori_args, capsys):
    arguments = lori_args | {"backbone": {"lora": {"rank": 2, "targets": ["q_proj"]}}, "weights": {"mean": 0.1}}
    arguments["max_new_tokens"] = "${data.batch_size}"
    flags = ["--model.optimizer.class_path=torch.optim.AdamW", "--model.optimizer.init_args.lr=0.01"]
    flags += ["--seed_everything=3", "--data.val_problems=null", "--model.schedule.warmup=0.5"]
    assert world.fit("LoRi", "first", *flags, **arguments) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        world.run("fit", *flags, "--print_config", method="LoRi", **arguments)
    file = world.folder / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert main(["fit", "--config", str(file), "--trainer.default_root_dir", str(world.folder / "second")]) == 0
    assert_same(*(checkpoint(world.folder / name)["state_dict"] for name in ("first", "second")))


def test_eight_alone_accumulated_equal_a_batch_of_eight(world):
    flags = ["--trainer.max_steps", "2", "--data.bucket_by_length", "false", "--test_after_fit", "false"]
    flags += ["--trainer.val_check_interval", "1.0", "--trainer.gradient_clip_val", "null"]
    common = ["--trainer.limit_train_batches"]
    assert world.fit("ExplicitCoT", "batch", *flags, *common, "2", backbone=BACKBONE) == 0
    single = ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "8"]
    assert world.fit("ExplicitCoT", "single", *flags, *common, "16", *single, backbone=BACKBONE) == 0
    one, two = (checkpoint(world.folder / name)["state_dict"] for name in ("batch", "single"))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5)


def test_the_bar_counts_epochs_and_not_towards_none(world, capsys):
    flags = ["--trainer.enable_progress_bar=true", "--trainer.max_steps=2", "--test_after_fit=false"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    shown = capsys.readouterr().out
    assert "Epoch 0 " in shown
    assert "/-2" not in shown


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_first_process_tells_for_all(monkeypatch, name):
    log = logging.getLogger("lori_pl")
    monkeypatch.setattr(log, "level", log.level)
    for rank, tells in (("0", True), ("3", False)):
        monkeypatch.setenv(name, rank)
        log.setLevel(logging.NOTSET)
        assert main(["--help"]) == 0
        assert (log.level == logging.WARNING) != tells


@pytest.mark.parametrize(
    ("terms", "label"),
    [
        pytest.param({"alignment": None, "anchor": None}, "latent_only", marks=pytest.mark.slow),
        pytest.param({"alignment": None}, "anchor_only", marks=pytest.mark.slow),
        ({"anchor": None}, "rationale_only"),
        pytest.param({"weights": {"mean": 0.0, "covariance": 0.0}}, "anchor_only", marks=pytest.mark.slow),
        # the projection is measured, and weighs nothing
        ({"weights": {"mean": 0.0, "covariance": 0.0}, **LOW_RANK_ANCHOR}, "anchor_only"),
    ],
)
def test_by_terms_or_weights_alone_lori_is_its_ablations(world, lori_args, terms, label, monkeypatch):
    seen = []
    original = LoRi.losses

    def look(self, batch):
        total, parts = original(self, batch)
        seen.append(set(parts))
        return total, parts

    monkeypatch.setattr(LoRi, "losses", look)
    assert world.fit("LoRi", "run", "--trainer.max_steps", "2", **(lori_args | terms)) == 0
    assert set(json.loads((world.folder / "run" / "summary.json").read_text())["methods"]) == {label}
    own = {"latent_only": set(), "anchor_only": {"anchor"}, "rationale_only": {"mean", "covariance"}}
    assert seen[0] == {"task"} | own[label]


def test_learned_factors_and_another_architecture(world, lori_args, monkeypatch):
    arguments = lori_args | {"student_init": "base", "anchor": None}
    arguments["backbone"] = {
        "tokenizer": "synthetic",
        "config": {"model_type": "gpt2", "n_embd": 24, "n_layer": 3, "n_head": 2, "n_positions": 128},
    }
    flags = ["--model.alignment.student_factors", "learned", "--model.alignment.rank_hidden", "3"]
    before, after = (weights_after(hook, LoRi, monkeypatch) for hook in ("on_fit_start", "on_train_end"))
    assert world.fit("LoRi", "run", *flags, **arguments) == 0
    moved = {key for key, value in before[0].items() if "_factor" in key and not torch.equal(value, after[0][key])}
    assert any(".own.hidden_factor" in key for key in moved)
    assert not any(".target." in key for key in moved)


def test_a_later_file_or_flag_reaches_what_is_interpolated(world):
    more = {"model": {"init_args": {"max_new_tokens": "${data.batch_size}"}}}
    flags = ["--config", world.config("more", more), "--data.batch_size", "4"]
    assert world.fit("ExplicitCoT", "run", *flags, backbone=BACKBONE) == 0
    saved = yaml.safe_load((world.folder / "run" / "config.yaml").read_text())
    assert saved["model"]["init_args"]["max_new_tokens"] == 4


def test_checkpoints_hold_only_what_trains_under_lora(world, teacher):
    backbone = {"name": teacher, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}}
    assert world.fit("ExplicitCoT", "run", backbone=backbone) == 0
    keys = [key for key in checkpoint(world.folder / "run")["state_dict"] if key.startswith("reasoner.")]
    assert keys
    assert all("lora_" in key for key in keys)


def test_a_run_says_how_far_it_is_where_it_is_asked_to(world, monkeypatch):
    monkeypatch.setenv(PROGRESS, str(world.folder / "progress.txt"))
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    assert (world.folder / "progress.txt").read_text() == "4/4\n"


def test_a_trainer_may_have_a_single_callback(world):
    callback = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    flags = ["--config", world.config("callback", {"trainer": {"callbacks": callback}})]
    assert world.fit("ExplicitCoT", "run", *flags, "--test_after_fit=false", backbone=BACKBONE) == 0
    assert any("EarlyStopping" in name for name in checkpoint(world.folder / "run")["callbacks"])


def test_a_method_of_ones_own_keeps_what_it_trains_whatever_its_name(world):
    method = ExplicitCoT(Backbone(**BACKBONE))
    method.val_head = torch.nn.Linear(2, 2)
    method.configure_model()
    method.val_accuracy.persistent(True)
    assert any(key.startswith("val_accuracy") for key in torch.nn.Module.state_dict(method))
    assert {"val_head.weight", "val_head.bias"} <= set(method.state_dict())
    assert not [key for key in method.state_dict() if key.startswith(("val_accuracy", "val_loss"))]


def test_preview_shows_a_pair_lengths_and_counts(world, lori_args, capsys):
    assert world.run("preview", "--row", "2", method="LoRi", **lori_args) == 0
    shown = capsys.readouterr().out
    for part in ("ANCHOR", "z3", "train: 64 problems", "left out: nothing", "<bot>"):
        assert part in shown
    problem = Synthetic(**SOURCE["init_args"]).load("train").problems[2]
    tokens = synthetic_tokenizer().tokenize(" ".join(problem.steps))
    # the rationale in brackets, what is predicted behind the anchor in angles, for both sides
    flat = " ".join(shown.split())
    assert " ".join(f"[{token}]" for token in tokens) in flat
    assert len(re.findall(rf"ANCHOR:\S+ <{problem.answer}> <<eos>>", flat)) == 2
    bars = re.findall(r"\d+ to \d+ \S? ?(\d+) ", flat.split("train: 64 problems")[1].split("tokens on average")[0])
    assert sum(map(int, bars)) == 64


@pytest.mark.parametrize(
    ("every", "written"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (3, [2, 4]), (50, [4]), (0, [])], ids=str
)
@pytest.mark.parametrize("end", ["steps", "epochs"])
def test_what_the_logger_writes_is_known_before_the_step(every, written, end):
    """Of five steps, in the last epoch of two, of five batches each, or by their number."""
    found = []
    for step in range(5):
        place = {"global_step": step, "max_steps": 5, "max_epochs": -1, "current_epoch": 0, "is_last_batch": False}
        if end == "epochs":
            place |= {"max_steps": -1, "max_epochs": 2, "current_epoch": 1, "is_last_batch": step == 4}
        if is_written(SimpleNamespace(log_every_n_steps=every, **place)):
            found.append(step)
    assert found == written


def test_a_loss_without_a_weight_is_named(world, lori_args, capsys, monkeypatch):
    original = AnchorAlignment.forward
    monkeypatch.setattr(AnchorAlignment, "forward", lambda *args: {"anchors": original(*args)["anchor"]})
    assert world.fit("LoRi", "run", **lori_args) == 2
    assert "AnchorAlignment gives a loss 'anchors' that its weights do not name" in capsys.readouterr().err
