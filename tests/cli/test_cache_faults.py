"""Builds that are interrupted, files that are damaged, and caches of something else."""

from __future__ import annotations

import fcntl
import os
from types import SimpleNamespace

import numpy as np
import pytest
from caching import LEARNED, build, cached, files
from failing import message
from tiny_world import BACKBONE

import lori_pl.cache.measuring as measuring
import lori_pl.cache.shards as shards


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
