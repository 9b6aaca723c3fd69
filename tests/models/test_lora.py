"""LoRA: what trains, what merges, and what starts from it."""

from __future__ import annotations

import pytest
import torch
from tiny_models import backbone, encode, pairs, read_pair, tiny_lm, tiny_reasoner

from lori_pl import LatentReasoner
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.methods.losses import answer_cross_entropy
from lori_pl.models.backbone import Backbone, LoRA, load_causal_lm, prepare_training
from lori_pl.models.saving import merged_state, save_reasoner
from lori_pl.models.teacher import adapters
from lori_pl.models.thought import ThoughtSettings

LORA = LoRA(rank=2, alpha=4.0, dropout=0.0)


def loss_of(reasoner):
    batch = pairs(reasoner)
    return answer_cross_entropy(reasoner, read_pair(reasoner, batch).hidden, batch).mean()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_only_adapters_projector_and_marker_rows_train(kind):
    reasoner = tiny_reasoner(kind, lora=LORA).train()
    trains = {name for name, parameter in reasoner.named_parameters() if parameter.requires_grad}
    assert {name for name in trains if not name.startswith(("thought.", "markers"))} == {
        name for name, _ in reasoner.named_parameters() if ".lora_" in name
    }
    assert "markers" in trains
    assert reasoner.markers.shape == (2, 32)
    before = {name: parameter.detach().clone() for name, parameter in reasoner.named_parameters()}
    loss_of(reasoner).backward()
    torch.optim.SGD([p for p in reasoner.parameters() if p.requires_grad], lr=0.1).step()
    for name, parameter in reasoner.named_parameters():
        assert (parameter.grad is not None) == (name in trains), name
        assert torch.equal(parameter, before[name]) == (name not in trains), name
    assert (reasoner.markers.grad.norm(dim=1) > 0).all()


def test_every_linear_layer_has_an_adapter_and_the_head_has_none():
    names = {name for name, _ in tiny_reasoner(lora=LORA).lm.named_parameters() if ".lora_A" in name}
    assert len(names) == 2 * 7  # q, k, v, o, gate, up, down
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_the_adapter_is_low_rank_and_scaled():
    reasoner = tiny_reasoner(lora=LORA)
    layer = reasoner.lm.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ layer.base_layer.weight.T + 4.0 / 2 * (x @ down.T) @ up.T
    torch.testing.assert_close(layer(x), expected)
    merged = merged_state(reasoner.lm)["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(x @ merged.T, expected, atol=1e-5, rtol=1e-5)


def test_a_teacher_on_the_base_knows_neither_adapters_nor_dropout_and_leaves_both_as_they_were():
    plain, settings = tiny_lm(), LoRA(rank=2, alpha=4.0, dropout=0.5)
    lm = prepare_training(tiny_lm(), Backbone(lora=settings)).train()
    for name, parameter in lm.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.tensor([[5, 6, 7, 8]])
    modes = [part.training for part in lm.modules()]
    with adapters(lm, "default"):
        adapted = lm(ids).logits
    with adapters(lm, None):
        base = lm(ids).logits
    torch.testing.assert_close(base, plain(ids).logits)
    assert not base.requires_grad
    assert [part.training for part in lm.modules()] == modes
    assert lm(ids).logits.requires_grad
    assert not torch.equal(lm(ids).logits, adapted)  # dropout is on again
    torch.testing.assert_close(lm.eval()(ids).logits, adapted)
    assert not torch.allclose(adapted, base, atol=0.01)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma2", "granite"])
@pytest.mark.parametrize("reasoning", ["latent", "words"])
def test_merged_apart_and_live_agree(kind, reasoning, tmp_path):
    base = tiny_reasoner(kind, "words")
    base.save_pretrained(tmp_path / "base")
    settings = Backbone(name=str(tmp_path / "base"), lora=LORA)
    tokenizer = load_tokenizer(str(tmp_path / "base"), reasoning == "latent")
    lm = prepare_training(load_causal_lm(settings, tokenizer), settings)
    # granite has no 1 / sqrt(d) and would amplify the rounding of the products, as it does that of the saved weights
    dtype, tolerance = (torch.float64, 1e-4) if kind == "granite" else (torch.float32, 1e-5)
    live = LatentReasoner(lm, tokenizer, Template(), ThoughtSettings(reasoning, 3)).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_" in name or name == "markers":
                parameter.normal_(std=0.2)
    live.save_pretrained(tmp_path / "merged")
    live.save_pretrained(tmp_path / "apart", merge=False)
    batch = pairs(live)
    question, mask = encode(live)

    def outputs(reasoner):
        hidden = reasoner.read_pair(question, mask, batch.answer, batch.answer_mask, 0).hidden
        return reasoner.logits(hidden), reasoner.generate(question, mask, max_new_tokens=5).tokens

    logits, tokens = outputs(live)
    for name in ("merged", "apart"):
        loaded = LatentReasoner.from_pretrained(tmp_path / name).to(dtype)
        assert (loaded.markers is None) == (name == "merged" or reasoning == "words")
        got_logits, got_tokens = outputs(loaded)
        torch.testing.assert_close(got_logits, logits, atol=tolerance, rtol=1e-4, msg=name)
        assert got_tokens.tolist() == tokens.tolist()
    assert not (tmp_path / "apart" / "model.safetensors").exists()
    size = sum(file.stat().st_size for file in (tmp_path / "apart").glob("*.safetensors"))
    assert size < 0.7 * (tmp_path / "merged" / "model.safetensors").stat().st_size


def test_peft_reads_the_adapters_that_are_kept_apart(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny_reasoner(reasoning="words").save_pretrained(tmp_path / "base")
    settings = Backbone(name=str(tmp_path / "base"), lora=LORA)
    tokenizer = load_tokenizer(str(tmp_path / "base"), False)
    live = LatentReasoner(
        prepare_training(load_causal_lm(settings, tokenizer), settings),
        tokenizer,
        Template(),
        ThoughtSettings("words"),
    ).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    live.save_pretrained(tmp_path / "apart", merge=False)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft = PeftModel.from_pretrained(plain, tmp_path / "apart").eval()
    ids = torch.tensor([[5, 9, 30, 12]])
    torch.testing.assert_close(peft(ids).logits, live.lm(ids).logits, atol=1e-5, rtol=1e-5)


def test_adapters_apart_name_the_model_that_was_loaded(tmp_path, monkeypatch):
    tiny_reasoner(reasoning="words").save_pretrained(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    settings = Backbone(name="teacher", lora=LORA)  # as student_init=teacher does
    tokenizer = load_tokenizer(str(tmp_path / "teacher"), True)
    lm = prepare_training(load_causal_lm(settings, tokenizer), Backbone(lora=LORA))
    student = LatentReasoner(lm, tokenizer, Template(), ThoughtSettings("latent", 2)).eval()
    save_reasoner(student, tmp_path / "apart", merge=False, base=Backbone(name="another", lora=LORA))
    monkeypatch.chdir("/")  # a relative name is not lost
    loaded = LatentReasoner.from_pretrained(tmp_path / "apart")
    question, mask = encode(student)
    torch.testing.assert_close(loaded.think(question, mask)[0].hidden, student.think(question, mask)[0].hidden)


def test_adapters_apart_need_a_base_with_a_name(tmp_path):
    with pytest.raises(LoriError, match="needs the name of the base model, and this one has none; merge them"):
        tiny_reasoner(lora=LORA).save_pretrained(tmp_path / "student", merge=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_adapters_is_no_backbone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LoriError, match="holds LoRA adapters apart from their base model; export it merged"):
        load_causal_lm(Backbone(name=str(tmp_path)), load_tokenizer("synthetic", False))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_student_starts_as_the_merged_teacher(kind, tmp_path):
    teacher = tiny_reasoner(kind, "words", lora=LORA)
    teacher.save_pretrained(tmp_path / "teacher")
    settings = Backbone(name=str(tmp_path / "teacher"), lora=LORA)
    tokenizer = load_tokenizer(str(tmp_path / "teacher"), True)
    student = prepare_training(load_causal_lm(settings, tokenizer), settings).eval()
    ids, mask = encode(teacher)
    keywords = {"attention_mask": mask.long(), "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    old = len(teacher.tokenizer)
    expected = teacher.lm(ids, **keywords).logits[mask]
    assert student.get_input_embeddings().num_embeddings == old + 2
    torch.testing.assert_close(student(ids, **keywords).logits[mask][:, :old], expected, atol=1e-5, rtol=1e-5)


def test_half_precision_keeps_small_updates_when_merged():
    reasoner = tiny_reasoner(lora=LORA)
    reasoner.lm.to(torch.bfloat16)
    layer = reasoner.lm.model.layers[0].mlp.up_proj
    for part in (layer.lora_A["default"], layer.lora_B["default"]):
        part.float()
    base = layer.base_layer.weight.float()
    update = layer.get_delta_weight("default").float()
    merged = merged_state(reasoner.lm)["model.layers.0.mlp.up_proj.weight"]
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, (base + update).bfloat16())


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoRA(rank=2, targets=["nonsense"]), r"backbone.lora \(rank 2, targets \['nonsense'\]\): .*nonsense"),
        (LoRA(rank=0), r"backbone.lora \(rank 0, targets all-linear\)"),
        (LoRA(rank=2, targets=["lm_head"]), "name the embeddings or the head"),
        (LoRA(rank=2, targets=["embed_tokens", "q_proj"]), "name the embeddings or the head"),
    ],
)
def test_wrong_settings_are_one_line(lora, message):
    with pytest.raises(LoriError, match=message) as error:
        prepare_training(tiny_lm(), backbone("llama", lora))
    assert "\n" not in str(error.value)
