"""What the YAMLs say of models and data fits them: architectures, tokenization, published files."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from config_files import CONFIGS, EXPLICIT, HUB_MODELS, README, TEMPLATED, TINY, Parse, backbone_of, build, names
from peft.tuners.lora import LoraLayer
from tokenizers import Regex, pre_tokenizers

from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.models.backbone import Backbone, LoRA, load_causal_lm, prepare_training
from lori_pl.models.embeddings import grow_embeddings

# ---- models ----------------------------------------------------------------------------------------------------------

LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
SIZES += ["num_attention_heads", "num_key_value_heads"]
# of each model's config.json: type, sizes, whether the head is tied; and its published number of parameters
ARCHITECTURES: dict[str, tuple[str, tuple[int, ...], bool, float]] = {
    "openai-community/gpt2": ("gpt2", (50257, 768, 3072, 12, 12), True, 124e6),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", (128256, 2048, 8192, 16, 32, 8), True, 1.23e9),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", (128256, 3072, 8192, 28, 24, 8), True, 3.21e9),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", (128256, 4096, 14336, 32, 32, 8), False, 8.03e9),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", (151936, 896, 4864, 24, 14, 2), True, 0.49e9),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", (151936, 1536, 8960, 28, 12, 2), True, 1.54e9),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", (152064, 3584, 18944, 28, 28, 4), False, 7.61e9),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", (49152, 576, 1536, 30, 9, 3), True, 135e6),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.*gradient_checkpointing")
@pytest.mark.parametrize("name", HUB_MODELS)
def test_model_builds_on_the_meta_device(parse: Parse, name: str):
    backbone = backbone_of(parse(EXPLICIT, name))
    kind, sizes, tied, published = ARCHITECTURES[str(backbone.name)]
    names_of_sizes = [size.replace("intermediate_size", "n_inner") for size in SIZES] if kind == "gpt2" else SIZES
    config = {"model_type": kind, "tie_word_embeddings": tied, **dict(zip(names_of_sizes, sizes, strict=False))}
    nameless = Backbone(**{**vars(backbone), "name": None, "config": config})
    with torch.device("meta"):
        model = load_causal_lm(nameless, load_tokenizer("synthetic", True))
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=0.02)
        grow_embeddings(model, sizes[0] + 2)  # <bot> and <eot>
        model = prepare_training(model, backbone)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is table) == tied
    assert len(table) == len(head) == sizes[0] + 2
    assert table.dtype == torch.bfloat16
    # the layers that CODI adapts
    adapted = ["c_attn", "c_fc", "c_proj"] if kind == "gpt2" else LLAMA
    layers = [key for key, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert sorted({key.rpartition(".")[2] for key in layers}) == adapted
    blocks = model.config.num_hidden_layers
    assert len(layers) == blocks * (len(adapted) + (adapted != LLAMA))  # GPT-2 has two c_proj in a block
    trains = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in key and p.dtype == torch.float32 for key, p in trains.items())
    assert len(trains) == 2 * len(layers)


@pytest.mark.parametrize("name", HUB_MODELS)
def test_hyper_parameters_common_to_the_peers(parse: Parse, name: str):
    config = parse(EXPLICIT, name)
    assert config.data.batch_size * config.trainer.accumulate_grad_batches == 128
    assert config.trainer.gradient_clip_val == 2.0
    assert backbone_of(config).lora == LoRA(128, 32.0, 0.1)


def test_models_of_the_readme_are_those_of_the_files(parse: Parse):
    rows = re.findall(r"\| `([^`]+)` \| (\S+) \| (\S+) \| (\d+) \| (\d+) x (\d+) \|", README.read_text())
    assert {f"model/{row[0]}" for row in rows} == set(HUB_MODELS)
    for file, name, rate, epochs, batch, accumulated in rows:
        config = parse(EXPLICIT, f"model/{file}")
        values = (
            config.model.init_args.backbone.name,
            config.model.init_args.optimizer.init_args.lr,
            config.trainer.max_epochs,
            config.data.batch_size,
            config.trainer.accumulate_grad_batches,
        )
        assert values == (name, float(rate), int(epochs), int(batch), int(accumulated))


# ---- data ------------------------------------------------------------------------------------------------------------

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# where these tokenizers split a text before any merge; merges never cross a split
SPLITTERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": pre_tokenizers.Split(Regex(rf"{CONTRACTIONS}|\p{{N}}{{1,3}}|{REST}"), "isolated"),
    "qwen2.5": pre_tokenizers.Split(Regex(rf"{CONTRACTIONS}|\p{{N}}|{REST}"), "isolated"),
    "smollm2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
STEPS = ["<<48/2=24>>", "Every yumpus is a grimpus.", "+ 0 2 0 ( 7 1 )", "so she has $7,200", ""]
ANSWERS = ["72", "-3.5", "1/2", "5 5 6 0", "Sally is a sterpus."]


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("name", TEMPLATED)
def test_parts_are_tokenized_apart_as_together(parse: Parse, name: str, splitter: str):
    template = build(parse(EXPLICIT, TINY, name).data.template)

    def pieces(text: str) -> list[str]:
        return [text[a:b] for _, (a, b) in SPLITTERS[splitter].pre_tokenize_str(text)]

    for question, step in itertools.product(["How many?", "5 6 * 7 1", "Is Sally a sterpus or a rempus?"], STEPS):
        for answer in ANSWERS[:1] + ANSWERS[2:]:
            parts = [
                template.question.replace("{question}", question),
                template.rationale_text([step, step] if step else []),
                template.answer_prompt,
                template.answer_text(answer),
            ]
            apart = [pieces(part) for part in parts]
            assert list(itertools.chain(*apart)) == pieces("".join(parts))
            # the token that the anchor predicts says something about the answer
            assert apart[3][0].strip()


@pytest.mark.parametrize(
    ("name", "split", "problems"),
    [
        ("gsm8k", "test", 1319),
        ("gsm8k_natural", "test", 1319),
        ("gsm8k_aug", "validation", 500),
        ("prosqa", "test", 500),
        ("multiplication_4x4", "test", 1000),
    ],
)
def test_data_file_reads_the_published_files(
    parse: Parse,
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    split: str,
    problems: int,
):
    """From a folder that holds them under `data`, as the files say."""
    (tmp_path / "data").symlink_to(real_data)
    monkeypatch.chdir(tmp_path)
    loaded = build(parse(EXPLICIT, TINY, f"data/{name}.yaml").data.source).load(split).problems
    assert len(loaded) == problems
    assert loaded[0].steps


@pytest.mark.parametrize("name", ["gsm8k", "svamp"])
def test_test_sources_read_the_published_files(
    parse: Parse, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    (tmp_path / "data").symlink_to(real_data)
    monkeypatch.chdir(tmp_path)
    sources = parse(EXPLICIT, TINY, "data/gsm8k_aug.yaml").data.test_sources
    assert len(build(sources[name]).load("test").problems) == {"gsm8k": 1319, "svamp": 1000}[name]


def test_unpinned_hub_data_is_refused_before_anything_is_loaded(parse: Parse):
    with pytest.raises(LoriError, match="revision '' does not pin zen-E/GSM8k-Aug; set revision to a commit"):
        build(parse(EXPLICIT, TINY, "data/hub.yaml").data.source)


def test_the_page_on_evaluation_names_every_data_config_with_its_limit():
    """And the embedded world's number of test problems; those of published files are held by tests of their data."""
    page = (CONFIGS.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    limits, problems, validations, batches = {}, {}, {}, {}
    for row in re.findall(r"^\| (`\w+\.yaml`.*) \|$", page, re.MULTILINE):
        first, _, _, count, validation, _, limit, batch = row.split(" | ")
        named = re.findall(r"`(\w+\.yaml)`", first)
        # one limit for all configs of a row, or one each
        found = [int(number) for number in re.findall(r"\d+", limit.split(" (")[0])]
        limits |= dict(zip(named, found * len(named) if len(found) == 1 else found or [None], strict=False))
        problems |= dict.fromkeys(named, count)
        validations |= dict.fromkeys(named, validation)
        batches |= dict.fromkeys(named, batch)
    configs = {Path(name).name: yaml.safe_load((CONFIGS / name).read_text()) for name in names("data/*.yaml")}
    expected = {
        name: config.get("model", {}).get("init_args", {}).get("max_new_tokens") for name, config in configs.items()
    }
    assert limits == expected
    world = configs["synthetic.yaml"]["data"]
    assert problems["synthetic.yaml"] == f"{world['source']['init_args']['test']:,}"
    assert validations["synthetic.yaml"].startswith(f"{world['source']['init_args']['validation']:,} ")
    assert batches["synthetic.yaml"] == str(world["eval_batch_size"])
    sizes = {"eval_batch_size": 256, **configs["gsm8k.yaml"]["data"]}
    assert batches["gsm8k.yaml"] == str(sizes["eval_batch_size"])
