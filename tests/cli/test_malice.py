"""Files that would run code of theirs: none of it runs, and the refusal is one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from failing import fails
from safetensors.torch import load_file
from tiny_world import BACKBONE

from lori_pl import LatentReasoner
from lori_pl.cache.shards import map_shard
from lori_pl.cli import main
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.models.backbone import Backbone, LoRA, load_causal_lm, prepare_training
from lori_pl.models.thought import ThoughtSettings

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


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_a_shard_of_a_cache(tmp_path, mark, write):
    path = tmp_path / "shard-00000-0f.safetensors"
    write(Bomb(mark), path)
    with pytest.raises(LoriError, match="no whole shard"):
        map_shard(path)


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_a_file_of_data(world, capsys, mark, write):
    write(Bomb(mark), world.folder / "train.jsonl")
    source = {"class_path": "lori_pl.data.sources.JSONL", "init_args": {"path": str(world.folder)}}
    flags = ["--config", world.config("d", {"data": {"source": source}})]
    fails(world, capsys, r"train\.jsonl", "UTF-8", flags=flags, backbone=BACKBONE)


def test_rows_and_names_that_would_steer_the_terminal(world, capsys):
    row = {"question": "Ann\x1b[31m has 4 .", "rationale": ["<<4+3=7>>"], "answer": "7"}
    for name in ("train", "validation", "test"):
        (world.folder / f"{name}.jsonl").write_text("\n".join([json.dumps(row)] * 20))
    for name, status in ((".", 0), ("\x1b[2Jseven", 2)):
        source = {"class_path": "lori_pl.data.sources.JSONL", "init_args": {"path": str(world.folder / name)}}
        flags = ["--config", world.config("d", {"data": {"source": source}})]
        assert world.run("preview", *flags, method="ExplicitCoT", backbone=BACKBONE) == status
        shown = "".join(capsys.readouterr())
        assert ("[31m has 4" if status == 0 else "[2Jseven") in shown
        assert "\x1b" not in shown


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


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_models_config_cannot_ask_for_code_from_the_hub(teacher, tmp_path, key):
    """transformers would fetch and run it, where its package `kernels` is installed."""
    shutil.copytree(teacher, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | {key: "evil/kernel"}))
    tokenizer = load_tokenizer(teacher, False)
    with pytest.raises(LoriError, match="asks for the attention 'evil/kernel', which is code from the hub"):
        load_causal_lm(Backbone(name=str(tmp_path / "model")), tokenizer)
    plain = load_causal_lm(Backbone(name=str(tmp_path / "model"), attention="eager"), tokenizer)
    assert plain.config._attn_implementation == "eager"


@pytest.fixture
def student_on_evil(world, mark, teacher, tmp_path):
    """A student's adapters apart from a base model that comes with code, and that the folder says to trust."""
    base, folder = tmp_path / "base", tmp_path / "student"
    shutil.copytree(teacher, base)
    for name in ("reasoner.json", "thought.safetensors"):
        (base / name).unlink()
    tokenizer = load_tokenizer(teacher, False)
    lm = prepare_training(load_causal_lm(Backbone(name=str(base)), tokenizer), Backbone(lora=LoRA(rank=2)))
    LatentReasoner(lm, tokenizer, Template(), ThoughtSettings("words", 0)).save_pretrained(folder, merge=False)
    settings = json.loads((folder / "reasoner.json").read_text())
    assert "trust_remote_code" not in settings["base"]
    settings["base"] |= {"trust_remote_code": True}
    (folder / "reasoner.json").write_text(json.dumps(settings))
    code = (
        f"import os\nos.mkdir({str(mark)!r})\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (base / "own.py").write_text(code)
    config = json.loads((base / "config.json").read_text())
    automatic = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (base / "config.json").write_text(json.dumps(config | {"auto_map": automatic, "model_type": "own"}))
    return folder


def test_code_beside_the_base_of_a_students_folder(student_on_evil):
    with pytest.raises(LoriError, match=r"set backbone\.trust_remote_code"):
        LatentReasoner.from_pretrained(student_on_evil)


SLOW = [pytest.param(command, marks=pytest.mark.slow) for command in ("validate", "predict")]


@pytest.mark.parametrize("command", ["test", *SLOW])
def test_code_beside_the_base_of_what_is_tested(world, capsys, student_on_evil, command):
    flags = ["--ckpt_path", str(student_on_evil)]
    fails(world, capsys, "trust_remote_code", command=command, flags=flags, backbone=BACKBONE)


def test_only_who_loads_a_folder_can_trust_its_base(student_on_evil, mark):
    loaded = LatentReasoner.from_pretrained(student_on_evil, trust_remote_code=True)
    assert type(loaded.lm).__name__ == "OwnModel"
    mark.rmdir()


def test_a_sweep_and_a_config_are_plain_yaml(world, capsys, mark):
    path = world.folder / "config.yaml"
    path.write_text(f"seed_everything: !!python/object/apply:os.mkdir ['{mark}']\n")
    fails(world, capsys, "config", flags=["--config", str(path)], backbone=BACKBONE)
    path.write_text(f"seeds: !!python/object/apply:os.mkdir ['{mark}']\n")
    assert main(["sweep", str(path)]) == 2
    assert "is no YAML" in capsys.readouterr().err
