"""`cache`, and training from what it has built."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from caching import LEARNED, build, cached, files
from failing import message
from safetensors.torch import load_file
from test_stop_signals import tell
from tiny_world import BASE, checkpoint

from lori_pl.cache.store import TeacherCache
from lori_pl.cli import main
from lori_pl.methods import LoRi
from lori_pl.models.teacher import FrozenTeacher

STEPWISE = {"class_path": "lori_pl.alignment.StepwiseAlignment", "init_args": {"positions": 4}}
STEPS = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "10", "--test_after_fit", "false"]


def record_losses(monkeypatch):
    seen: list[dict[str, float]] = []
    original = LoRi.training_step

    def step(self, batch, batch_idx):
        result = original(self, batch, batch_idx)
        seen.append({name: value.item() for name, value in result["parts"].items()})
        return result

    monkeypatch.setattr(LoRi, "training_step", step)
    return seen


@pytest.mark.slow
def test_the_covariance_floor_is_logged_from_the_cache(world, lori_args):
    assert build(world, lori_args) == 0
    flags = ["--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir"]
    assert world.fit("LoRi", "run", *flags, str(world.folder / "csv"), **cached(world, lori_args)) == 0
    (metrics,) = (world.folder / "csv").rglob("metrics.csv")
    assert "alignment/covariance_floor" in metrics.read_text().splitlines()[0].split(",")


@pytest.mark.slow
def test_a_validation_that_is_done_again_logs_what_the_first_would_have(world, lori_args, monkeypatch):
    """A cache has nothing of validation problems: the diagnostics are of the training batch before the signal."""
    assert build(world, lori_args) == 0
    flags = ["--trainer.max_steps=2", "--test_after_fit=false", "--trainer.logger=lightning.pytorch.loggers.CSVLogger"]
    arguments = cached(world, lori_args)

    def run(root, log, *more):
        return world.fit("LoRi", root, *flags, f"--trainer.logger.save_dir={world.folder / log}", *more, **arguments)

    assert run("whole", "whole_log") == 0
    with monkeypatch.context() as patch:
        tell(patch, "validation_step", 1, kind=LoRi)
        assert run("parts", "broken_off") == 143
    assert run("parts", "again", "--ckpt_path=last") == 0
    whole, again = (logged(world.folder / name) for name in ("whole_log", "again"))
    names = {name for name in whole if name.startswith(("alignment/", "val/"))}
    assert {"alignment/covariance_floor", "alignment/student_energy_share", "val/loss"} <= names
    for name in names:
        assert again[name] == whole[name] != "", name
    assert not any(name.startswith("alignment/") for name in logged(world.folder / "broken_off"))


def logged(folder) -> dict[str, str]:
    """The last value of everything that a run wrote."""
    (metrics,) = folder.rglob("metrics.csv")
    with metrics.open() as file:
        return {name: value for row in csv.DictReader(file) for name, value in row.items() if value}


@pytest.mark.parametrize("kind", [pytest.param("shared", marks=pytest.mark.slow), "learned"])
def test_from_the_cache_training_is_the_same_and_never_loads_the_teacher(world, lori_args, kind, monkeypatch):
    arguments = lori_args | (LEARNED | {"terms": [STEPWISE]} if kind == "learned" else {})
    names = {"loss", "task", "mean", "covariance", "anchor"} | ({"stepwise"} if kind == "learned" else set())
    losses = record_losses(monkeypatch)
    assert world.fit("LoRi", "live", *STEPS, **arguments) == 0
    assert build(world, arguments) == 0
    assert len(files(world)) == 4

    def refuse(*_):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(FrozenTeacher, "__init__", refuse)
    assert world.fit("LoRi", "cached", *STEPS, **cached(world, arguments)) == 0
    live, from_cache = losses[:20], losses[20:]
    assert len(from_cache) == 20
    for one, other in zip(live, from_cache, strict=True):
        assert one.keys() == other.keys() == names
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert [one["loss"] for one in live[:1]] == pytest.approx([from_cache[0]["loss"]], rel=1e-6)
    whole, parts = checkpoint(world.folder / "live"), checkpoint(world.folder / "cached")
    for key, value in whole["state_dict"].items():
        assert torch.allclose(value, parts["state_dict"][key], rtol=1e-4, atol=1e-5), key


@pytest.mark.slow
def test_from_the_cache_under_autocast_training_is_close(world, lori_args, monkeypatch):
    """To rounding in bfloat16: the teacher's batches were others."""
    losses, precision = record_losses(monkeypatch), "--trainer.precision=bf16-mixed"
    assert world.fit("LoRi", "live", "--trainer.max_steps=4", precision, **lori_args) == 0
    assert build(world, lori_args, precision) == 0
    assert world.fit("LoRi", "cached", "--trainer.max_steps=4", precision, **cached(world, lori_args)) == 0
    live, from_cache = losses[:4], losses[4:]
    for one, other in zip(live, from_cache, strict=True):
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=0.03), name


@pytest.mark.slow
def test_workers_collate_what_the_process_itself_would(world, lori_args, monkeypatch):
    losses, workers = record_losses(monkeypatch), "--data.num_workers=2"
    assert build(world, lori_args) == 0
    assert build(world, lori_args, workers, folder="by_workers") == 0
    assert files(world) == files(world, "by_workers")
    for root, flags in (("alone", []), ("workers", [workers])):
        assert world.fit("LoRi", root, "--trainer.max_steps=4", *flags, **cached(world, lori_args)) == 0
    assert losses[:4] == losses[4:]


@pytest.mark.slow
def test_half_precision_is_stored_and_close(world, lori_args, monkeypatch):
    losses = record_losses(monkeypatch)
    for dtype in ("float32", "float16", "bfloat16"):
        assert build(world, lori_args, folder=dtype, dtype=dtype) == 0
        assert world.fit("LoRi", f"run_{dtype}", "--trainer.max_steps=2", **cached(world, lori_args, dtype)) == 0
    exact, half, rough = losses[0], losses[2], losses[4]
    assert half["loss"] == pytest.approx(exact["loss"], rel=1e-3)
    assert rough["loss"] == pytest.approx(exact["loss"], rel=1e-2)
    assert half["anchor"] != exact["anchor"]
    sizes = {
        dtype: json.loads((world.folder / dtype / "manifest.json").read_text()) for dtype in ("float32", "float16")
    }
    each = {dtype: manifest["made"]["bytes_a_problem"] - 16 for dtype, manifest in sizes.items()}
    # two layers of 4 means and 10 covariances, a weight, two anchors of 32
    assert each == {"float32": 4 * (2 * 14 + 1 + 64), "float16": 2 * (2 * 14 + 1 + 64)}


def test_terms_that_a_process_does_not_see_are_an_error(world, lori_args, capsys, monkeypatch):
    """As on a network file system that is behind."""
    monkeypatch.setattr("lori_pl.commands.cache.state_file", lambda folder: None)
    assert build(world, lori_args) == 2
    assert "does not see the measured terms that the first one wrote" in message(capsys)


def test_an_overflow_names_the_problem(world, lori_args, capsys, monkeypatch):
    original = FrozenTeacher.forward

    def explode(self, batch):
        trajectory, anchor = original(self, batch)
        return trajectory, anchor.index_fill(0, torch.tensor([0]), 1e9)

    assert build(world, lori_args, folder="fine") == 0
    (world.folder / "cache").mkdir()
    (terms,) = (path.name for path in (world.folder / "fine").glob("terms-*"))
    for name in ("plan.json", terms):
        (world.folder / "cache" / name).write_bytes((world.folder / "fine" / name).read_bytes())
    plan = json.loads((world.folder / "cache" / "plan.json").read_text())
    (world.folder / "cache" / "plan.json").write_text(json.dumps(plan | {"dtype": "float16"}))
    monkeypatch.setattr(FrozenTeacher, "forward", explode)
    assert build(world, lori_args, dtype="float16") == 2
    assert "AnchorAlignment/anchor reaches" in (text := message(capsys))
    assert "problem synthetic/train/0/" in text
    assert "use --dtype bfloat16 or float32" in text


@pytest.mark.slow
def test_the_run_resumes_from_the_cache_and_a_config_of_both_serves(world, lori_args, capsys):
    arguments = cached(world, lori_args)
    assert world.run("cache", method="LoRi", **arguments) == 0  # where model.cache says
    assert world.fit("LoRi", "run", **arguments) == 0
    assert world.fit("LoRi", "run", "--ckpt_path", "last", "--trainer.max_steps", "6", **arguments) == 0
    config = yaml.safe_load((world.folder / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["cache"] == str(world.folder / "cache")
    assert "reader" not in config["data"]
    run = ["--config", str(world.folder / "run" / "config.yaml"), "--trainer.default_root_dir"]
    assert main(["fit", *run, str(world.folder / "again")]) == 0


def test_without_a_teacher_at_all(world, lori_args, capsys):
    arguments = lori_args | LEARNED
    assert build(world, arguments) == 0
    assert world.fit("LoRi", "run", **cached(world, arguments | {"teacher": None})) == 0


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_processes_build_what_one_does(world, lori_args, strategy):
    """Of batches that are not as many in each."""
    batches = "--data.eval_batch_size=8"
    assert build(world, lori_args, batches, folder="one") == 0
    arguments = ["cache", "--config", world.config("base", BASE), "--config", world.method("LoRi", **lori_args)]
    arguments += [f"--trainer.strategy={strategy}", "--trainer.devices=2", f"--folder={world.folder / 'two'}"]
    arguments += ["--dtype=float32", "--shard_problems=18", batches]
    done = subprocess.run([sys.executable, "-m", "lori_pl", *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "cache: " in done.stdout
    one, two = (TeacherCache(world.folder / name) for name in ("one", "two"))
    two.verify()
    assert two.manifest.made["processes"] == 2
    assert one.manifest.rows == two.manifest.rows
    places = np.arange(64)
    pairs = [(cache.read(places), load_file(cache.folder / cache.manifest.state.file)) for cache in (one, two)]
    # the factors too: their columns' signs are set, and no two of these spectra's values are near each other
    for found, wanted in zip(pairs[1], pairs[0], strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            most = 1e-5 * float(value.float().abs().max())
            torch.testing.assert_close(found[name], value, rtol=0, atol=most, msg=lambda text, n=name: f"{n}: {text}")
