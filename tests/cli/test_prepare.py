"""`prepare`: what a run reads is fetched at its revision, read once, and copied to a node's own disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from failing import message
from tiny_world import BACKBONE, BASE

from lori_pl.cli import main
from lori_pl.commands import prepare
from lori_pl.data.sources import GSM8KAug, PublishedFile
from lori_pl.data.template import Template
from lori_pl.files import lock_folder
from lori_pl.methods import SIMCoT
from lori_pl.models.backbone import Backbone


def run(world, *flags, method="LoRi", **init_args) -> int:
    base = world.config("base", BASE)
    return main(["prepare", "--config", base, "--config", world.method(method, **init_args), *flags])


def test_what_is_here_is_read_once(world, lori_args, caplog):
    with caplog.at_level("INFO"):
        assert run(world, **lori_args) == 0
    assert f"teacher: {lori_args['teacher']['name']} (here)" in caplog.text
    assert "train: 64 problems" in caplog.text
    assert "validation: 16 problems" in caplog.text
    assert "test: 16 problems" in caplog.text


def test_a_hubs_model_is_fetched_at_its_revision(world, teacher, monkeypatch, caplog, capsys):
    asked = []

    def download(name, **keywords):
        asked.append((name, keywords))
        return teacher

    monkeypatch.setattr(prepare, "snapshot_download", download)
    named = {"name": "owner/model", "revision": "0123abc", "tokenizer": "synthetic"}
    with caplog.at_level("INFO"):
        assert run(world, method="ExplicitCoT", backbone=named) == 0
    assert asked == [("owner/model", {"revision": "0123abc", "allow_patterns": prepare.PATTERNS})]
    assert "not pinned" not in caplog.text
    with caplog.at_level("INFO"):
        assert run(world, method="ExplicitCoT", backbone={**named, "revision": "main"}) == 0
    assert f"its revision is not pinned; for results, set it to {Path(teacher).name}" in caplog.text
    # neither pickles nor code are asked for
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in prepare.PATTERNS)
    empty = world.folder / "empty"
    empty.mkdir()
    monkeypatch.setattr(prepare, "snapshot_download", lambda *_, **__: str(empty))
    assert run(world, method="ExplicitCoT", backbone=named) == 2
    assert "has no safetensors file" in message(capsys)


def test_what_cannot_be_fetched(world, capsys):
    named = {"name": "owner/model", "tokenizer": "synthetic"}
    assert run(world, method="ExplicitCoT", backbone=named) == 2
    text = message(capsys)
    assert "model.backbone 'owner/model' at revision main is neither a folder nor can it be fetched" in text
    assert run(world, method="ExplicitCoT", backbone={**named, "name": "nowhere/model.gguf"}) == 2
    assert "no such file" in message(capsys)


def test_a_decoder_of_its_own_is_fetched_too():
    named = {field: Backbone(name=f"owner/{field}", tokenizer="synthetic") for field in ("backbone", "decoder")}
    assert dict(prepare.backbones(SIMCoT(**named, template=Template(), latents=2))) == named


def test_published_data_that_is_not_here_is_fetched_once(world, monkeypatch, tmp_path_factory):
    origin = tmp_path_factory.mktemp("origin")
    files = {}
    for split, name in (("train", "train.txt"), ("validation", "valid.txt"), ("test", "test.txt")):
        (origin / name).write_text("".join(f"{i} + 1?||<<{i}+1={i + 1}>> #### {i + 1}\n" for i in range(20)))
        files[split] = PublishedFile(name, (origin / name).as_uri())
    monkeypatch.setattr(GSM8KAug, "published", files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    place = world.folder / "data" / "gsm8k_aug"
    source = {"class_path": "lori_pl.data.sources.GSM8KAug", "init_args": {"path": str(place)}}
    flags = ["--config", world.config("published", {"data": {"source": source}})]
    assert run(world, *flags, method="ExplicitCoT", backbone=BACKBONE) == 0
    assert {file.name: file.read_bytes() for file in place.iterdir()} == {
        file.name: file.read_bytes() for file in origin.iterdir()
    }
    # what is here stays, and is not asked for
    shutil.rmtree(origin)
    assert run(world, *flags, method="ExplicitCoT", backbone=BACKBONE) == 0


def test_bad_data_is_found_before_a_job_starts(world, capsys):
    source = {"class_path": "lori_pl.data.sources.JSONL", "init_args": {"path": str(world.folder / "none.jsonl")}}
    flags = ["--config", world.config("bad", {"data": {"source": source}})]
    assert run(world, *flags, method="ExplicitCoT", backbone=BACKBONE) == 2
    assert "none.jsonl" in message(capsys)


@pytest.mark.slow
def test_a_run_trains_from_the_copy(world, lori_args, caplog):
    """And a second preparation copies nothing, but what has changed."""
    original = world.folder / "slow" / "teacher"
    shutil.copytree(lori_args["teacher"]["name"], original)
    arguments = {**lori_args, "teacher": {"name": str(original)}}
    node = world.folder / "node"
    assert run(world, "--copy_to", str(node), **arguments) == 0
    overlay = yaml.safe_load((node / "local.yaml").read_text())
    copied = Path(overlay["model"]["init_args"]["teacher"]["name"])
    assert copied == node / "teacher" / "teacher"
    with caplog.at_level("INFO"):
        assert run(world, "--copy_to", str(node), **arguments) == 0
    assert f"{copied} is there already" in caplog.text
    weights = next(original.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes())  # of the same size, as one that was trained anew
    assert run(world, "--copy_to", str(node), **arguments) == 0
    assert (copied / weights.name).stat().st_mtime_ns == weights.stat().st_mtime_ns
    (original / "extra.txt").write_text("new")
    assert run(world, "--copy_to", str(node), **arguments) == 0
    assert (copied / "extra.txt").read_text() == "new"
    shutil.rmtree(original)
    assert world.fit("LoRi", "run", "--config", str(node / "local.yaml"), **arguments) == 0


@pytest.mark.slow
def test_a_cache_is_copied_too(world, lori_args):
    cache = world.folder / "cache"
    base, method = world.config("base", BASE), world.method("LoRi", **lori_args)
    assert main(["cache", "--config", base, "--config", method, "--folder", str(cache)]) == 0
    arguments = {**lori_args, "cache": str(cache)}
    node = world.folder / "node"
    assert run(world, "--copy_to", str(node), **arguments) == 0
    shutil.rmtree(cache)
    assert world.fit("LoRi", "run", "--config", str(node / "local.yaml"), **arguments) == 0


def test_links_of_a_hubs_cache_are_followed(tmp_path):
    blob, snapshot = tmp_path / "blobs" / "x", tmp_path / "snapshots" / "abc"
    blob.parent.mkdir()
    snapshot.mkdir(parents=True)
    blob.write_bytes(b"weights")
    os.symlink(blob, snapshot / "model.safetensors")
    copied = prepare.mirror(snapshot, tmp_path / "node" / "abc")
    assert not (copied / "model.safetensors").is_symlink()
    assert (copied / "model.safetensors").read_bytes() == b"weights"
    assert prepare.size_of(copied) == 7


def test_a_folder_that_another_process_fills_or_that_cannot_be_written(world, lori_args, capsys, monkeypatch):
    node = world.folder / "node"
    with lock_folder(node, "test"):
        assert run(world, "--copy_to", str(node), **lori_args) == 2
    assert "another process copies here" in message(capsys)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.shutil, "copytree", full)
    assert run(world, "--copy_to", str(node), **lori_args) == 2
    assert "cannot be written ([Errno 28] No space left" in message(capsys)
    assert not (node / "local.yaml").exists()
    assert not (node / "teacher" / "student").exists()


@pytest.mark.parametrize("flags", [["--copy_to"]])
def test_an_option_without_its_value(world, capsys, flags):
    assert run(world, *flags, method="ExplicitCoT", backbone=BACKBONE) == 2
    assert "expected one argument" in message(capsys)
