"""Bring-up: configs, folders, GGUF files, resized embeddings, the head, and what is said of bad input."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, QUESTIONS, backbone, tiny_lm, tiny_reasoner

from lori_pl import LatentReasoner
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError, one_line
from lori_pl.models.backbone import (
    Backbone,
    frozen,
    load_causal_lm,
    load_config,
)
from lori_pl.models.embeddings import grow_embeddings, head_logits
from lori_pl.models.thought import ThoughtSettings

IDS = torch.tensor([[5, 9, 30, 12]])


def class_of(kind):
    names = {"gpt2": "GPT2LMHeadModel"}
    name = names.get(kind, f"{kind.capitalize()}ForCausalLM")
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    return name


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_head_logits_are_the_models_own(kind):
    name = class_of(kind)
    lm = tiny_lm(kind)
    assert type(lm).__name__ == name
    hidden = lm.base_model(IDS).last_hidden_state
    expected = lm(IDS).logits
    torch.testing.assert_close(head_logits(lm, hidden), expected)
    torch.testing.assert_close(head_logits(lm, hidden[:, -1]), expected[:, -1])


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_rows_given_to_the_head_take_the_place_of_its_own(kind):
    lm = tiny_lm(kind)
    hidden, ids = lm.base_model(IDS).last_hidden_state, torch.tensor([3, 7])
    rows = torch.randn(2, 32)
    got = head_logits(lm, hidden, (ids, rows))
    with torch.no_grad():
        lm.get_output_embeddings().weight[ids] = rows
    torch.testing.assert_close(got, head_logits(lm, hidden))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_new_rows_are_the_mean_and_ties_are_kept(kind, tie):
    lm = tiny_lm(kind, markers=False, tie_word_embeddings=tie)
    old = lm.get_input_embeddings().num_embeddings
    tables = [lm.get_input_embeddings().weight, lm.get_output_embeddings().weight]
    means = [table.detach().mean(0) for table in tables]
    before, logits = [table.detach().clone() for table in tables], lm(IDS).logits
    grow_embeddings(lm, old + 3)
    grown = [lm.get_input_embeddings().weight, lm.get_output_embeddings().weight]
    assert (grown[0] is grown[1]) == tie
    assert lm.config.vocab_size == old + 3
    for table, kept, mean in zip(grown, before, means, strict=True):
        assert table.requires_grad
        assert torch.equal(table[:old], kept)
        torch.testing.assert_close(table[old:], mean.expand(3, -1))
    assert lm(IDS).logits.shape[-1] == old + 3
    torch.testing.assert_close(lm(IDS).logits[..., :old], logits)


def test_markers_that_take_spare_rows_start_from_the_mean(tmp_path):
    plain = load_tokenizer("synthetic", False)
    torch.manual_seed(0)
    config = {**CONFIGS["llama"], "vocab_size": len(plain) + 20}  # padded, as Qwen's tables are
    LatentReasoner(
        load_causal_lm(Backbone(config=config), plain), plain, Template(), ThoughtSettings("words")
    ).save_pretrained(tmp_path / "base")
    marked = load_tokenizer(str(tmp_path / "base"), True)
    lm = load_causal_lm(Backbone(name=str(tmp_path / "base")), marked)
    table = lm.get_input_embeddings().weight
    ids = marked.convert_tokens_to_ids(["<bot>", "<eot>"])
    assert table.shape[0] == len(plain) + 20
    torch.testing.assert_close(table[ids], table[: len(plain)].mean(0).expand(2, -1))
    # markers that were trained stay as they are
    student = LatentReasoner(lm, marked, Template(), ThoughtSettings("latent", 2))
    with torch.no_grad():
        table[ids] = torch.randn(2, 32)
    student.save_pretrained(tmp_path / "student")
    again = load_causal_lm(
        Backbone(name=str(tmp_path / "student"), tokenizer="synthetic"), load_tokenizer("synthetic", True)
    )
    torch.testing.assert_close(again.get_input_embeddings().weight, table)


def test_a_model_is_in_train_mode_and_holds_every_id(tmp_path):
    lm = load_causal_lm(backbone(vocab_size=40), load_tokenizer("synthetic", True))
    assert lm.training
    LatentReasoner(lm, load_tokenizer("synthetic", True), Template()).save_pretrained(tmp_path / "student")
    assert load_causal_lm(Backbone(name=str(tmp_path / "student")), load_tokenizer("synthetic", True)).training
    assert lm.get_input_embeddings().num_embeddings == len(load_tokenizer("synthetic", True))


def test_dropout_sets_every_rate():
    tokenizer = load_tokenizer("synthetic", True)
    config = load_config(Backbone(config=CONFIGS["gpt2"], dropout=0.3))
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.3, 0.3, 0.3)
    lm = load_causal_lm(Backbone(config=CONFIGS["llama"], dropout=0.4), tokenizer)
    assert lm.config.attention_dropout == 0.4
    assert load_causal_lm(backbone(attention_dropout=0.1), tokenizer).config.attention_dropout == 0.1


def test_a_folders_config_can_be_overridden(tmp_path):
    tiny_reasoner(reasoning="words").save_pretrained(tmp_path / "base")
    tokenizer = load_tokenizer("synthetic", False)
    lm = load_causal_lm(Backbone(name=str(tmp_path / "base"), config={"attention_dropout": 0.2}), tokenizer)
    assert lm.config.attention_dropout == 0.2
    shallow = load_causal_lm(Backbone(name=str(tmp_path / "base"), config={"num_hidden_layers": 1}), tokenizer)
    assert len(shallow.model.layers) == 1
    assert load_causal_lm(Backbone(name=str(tmp_path / "base"), dtype="bfloat16"), tokenizer).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Backbone(), "backbone has neither name nor config.model_type"),
        (Backbone(config={"hidden_size": 32}), "backbone has neither name nor config.model_type"),
        (Backbone(config={"model_type": "lama"}), "model_type 'lama' is unknown to transformers"),
        (Backbone(config={**CONFIGS["llama"], "hiden_size": 3}), r"\['hiden_size'\] are no keys of LlamaConfig"),
        (Backbone(config={"model_type": "llama", "hidden_size": "big"}), "no config of 'llama': .*hidden_size"),
        (
            Backbone(config={**CONFIGS["llama"], "hidden_size": 30}),
            "no config of 'llama': .*not a multiple of the number of attention heads",
        ),
        (Backbone(config={"model_type": "vit"}), "the model cannot be built"),
        (Backbone(config=CONFIGS["llama"], attention="nonsense"), "backbone.attention 'nonsense' does not serve it"),
        (Backbone(name="nobody/nothing"), "backbone.name 'nobody/nothing': no model found"),
        (Backbone(name="./no/such/folder"), "'./no/such/folder': no model found"),
        (Backbone(name="/no/such/model.gguf"), "no such GGUF file; give its full path"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(LoriError, match=message) as error:
        load_causal_lm(settings, load_tokenizer("synthetic", True))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_unsupported_attention_names_the_remedy():
    # which models have it changes with transformers' version; this one never had
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}
    with pytest.raises(LoriError, match=r"backbone.attention 'sdpa' does not serve it, try eager"):
        load_causal_lm(Backbone(config=bloom, attention="sdpa"), load_tokenizer("synthetic", True))


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_attention_that_is_not_installed_names_the_remedy():
    chosen = Backbone(config=CONFIGS["llama"], attention="flash_attention_2")
    with pytest.raises(LoriError, match=r"backbone.attention 'flash_attention_2' does not serve it, try eager"):
        load_causal_lm(chosen, load_tokenizer("synthetic", True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a folder without config.json, no model"),
        ("{}", "no model found; .*model_type"),
        ("{", "no model found"),
        ('{"model_type": "lama"}', "no model found; .*lama"),
        ('{"model_type": "llama", "hidden_size": 32}', "the model cannot be built"),
        (
            '{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}',
            "it comes with code of its own; set backbone.trust_remote_code if you trust that",
        ),
    ],
)
def test_folders_that_are_no_model_are_one_line(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
        (tmp_path / "own.py").write_text("raise SystemExit('ran the code that came with the model')")
    with pytest.raises(LoriError, match=message) as error:
        load_causal_lm(Backbone(name=str(tmp_path)), load_tokenizer("synthetic", True))
    assert "\n" not in str(error.value)


def test_unknown_override_and_lost_weights_are_one_line(tmp_path, capfd):
    tiny_reasoner(reasoning="words").save_pretrained(tmp_path / "base")
    tokenizer = load_tokenizer("synthetic", False)
    with pytest.raises(LoriError, match=r"\['hiden_size'\] are no keys of LlamaConfig"):
        load_causal_lm(Backbone(name=str(tmp_path / "base"), config={"hiden_size": 3}), tokenizer)
    with pytest.raises(LoriError, match=r"weights are missing, e.g. model.layers.2"):
        load_causal_lm(Backbone(name=str(tmp_path / "base"), config={"num_hidden_layers": 3}), tokenizer)
    with pytest.raises(LoriError, match="weights are of another shape"):
        load_causal_lm(Backbone(name=str(tmp_path / "base"), config={"intermediate_size": 20}), tokenizer)
    file = tmp_path / "base" / "model.safetensors"
    kept = load_file(file)
    kept.pop("model.norm.weight")
    save_file(kept, file, {"format": "pt"})
    capfd.readouterr()
    with pytest.raises(LoriError, match=r"1 weights are missing, e.g. model.norm.weight"):
        load_causal_lm(Backbone(name=str(tmp_path / "base")), tokenizer)
    assert "".join(capfd.readouterr()) == ""


def test_tokenizer_errors_are_one_line(tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    for name, message in (
        ("nobody/nothing", "no tokenizer found at hub id or folder 'nobody/nothing'"),
        ("runs/teacher/student", "no file or folder 'runs/teacher/student', .* model.teacher.name.* train"),
        ("models/nothing.gguf", "no file or folder 'models/nothing.gguf'"),
        (str(tmp_path), "folder '.*' holds no model and no tokenizer; give the folder of a saved model"),
        (str(tmp_path / "half"), "no tokenizer found at folder"),
    ):
        with pytest.raises(LoriError, match=message) as error:
            load_tokenizer(name, True)
        assert "\n" not in str(error.value)
    with pytest.raises(LoriError, match="backbone has neither tokenizer nor name"):
        Backbone().tokenizer_name


def test_one_line():
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("a\n  b\n\nc")) == "a b c"
    assert len(one_line(ValueError("x" * 999))) == 240


def test_frozen_restores_the_mode_of_each_part():
    lm = tiny_lm().train()
    lm.model.layers[0].eval()
    with frozen(lm):
        assert not any(module.training for module in lm.modules())
        assert not lm(IDS).logits.requires_grad
    assert lm.training
    assert not lm.model.layers[0].training
    assert lm.model.layers[1].training


def write_gguf(path, lm, tokenizer):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    config = lm.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in ("<pad>", "<eos>", "<unk>") else 1 for word in words])
    writer.add_token_merges(["4 5"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, value in lm.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, count in heads.items():
            if part in key:  # GGUF interleaves the halves that are rotated together
                value = value.reshape(count, 2, -1, value.shape[-1]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(key, (".weight",)), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("tie", [True, False])
def test_gguf_loads_trains_and_saves(tie, older, tmp_path, capfd, monkeypatch):
    if older:  # transformers before GgufConfig leave a quantizer behind, with which they refuse to save
        monkeypatch.setattr(transformers, "GgufConfig", None, raising=False)
    plain = load_tokenizer("synthetic", False)
    original = tiny_lm(markers=False, tie_word_embeddings=tie)
    write_gguf(tmp_path / "tiny.gguf", original, plain)
    grown_not = load_causal_lm(Backbone(name=str(tmp_path / "tiny.gguf")), plain)
    assert (grown_not.get_output_embeddings().weight is grown_not.get_input_embeddings().weight) == tie
    marked = load_tokenizer("synthetic", True)
    settings = Backbone(name=str(tmp_path / "tiny.gguf"), tokenizer="synthetic", dropout=0.25)
    lm = load_causal_lm(settings, marked)
    assert "Converting" not in "".join(capfd.readouterr())
    assert lm.config.attention_dropout == 0.25
    assert (lm.get_output_embeddings().weight is lm.get_input_embeddings().weight) == tie
    assert all(parameter.requires_grad for parameter in lm.parameters())
    assert not any(tensor.is_meta for tensor in (*lm.parameters(), *lm.buffers()))
    torch.testing.assert_close(lm.eval()(IDS).logits[..., : len(plain)], original(IDS).logits, atol=1e-5, rtol=1e-5)
    reasoner = LatentReasoner(lm, marked, Template(), ThoughtSettings("latent", 2)).train()
    reasoner.logits(reasoner.think(IDS, torch.ones_like(IDS))[0].hidden).logsumexp(-1).sum().backward()
    torch.optim.SGD(reasoner.parameters(), lr=0.01).step()
    reasoner.eval().save_pretrained(tmp_path / "student")
    loaded = LatentReasoner.from_pretrained(tmp_path / "student")
    assert loaded.answer(list(QUESTIONS), max_new_tokens=4) == reasoner.answer(list(QUESTIONS), max_new_tokens=4)
    torch.testing.assert_close(loaded.lm(IDS).logits, lm(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_tokenizer_is_read_from_gguf(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny_lm(markers=False), load_tokenizer("synthetic", False))
    tokenizer = load_tokenizer(str(tmp_path / "tiny.gguf"), True)
    assert tokenizer.eos_token_id == 1
    assert tokenizer("45<bot>", add_special_tokens=False)["input_ids"][-1] == len(tokenizer) - 2
    lm = load_causal_lm(Backbone(name=str(tmp_path / "tiny.gguf")), tokenizer)
    assert lm.get_input_embeddings().num_embeddings >= len(tokenizer)
