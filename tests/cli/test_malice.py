"""Files that would run code of theirs: none of it runs, and the refusal is one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import BACKBONE
from failing import fails
from safetensors.torch import load_file

from lori_pl.cli import main

pytestmark = pytest.mark.faults


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "the_code_ran"
    yield path
    assert not path.exists()


def test_the_bomb_goes_off_where_nothing_holds_it(tmp_path):
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "bomb")
    torch.load(tmp_path / "bomb", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", [pytest.param("a file", marks=pytest.mark.slow), "last", "test"])
def test_a_checkpoint(world, capsys, mark, way):
    assert world.fit("ExplicitCoT", "run", backbone=BACKBONE) == 0
    path = world.folder / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "callbacks": {"StopSignals": Bomb(mark)}}, path)
    if way == "last":
        (path.parent / "best.ckpt").unlink()
        fails(world, capsys, "no checkpoint in .* is sound", flags=["--ckpt_path", "last"], backbone=BACKBONE)
        return
    command = "test" if way == "test" else "fit"
    flags = ["--ckpt_path", str(path)]
    fails(world, capsys, "no readable checkpoint", command=command, flags=flags, backbone=BACKBONE)


def test_a_models_pickled_weights(world, capsys, mark, teacher):
    folder = world.folder / "model"
    shutil.copytree(teacher, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "lm_head.bias": Bomb(mark)}, folder / "pytorch_model.bin")
    fails(world, capsys, "backbone.name .*model", backbone={"name": str(folder)})


@pytest.mark.parametrize("kind", ["config", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_code_beside_a_model(world, capsys, mark, teacher, kind):
    folder = world.folder / "model"
    shutil.copytree(teacher, folder)
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Own: pass\n")
    name = "config.json" if kind == "config" else "tokenizer_config.json"
    settings = json.loads((folder / name).read_text())
    automatic = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    settings |= {"auto_map": automatic, "model_type": "own", "tokenizer_class": "Own"}
    (folder / name).write_text(json.dumps(settings))
    if kind == "config":
        fails(world, capsys, "trust_remote_code", backbone={"name": str(folder)})
        return
    # transformers may still know a tokenizer for what lies there: then it is its own, and no code of theirs
    world.fit("ExplicitCoT", "run", backbone={"name": str(folder)})


def test_a_sweep_and_a_config_are_plain_yaml(world, capsys, mark):
    path = world.folder / "config.yaml"
    path.write_text(f"seed_everything: !!python/object/apply:os.mkdir ['{mark}']\n")
    fails(world, capsys, "config", flags=["--config", str(path)], backbone=BACKBONE)
    path.write_text(f"seeds: !!python/object/apply:os.mkdir ['{mark}']\n")
    assert main(["sweep", str(path)]) == 2
    assert "is no YAML" in capsys.readouterr().err
