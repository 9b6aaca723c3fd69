"""Lightning's profilers see the parts of a step by name, and without one nothing is entered."""

from __future__ import annotations

import pytest
import torch
from tiny_world import BACKBONE

from lori_pl.callbacks.regions import ProfiledRegions
from lori_pl.regions import region

LORI = {"question", "latents", "answer", "teacher", "alignment", "optimiser"}


def report(world, method, *flags, **arguments) -> dict[str, int]:
    """Regions and how often each was entered."""
    folder = world.folder / "profile"
    profiler = ["--trainer.profiler.class_path", "lightning.pytorch.profilers.SimpleProfiler"]
    profiler += ["--trainer.profiler.init_args.dirpath", str(folder), "--trainer.profiler.init_args.filename", "times"]
    assert world.fit(method, "run", *profiler, "--test_after_fit", "false", *flags, **arguments) == 0
    rows = [line.split("|") for line in (folder / "fit-times.txt").read_text().splitlines() if "lori_pl/" in line]
    return {row[1].strip().removeprefix("lori_pl/"): int(row[3]) for row in rows}


def test_the_regions_of_a_lori_step(world, lori_args):
    seen = report(world, "LoRi", "--trainer.max_steps", "3", **lori_args)
    assert seen.keys() == LORI
    # the answer's pass, and its head
    assert {name: count for name, count in seen.items() if name != "answer"} == dict.fromkeys(LORI - {"answer"}, 3)
    assert seen["answer"] == 6


def test_the_regions_of_explicit_cot(world):
    assert report(world, "ExplicitCoT", "--trainer.max_steps", "2", backbone=BACKBONE) == {"words": 2, "optimiser": 2}


def test_a_profiler_by_name_prints_its_report(world, lori_args, caplog):
    assert world.fit("LoRi", "run", "--trainer.profiler", "simple", "--test_after_fit", "false", **lori_args) == 0
    assert "lori_pl/latents" in caplog.text


@pytest.mark.slow
def test_torchs_profiler_has_them_too(world, lori_args, caplog):
    flags = ["--trainer.profiler", "pytorch", "--trainer.max_steps", "6", "--test_after_fit", "false"]
    assert world.fit("LoRi", "run", *flags, **lori_args) == 0
    assert "lori_pl/latents" in caplog.text


@pytest.mark.slow
def test_the_advanced_profiler_sees_whole_hooks_alone(world, lori_args, caplog):
    assert world.fit("LoRi", "run", "--trainer.profiler", "advanced", "--test_after_fit", "false", **lori_args) == 0
    assert "read_pair" in caplog.text
    assert "lori_pl/" not in caplog.text.replace("/lori_pl/", "")


def test_without_a_profiler_nothing_is_entered():
    assert region("question").profiled == []


def test_a_step_that_fails_leaves_its_regions():
    class Trainer:
        class profiler:
            profile = staticmethod(torch.profiler.record_function)

    callback = ProfiledRegions()
    callback.on_train_batch_start(Trainer, None, None, 0)
    (entered,) = region("question").profiled
    assert isinstance(entered, torch.profiler.record_function)
    callback.on_exception(Trainer, None, RuntimeError())
    assert region("question").profiled == []


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level("INFO")
