"""Folders of saved reasoners: round trips, whole or not at all, and what is said of damaged ones."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import QUESTIONS, encode, tiny_reasoner
from transformers import AutoModelForCausalLM

from lori_pl import LatentReasoner, __version__
from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.models import saving
from lori_pl.models.backbone import LoRA
from lori_pl.models.thought import ThoughtSettings


def outputs(reasoner):
    question, mask = encode(reasoner)
    state, _ = reasoner.think(question, mask)
    return reasoner.logits(state.hidden), reasoner.generate(question, mask, max_new_tokens=5).tokens.tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "cohere"])
@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause", "none", "words"])
def test_round_trip(kind, reasoning, tmp_path):
    template = Template(question="Q: {question}", step_separator=" and ")
    made = tiny_reasoner(kind, reasoning, template=template)
    made.save_pretrained(tmp_path / "student")
    loaded = LatentReasoner.from_pretrained(tmp_path / "student")
    assert not any(module.training for module in loaded.modules())
    assert (loaded.reasoning, loaded.thought.latents, loaded.template) == (reasoning, made.thought.latents, template)
    logits, tokens = outputs(made)
    got_logits, got_tokens = outputs(loaded)
    torch.testing.assert_close(got_logits, logits, atol=1e-5, rtol=1e-5)
    assert got_tokens == tokens
    assert loaded.answer(list(QUESTIONS), max_new_tokens=5) == made.answer(list(QUESTIONS), max_new_tokens=5)
    tied = [r.lm.get_output_embeddings().weight is r.lm.get_input_embeddings().weight for r in (made, loaded)]
    assert tied[0] == tied[1] == (kind != "qwen2")
    for text in (*QUESTIONS, "<bot><eot> #### 5"):
        assert loaded.tokenizer(text)["input_ids"] == made.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause"])
def test_on_the_meta_device_it_has_everything_but_weights(kind, reasoning, tmp_path):
    """As in a process that gets its part of them from another."""
    made = tiny_reasoner(kind, reasoning)
    made.save_pretrained(tmp_path / "student")
    with torch.device("meta"):
        hollow = LatentReasoner.from_pretrained(tmp_path / "student")
    assert all(weight.is_meta for weight in hollow.parameters())
    shapes = [{name: weight.shape for name, weight in each.named_parameters()} for each in (made, hollow)]
    assert shapes[0] == shapes[1]


def test_a_second_generation_is_the_first(tmp_path):
    made = tiny_reasoner()
    made.save_pretrained(tmp_path / "one")
    LatentReasoner.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in ("model.safetensors", "thought.safetensors"):
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_zero_latents_round_trip(tmp_path):
    for reasoning in ("latent", "parallel", "pause"):
        tiny_reasoner(reasoning=reasoning, latents=0).save_pretrained(tmp_path / reasoning)
        assert LatentReasoner.from_pretrained(tmp_path / reasoning).thought.latents == 0


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2, dropout=0.0)])
def test_the_folder_is_also_a_transformers_model(lora, tmp_path):
    made = tiny_reasoner(lora=lora)
    made.save_pretrained(tmp_path / "student")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    ids = torch.tensor([[*made.encoder.bot, 5, 9, 30]])
    expected = made.run(made.embed(ids), torch.ones_like(ids), torch.arange(4)[None], None)
    torch.testing.assert_close(plain(ids).logits, made.logits(expected), atol=1e-5, rtol=1e-5)
    assert plain.generation_config.eos_token_id == made.encoder.end
    assert plain.generation_config.pad_token_id == made.encoder.pad


def test_files(tmp_path):
    old = os.umask(0o027)
    try:
        tiny_reasoner().save_pretrained(tmp_path / "student")
    finally:
        os.umask(old)
    files = {file.name: file for file in (tmp_path / "student").iterdir()}
    assert set(files) >= {"model.safetensors", "thought.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))]
    for name, file in files.items():
        assert stat.S_IMODE(file.stat().st_mode) == 0o640, name  # safetensors' own would be private
        assert not file.read_bytes().startswith((b"\x80", b"PK")), f"{name} is a pickle"
    # tied weights are saved once
    assert "lm_head.weight" not in load_file(files["model.safetensors"])
    settings = json.loads(files["reasoner.json"].read_text())
    assert settings["version"] == __version__
    assert settings["latents"] == 3
    card = files["README.md"].read_text()
    assert 'from_pretrained("student")' in card
    assert "latents: 3" in card


def test_bfloat16_on_request(tmp_path):
    tiny_reasoner().save_pretrained(tmp_path / "student")
    loaded = LatentReasoner.from_pretrained(tmp_path / "student", dtype="bfloat16")
    assert loaded.lm.dtype == torch.bfloat16
    assert len(loaded.answer(list(QUESTIONS), max_new_tokens=3)) == 3


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "precious.txt").write_text("mine")
    with pytest.raises(LoriError, match="student exists already; remove it or give another folder"):
        tiny_reasoner().save_pretrained(tmp_path / "student")
    assert [file.name for file in (tmp_path / "student").iterdir()] == ["precious.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("when", ["weights", "thought", "tokenizer", "card"])
def test_a_failure_in_the_middle_leaves_nothing(when, tmp_path, monkeypatch):
    reasoner = tiny_reasoner()

    def fail(*_args, **_keywords):
        raise OSError("no space left on device")

    target, name = {
        "weights": (type(reasoner.lm), "save_pretrained"),
        "thought": (saving, "save_file"),
        "tokenizer": (type(reasoner.tokenizer), "save_pretrained"),
        "card": (saving, "_card"),
    }[when]
    monkeypatch.setattr(target, name, fail)
    with pytest.raises(OSError, match="no space left"):
        reasoner.save_pretrained(tmp_path / "runs" / "student")
    assert not list((tmp_path / "runs").iterdir())


def test_saving_changes_nothing_in_the_live_model(tmp_path):
    reasoner = tiny_reasoner(lora=LoRA(rank=2, alpha=2, dropout=0.0)).train()
    before = {name: value.clone() for name, value in reasoner.state_dict().items()}
    trains = {name: parameter.requires_grad for name, parameter in reasoner.named_parameters()}
    reasoner.save_pretrained(tmp_path / "student")
    assert reasoner.training
    assert trains == {name: parameter.requires_grad for name, parameter in reasoner.named_parameters()}
    after = reasoner.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def damage(folder, how):
    path = folder / "reasoner.json"
    settings = json.loads(path.read_text())
    match how:
        case "no reasoner.json":
            path.unlink()
        case "json":
            path.write_text(path.read_text()[:-20])
        case "no dictionary":
            path.write_text("[1]")
        case "format":
            path.write_text(json.dumps({**settings, "format": 2}))
        case "reasoning":
            path.write_text(json.dumps({**settings, "reasoning": "dream"}))
        case "latents":
            path.write_text(json.dumps({**settings, "latents": "five"}))
        case "key":
            path.write_text(json.dumps({key: value for key, value in settings.items() if key != "latents"}))
        case "template":
            path.write_text(json.dumps({**settings, "template": {"chatty": True}}))
        case "more latents":
            path.write_text(json.dumps({**settings, "reasoning": "pause"}))
        case "truncated thought":
            file = folder / "thought.safetensors"
            file.write_bytes(file.read_bytes()[:-100])
        case "truncated weights":
            file = folder / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-100])
        case "no thought":
            (folder / "thought.safetensors").unlink()
        case "empty thought":
            save_file({}, folder / "thought.safetensors")
        case "part of the thought":
            kept = load_file(folder / "thought.safetensors")
            kept.pop("thought.projector.layers.0.weight")
            save_file(kept, folder / "thought.safetensors")
        case "other thought":
            kept = load_file(folder / "thought.safetensors")
            save_file({key: torch.zeros(5) for key in kept}, folder / "thought.safetensors")
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "part of the weights":
            kept = load_file(folder / "model.safetensors")
            kept.pop("model.layers.1.mlp.up_proj.weight")
            save_file(kept, folder / "model.safetensors", {"format": "pt"})
        case "other weights":
            kept = load_file(folder / "model.safetensors")
            kept["model.norm.weight"] = torch.zeros(7)
            save_file(kept, folder / "model.safetensors", {"format": "pt"})
        case "no tokenizer":
            for file in folder.glob("tokenizer*"):
                file.unlink()
        case "truncated tokenizer":
            file = folder / "tokenizer.json"
            file.write_bytes(file.read_bytes()[:500])
        case "no config":
            (folder / "config.json").unlink()
        case "config":
            (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no reasoner.json", "is no saved reasoner"),
        ("json", "reasoner.json is damaged"),
        ("no dictionary", "reasoner.json is damaged"),
        ("format", "format 2 is unknown to this lori_pl; update it, or export"),
        ("reasoning", "reasoner.json: reasoning is 'dream'"),
        ("latents", "reasoner.json: latents is 'five'"),
        ("key", "reasoner.json is damaged .*latents"),
        ("template", "reasoner.json is damaged .*chatty"),
        ("more latents", "do not fit reasoner.json, e.g. thought"),
        ("truncated thought", "damaged weights"),
        ("truncated weights", "cannot be built"),
        ("no thought", "damaged weights .*thought.safetensors"),
        ("empty thought", "do not fit reasoner.json, e.g. thought"),
        ("part of the thought", "do not fit reasoner.json, e.g. thought.projector.layers.0.weight"),
        ("other thought", "damaged weights .*size mismatch"),
        ("no weights", "cannot be built"),
        ("part of the weights", "1 weights are missing, e.g. model.layers.1.mlp.up_proj.weight"),
        ("other weights", "1 weights are of another shape, e.g. model.norm.weight"),
        ("no tokenizer", "no tokenizer found at folder"),
        ("truncated tokenizer", "no tokenizer found at folder"),
        ("no config", "is a folder without config.json"),
        ("config", "no model found"),
    ],
)
def test_a_damaged_folder_is_one_line(how, message, tmp_path, capfd):
    tiny_reasoner().save_pretrained(tmp_path / "student")
    damage(tmp_path / "student", how)
    capfd.readouterr()
    with pytest.raises(LoriError, match=message) as error:
        LatentReasoner.from_pretrained(tmp_path / "student")
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("folder", ["nothing", ""])
def test_what_is_no_folder_of_a_reasoner(folder, tmp_path):
    with pytest.raises(LoriError, match="is no saved reasoner"):
        LatentReasoner.from_pretrained(tmp_path / folder)


@pytest.mark.parametrize("what", ["adapter", "markers", "base"])
def test_damaged_adapters_are_one_line(what, tmp_path):
    tiny_reasoner(reasoning="words").save_pretrained(tmp_path / "base")
    from lori_pl.data.tokenizer import load_tokenizer
    from lori_pl.models.backbone import Backbone, load_causal_lm, prepare_training

    settings = Backbone(name=str(tmp_path / "base"), lora=LoRA(rank=2))
    tokenizer = load_tokenizer(str(tmp_path / "base"), True)
    lm = prepare_training(load_causal_lm(settings, tokenizer), settings)
    folder = tmp_path / "apart"
    LatentReasoner(lm, tokenizer, Template(), ThoughtSettings("latent", 3)).save_pretrained(folder, merge=False)
    LatentReasoner.from_pretrained(folder)
    if what == "base":
        (tmp_path / "base").rename(tmp_path / "elsewhere")
        message = "base': no model found"
    else:
        file = folder / ("adapter_model.safetensors" if what == "adapter" else "thought.safetensors")
        kept = load_file(file)
        kept.pop(next(key for key in kept if what == "adapter" or key == "markers"))
        save_file(kept, file)
        message = "do not fit reasoner.json, e.g. " + ("model.layers" if what == "adapter" else "markers")
    with pytest.raises(LoriError, match=message) as error:
        LatentReasoner.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_no_progress_bars_outside_a_terminal(tmp_path, capfd):
    tiny_reasoner().save_pretrained(tmp_path / "student")
    LatentReasoner.from_pretrained(tmp_path / "student")
    out, err = capfd.readouterr()
    assert "Loading weights" not in out + err
    assert "Writing model" not in out + err
    assert "%" not in out + err
    from transformers.utils import logging as hub_logging

    assert hub_logging.is_progress_bar_enabled()  # only within lori_pl's own loading and saving
