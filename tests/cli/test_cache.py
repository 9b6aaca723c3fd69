"""`cache`, and training from what it has built."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from failing import message
from safetensors.torch import load_file
from test_stop_signals import tell
from tiny_world import BACKBONE, BASE, checkpoint

import lori_pl.cache.measuring as measuring
import lori_pl.cache.shards as shards
from lori_pl.cache.store import TeacherCache
from lori_pl.cli import main
from lori_pl.methods import LoRi
from lori_pl.models.teacher import FrozenTeacher

OTHER = {**BACKBONE, "config": {**BACKBONE["config"], "hidden_size": 24, "num_hidden_layers": 3}}
LEARNED = {
    "backbone": OTHER,
    "student_init": "base",
    "alignment": {
        "class_path": "lori_pl.alignment.LowRankAlignment",
        "init_args": {"rank_hidden": 4, "student_factors": "learned"},
    },
    "anchor": {"class_path": "lori_pl.alignment.AnchorAlignment", "init_args": {"anchor_space": "low_rank"}},
}
STEPWISE = {"class_path": "lori_pl.alignment.StepwiseAlignment", "init_args": {"positions": 4}}
STEPS = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "10", "--test_after_fit", "false"]


def build(world, arguments, *flags, folder="cache", dtype="float32") -> int:
    """Of the 64 problems, four shards."""
    where = ["--folder", str(world.folder / folder), "--dtype", dtype, "--shard_problems", "18"]
    return world.run("cache", *where, *flags, method="LoRi", **arguments)


def cached(world, arguments, folder="cache"):
    return arguments | {"cache": str(world.folder / folder)}


def files(world, folder="cache"):
    return sorted(path.name for path in (world.folder / folder).glob("shard-*"))


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


def test_an_interrupted_build_goes_on_where_it_was(world, lori_args, monkeypatch, capsys):
    assert build(world, lori_args, folder="whole") == 0
    written = []
    original = shards.write_file

    def fail_at_the_second(path, content):
        if path.name.startswith("shard-00001") and len(written) < 10:
            written.extend([path.name] * 10)
            raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(shards, "write_file", fail_at_the_second)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        build(world, lori_args)
    assert not (world.folder / "cache" / "manifest.json").exists()
    (first,) = files(world)
    stamp = (world.folder / "cache" / first).stat().st_mtime_ns
    assert world.fit("LoRi", "early", **cached(world, lori_args)) == 2
    assert "not finished: start `cache` again" in message(capsys)
    assert build(world, lori_args) == 0
    assert files(world) == files(world, "whole")  # their names hold their checksums
    assert (world.folder / "cache" / first).stat().st_mtime_ns == stamp
    assert "measuring" not in capsys.readouterr().err
    assert build(world, lori_args) == 0
    assert "finished already" in capsys.readouterr().out
    assert build(world, lori_args, "--shard_problems", "20") == 2
    assert "holds a cache with shard_problems 18, and this one would have 20" in message(capsys)
    where = ["--folder", str(world.folder / "cache"), "--dtype", "float32"]
    assert world.run("cache", *where, method="LoRi", **lori_args) == 0
    assert world.run("cache", *where, "--shard_problems", "0", method="LoRi", **lori_args) == 2
    assert "--shard_problems is 0" in message(capsys)


SHARE = {"class_path": "lori_pl.alignment.LowRankAlignment", "init_args": {"rank_hidden": 0.9}}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"anchor": LEARNED["anchor"], "alignment": SHARE}], ids=["default", "share"])
def test_an_interrupted_measuring_goes_on_where_it_was(world, lori_args, monkeypatch, capsys, changes):
    arguments, batches = lori_args | changes | {"statistics_problems": 64}, "--data.eval_batch_size=8"
    assert build(world, arguments, batches, folder="whole") == 0
    monkeypatch.setattr(measuring, "SAVE_EVERY", 0.0)
    original, seen, folder = measuring.MeasureTeacher.predict_step, [], world.folder / "cache"

    def step(self, batch, batch_idx, dataloader_idx=0):
        found = original(self, batch, batch_idx, dataloader_idx)
        seen.append(self.sweep)
        if len(seen) in (3, 12, 21):  # in the midst of each sweep of 8 batches
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(measuring.MeasureTeacher, "predict_step", step)
    for _ in range(3):
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            build(world, arguments, batches)
        assert len(list(folder.glob("*sweep*"))) == 1
        assert not list(folder.glob("terms-*"))
    assert build(world, arguments, batches) == 0
    assert seen == [0] * 8 + [1] * 8 + [2] * 8
    assert not list(folder.glob("*sweep*"))
    assert files(world) == files(world, "whole")  # their names hold their checksums


def test_processes_go_on_from_the_last_sweep_that_all_of_them_have_kept(tmp_path):
    def measured(process):
        module = measuring.MeasureTeacher(None, {}, EncodedRows(), 4, 0, rows=np.arange(9), folder=tmp_path)
        module._trainer = SimpleNamespace(world_size=2, global_rank=process, strategy=SimpleNamespace(barrier=list))
        return module

    def keep(process, sweep, rows):
        module = measured(process)
        module.sweep, module.done = sweep, rows
        module.save()

    def found(process):
        module = measured(process)
        module._look_back()
        return module._first, module.done

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(measuring.MeasureTeacher, "sweeps", 3)
        assert found(0) == (0, 0)
        keep(0, 0, 3)
        assert found(0) == found(1) == (0, 0)
        keep(1, 0, 2)
        keep(0, 0, 4)
        keep(0, 1, 0)
        assert (found(0), found(1)) == ((0, 4), (0, 2))
        keep(1, 1, 1)
        assert (found(0), found(1)) == ((1, 0), (1, 1))
        (path,) = tmp_path.glob("sums*-sweep1-process1of2-*")
        path.write_bytes(path.read_bytes()[:-1])
        assert (found(0), found(1)) == ((0, 4), (0, 2))
        measuring.drop_sums(tmp_path)
        assert not list(tmp_path.iterdir())


class EncodedRows:
    """Nine rows of one token."""

    def lengths(self):
        return np.ones(9)


def test_a_full_disk_leaves_nothing_half_written(world, lori_args, monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device")

    assert build(world, lori_args, "--data.train_problems", "40", folder="other") == 0
    monkeypatch.setattr(shards.os, "fsync", full)
    assert build(world, lori_args) == 2
    assert "no space left" in message(capsys)
    assert [path.name for path in (world.folder / "cache").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert build(world, lori_args) == 0


def test_a_flipped_byte_is_found_and_mended(world, lori_args, capsys):
    assert build(world, lori_args) == 0
    names = files(world)
    folder = world.folder / "cache"
    content = bytearray((folder / names[1]).read_bytes())
    content[-5] ^= 1
    (folder / names[1]).write_bytes(content)
    assert world.fit("LoRi", "flipped", **cached(world, lori_args)) == 2
    assert f"{names[1]} was altered or cut off" in message(capsys)
    assert build(world, lori_args) == 0
    assert files(world) == names
    assert world.fit("LoRi", "mended", **cached(world, lori_args)) == 0


@pytest.mark.slow
def test_a_cut_and_a_missing_file_are_found_and_mended(world, lori_args, capsys):
    assert build(world, lori_args) == 0
    names = files(world)
    folder = world.folder / "cache"
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:-9])
    assert world.fit("LoRi", "cut", **cached(world, lori_args)) == 2
    assert f"{names[2]} was altered or cut off" in message(capsys)
    (folder / names[2]).unlink()
    assert world.fit("LoRi", "gone", **cached(world, lori_args)) == 2
    assert f"{names[2]} is missing" in message(capsys)
    assert build(world, lori_args) == 0
    assert files(world) == names
    assert world.fit("LoRi", "mended", **cached(world, lori_args)) == 0
    (folder / "manifest.json").write_text("{")
    assert world.fit("LoRi", "damaged", **cached(world, lori_args)) == 2
    assert "manifest.json is damaged" in message(capsys)
    assert build(world, lori_args) == 0
    assert files(world) == names
    assert world.fit("LoRi", "mended again", **cached(world, lori_args)) == 0
    (folder / "manifest.json").unlink()
    assert world.fit("LoRi", "missing", **cached(world, lori_args)) == 2
    assert "no manifest.json" in message(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_factors_that_were_altered_are_measured_anew(world, lori_args, caplog, finished):
    """And the shards, which were packed with what had been measured, are kept where it comes out the same."""
    assert build(world, lori_args) == 0
    folder = world.folder / "cache"
    (terms,) = folder.glob("terms-*")
    whole = terms.read_bytes()
    terms.write_bytes(whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:])
    if finished:
        assert world.fit("LoRi", "altered", **cached(world, lori_args)) == 2
    else:
        (folder / "manifest.json").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    (folder / ".shard-00009.safetensors.1.part").write_text("left by one that was killed")
    assert build(world, lori_args) == 0
    assert "was altered or cut off" in caplog.text
    assert terms.read_bytes() == whole
    assert {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == stamps
    assert list(folder.glob(".*.part")) == []
    assert world.fit("LoRi", "run", **cached(world, lori_args)) == 0


@pytest.mark.parametrize(
    ("changes", "flags", "field"),
    [
        ({"alignment": {"class_path": "lori_pl.alignment.LowRankAlignment", "init_args": {"rank_hidden": 3}}}, [],
         r"terms.LowRankAlignment.rank_hidden 4, and this run has 3"),
        ({}, ["--data.template.answer_prompt", "="], "data.template.answer_prompt ####, and this run has ="),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ({"layers": {"layers": [1, 2], "final_norm": False}}, [], "teacher.selection.layers all"),
                ({"statistics_problems": 8}, [], "statistics.problems 16, and this run has 8"),
                ({}, ["--data.rationale_tokens", "step_results"], "rationale_tokens all, and this run has step_"),
                ({}, ["--trainer.precision", "bf16-mixed"], "teacher.precision 32-true, and this run has bf16-mixed"),
            )
        ),
    ],
)  # fmt: skip
def test_a_cache_of_something_else_is_refused_with_both_values(world, lori_args, capsys, changes, flags, field):
    assert build(world, lori_args) == 0
    assert world.fit("LoRi", "run", *flags, **cached(world, lori_args | changes)) == 2
    assert field in message(capsys)
    assert build(world, lori_args | changes, *flags) == 2
    # of another text the teacher itself is none
    text = "was trained with another data.template (answer_prompt)"
    assert (text if "template" in field else field.partition(",")[0]) in message(capsys)


@pytest.mark.slow
def test_a_cache_of_another_teacher_is_refused(world, lori_args, capsys):
    assert build(world, lori_args) == 0
    assert world.fit("ExplicitCoT", "two", "--seed_everything=5", backbone=BACKBONE) == 0
    other = lori_args | {"teacher": {"name": str(world.folder / "two" / "student")}}
    assert world.fit("LoRi", "run", **cached(world, other)) == 2
    assert "teacher.weights" in message(capsys)


@pytest.mark.slow
def test_another_order_or_a_subset_works_and_what_is_not_cached_is_named(world, lori_args, capsys):
    flags = ["--data.train_problems", "40"]
    assert build(world, lori_args, *flags) == 0
    assert world.fit("LoRi", "part", "--data.train_problems", "24", **cached(world, lori_args)) == 0
    assert world.fit("LoRi", "whole", **cached(world, lori_args)) == 2
    assert "lacks problem synthetic/train/0/40 (24 of 64" in message(capsys)
    assert build(world, lori_args, "--data.train_problems", "41") == 2
    assert "holds a cache with rows" in message(capsys)


@pytest.mark.slow
def test_what_has_nothing_to_cache_says_so(world, lori_args, capsys):
    assert world.run("cache", "--folder", str(world.folder / "c"), method="NoCoT", backbone=BACKBONE) == 2
    assert "NoCoT has no term that needs a teacher" in message(capsys)
    bare = lori_args | {"alignment": None, "anchor": None}
    assert build(world, bare) == 2
    assert "LoRi has no term that needs a teacher" in message(capsys)
    assert world.fit("LoRi", "run", **cached(world, bare)) == 2
    assert "no term that weighs something needs a teacher" in message(capsys)
    assert world.fit("NoCoT", "run", "--model.cache", "c", backbone=BACKBONE) == 2
    assert "cache" in message(capsys)
    assert world.run("cache", method="LoRi", **lori_args) == 2
    assert "give --folder, or model.cache" in message(capsys)
    only = lori_args | {"anchor": None}
    assert build(world, only) == 0
    assert world.fit("LoRi", "run", **cached(world, lori_args)) == 2
    assert "holds nothing for AnchorAlignment, only for LowRankAlignment" in message(capsys)


def test_where_it_cannot_be_built(world, lori_args, capsys):
    (world.folder / "file").write_text("")
    assert build(world, lori_args, folder="file/cache") == 2
    assert "cannot be written" in message(capsys)
    (world.folder / "full").mkdir()
    (world.folder / "full" / "thesis.tex").write_text("")
    assert build(world, lori_args, folder="full") == 2
    assert "is not empty and holds no cache" in message(capsys)
    (world.folder / "busy").mkdir()
    descriptor = os.open(world.folder / "busy" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert build(world, lori_args, folder="busy") == 2
    finally:
        os.close(descriptor)
    assert "another process builds a cache here" in message(capsys)


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
