"""Every YAML parses against the real command line, composes as documented, and fits the model that it names."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ParsingOnly
from jsonargparse import Namespace
from peft.tuners.lora import LoraLayer
from tokenizers import Regex, pre_tokenizers

import lori_pl.commands.lightning as lightning_commands
from lori_pl.cli import main
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.models.backbone import Backbone, LoRA, grow_embeddings, load_causal_lm, prepare_training
from lori_pl.sweep.cells import expand
from lori_pl.sweep.specification import load_specification

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
README = CONFIGS / "README.md"
LORI, EXPLICIT, TINY = "method/lori.yaml", "method/explicit_cot.yaml", "model/tiny.yaml"

Parse = Callable[..., Namespace]


def names(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob(pattern))


ALL = names("**/*.yaml")
HUB_MODELS = [name for name in names("model/*.yaml") if name != TINY]
TEMPLATED = [name for name in names("data/*.yaml") if name not in ("data/synthetic.yaml", "data/svamp.yaml")]
COMPOSED = [name for name in names("experiment/**/*.yaml") if "# Composed of:" in (CONFIGS / name).read_text()]
LINKED = (
    *("config", "model.template", "data.tokenizer", "data.teacher_tokenizer"),
    *("data.tokenizer_revision", "data.teacher_tokenizer_revision"),
)
SWEEPS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "experiments").glob("**/*.yaml"))


@pytest.fixture(scope="module")
def parse() -> Iterator[Parse]:
    """Parses the arguments of `fit`; files are given relative to `configs`."""
    cache: dict[tuple[str, ...], Namespace] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_commands, "LoriCLI", ParsingOnly)
        patch.setattr(sys, "argv", ["lori_pl"])
        files = [f"--config={CONFIGS / name}" for name in (EXPLICIT, TINY)]
        parser = lightning_commands.parse(["fit", *files], run=True).parser

        def parsed(*arguments: str | Path) -> Namespace:
            line = tuple(str(a) if str(a).startswith("--") else f"--config={CONFIGS / a}" for a in arguments)
            if line not in cache:
                with lightning_commands.one_line_errors():
                    cache[line] = parser.parse_args(["fit", *line])["fit"]
            return cache[line]

        yield parsed


def with_bases(name: str) -> list[str]:
    """A config behind the files that it needs, in the documented order."""
    match name.split("/")[0]:
        case "method":
            return [name, TINY]
        case "model":
            return [EXPLICIT, name]
        case "experiment":
            # one that names no method is meant for several, of which LoRi takes every option
            model = yaml.safe_load((CONFIGS / name).read_text()).get("model") or {}
            return [name] if "class_path" in model else [LORI, TINY, name]
    return [EXPLICIT, TINY, name]


def flat(node: Any, place: str = "") -> dict[str, Any]:
    """Dotted keys to values, `init_args` left out; without the config files' own names and what links repeat."""
    if isinstance(node, Namespace):
        node = node.as_dict()
    if not isinstance(node, dict) or not node:
        return {place: node}
    found: dict[str, Any] = {}
    for name, child in node.items():
        key = place if name == "init_args" else f"{place}.{name}".strip(".")
        if key not in LINKED:
            found |= flat(child, key)
    return found


def differences(a: Namespace, b: Namespace) -> set[str]:
    left, right = flat(a), flat(b)
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}


def backbone_of(config: Namespace) -> Backbone:
    values = config.model.init_args.backbone.as_dict()
    return Backbone(**{**values, "lora": LoRA(**values["lora"]) if values["lora"] else None})


# ---- every file parses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_config_parses(parse: Parse, name: str):
    config = parse(*with_bases(name))
    assert config.model.class_path.startswith("lori_pl.methods.")
    assert lightning_commands.student_tokenizer(config.model)


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_reads_and_its_cells_parse(parse: Parse, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(ROOT)
    cells = expand(load_specification(name))
    first_of_each = {tuple(Path(config).resolve() for config in cell.configs): cell for cell in reversed(cells)}
    for configs, cell in first_of_each.items():
        command = cell.command(Path("unused"))
        flags = [argument for argument in command[command.index("fit") + 1 :] if not argument.startswith("--config=")]
        parse(*configs, *flags)


def test_every_file_stands_in_the_readme():
    text = README.read_text()
    absent = [name for name in ALL if Path(name).name not in text and not name.startswith("experiment/embedded")]
    assert not absent


def test_commands_of_the_readme_parse(parse: Parse):
    commands = [
        shlex.split(command)
        for block in re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
        for command in block.replace("\\\n", " ").strip().splitlines()
    ]
    assert len(commands) >= 3
    for command in commands:
        assert command[:4] == ["python", "-m", "lori_pl", "fit"]
        pairs = list(zip(command[4::2], command[5::2], strict=True))
        files = [str(Path(value).relative_to("configs")) for flag, value in pairs if flag == "--config"]
        parse(*files, *(f"{flag}={value}" for flag, value in pairs if flag != "--config"))


# ---- composition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSED)
def test_experiment_is_its_parts_and_what_it_calls_its_own(parse: Parse, name: str):
    """An experiment repeats its parts, so that it is one file; this is what keeps it from drifting away from them."""
    header = " ".join(line[1:].strip() for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#"))
    match = re.search(r"Composed of: (.*) Of its own: (.*)$", header)
    assert match
    parts = [part.removeprefix("configs/") for part in match[1].split()]
    own = tuple(key.replace(".init_args", "") for key in match[2].split(", "))
    changed = differences(parse(name), parse(*parts))
    assert {key for key in changed if not key.startswith(own)} == set()
    assert {key for key in own if not any(place.startswith(key) for place in changed)} == set()


def test_order_of_method_model_and_data_does_not_matter(parse: Parse):
    parts = [LORI, "model/llama-3.2-1b.yaml", "data/gsm8k_aug.yaml"]
    assert differences(parse(*parts), parse(*reversed(parts))) == set()
    assert differences(parse(*parts), parse(*parts[1:], parts[0])) == set()


def test_documented_order_gives_the_documented_values(parse: Parse):
    config = parse(LORI, "model/llama-3.2-1b.yaml", "data/gsm8k_aug.yaml", "trainer/gpu.yaml", "--model.teacher.name=t")
    values = config.model.init_args
    assert config.model.class_path == "lori_pl.methods.LoRi"
    assert backbone_of(config) == Backbone(
        name="meta-llama/Llama-3.2-1B-Instruct",
        revision="main",
        dtype="bfloat16",
        attention="sdpa",
        lora=LoRA(128, 32.0, 0.1),
    )
    assert (values.teacher.name, values.latents, values.max_new_tokens) == ("t", 5, 256)
    assert (values.alignment.init_args.rank_hidden, values.anchor.init_args.w_anchor) == (32, 1.0)
    assert (values.optimizer.init_args.lr, values.optimizer.init_args.weight_decay) == (8e-4, 0.1)
    assert (values.schedule.warmup, values.schedule.decay) == (0.03, "cosine")
    assert (config.trainer.max_epochs, config.trainer.gradient_clip_val, config.trainer.precision) == (
        10,
        2.0,
        "bf16-mixed",
    )
    assert sorted(config.data.test_sources) == ["gsm8k", "gsm_hard", "multiarith", "svamp"]
    assert (config.data.tokenizer, config.data.teacher_tokenizer) == ("meta-llama/Llama-3.2-1B-Instruct", "t")
    assert config.data.needs_rationale is config.data.markers is True


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        ("model: {init_args: {optimizer: {init_args: {lr: 1.0e-5}}}}", "model.optimizer.lr", 1e-5),
        ("model: {init_args: {backbone: {lora: {rank: 16}}}}", "model.backbone.lora.rank", 16),
        ("model: {init_args: {alignment: {init_args: {w_mean: 0.5}}}}", "model.alignment.w_mean", 0.5),
        ("data: {source: {init_args: {path: other}}}", "data.source.path", "other"),
        ("data: {template: {answer_prompt: '####'}}", "data.template.answer_prompt", "####"),
    ],
)
def test_a_later_file_replaces_one_nested_value_only(parse: Parse, tmp_path: Path, content: str, key: str, value: Any):
    files = [LORI, "model/gpt2.yaml", "data/gsm8k.yaml", "trainer/gpu.yaml"]
    later = tmp_path / "later.yaml"
    later.write_text(content)
    before, after = parse(*files), parse(*files, later)
    assert differences(before, after) == {key}
    assert flat(after)[key] == value


@pytest.mark.parametrize("method", ["latent_only", "anchor_only", "rationale_only"])
def test_parts_of_lori_differ_from_it_by_their_terms(parse: Parse, method: str):
    """Behind lori.yaml too: what a part leaves out is null there, not absent."""
    alone, behind = parse(f"method/{method}.yaml", TINY), parse(LORI, f"method/{method}.yaml", TINY)
    assert differences(alone, behind) == set()
    lori = parse(LORI, TINY)
    for term, kept in (("alignment", method == "rationale_only"), ("anchor", method == "anchor_only")):
        expected = flat(lori.model.init_args[term]) if kept else {"": None}
        assert flat(alone.model.init_args[term]) == expected


@pytest.mark.parametrize("kind", [HUB_MODELS, TEMPLATED], ids=["models", "data"])
def test_files_of_a_kind_take_each_others_place(parse: Parse, kind: list[str]):
    """They set the same keys (a source's own arguments apart), so nothing of an earlier one stays."""
    source = re.compile(r"data\.(source|test_sources)\.")
    keys = [
        {key for key in flat(yaml.safe_load((CONFIGS / name).read_text())) if not source.match(key)} for name in kind
    ]
    assert all(found | {"data.test_sources"} == keys[0] | {"data.test_sources"} for found in keys)
    base = [EXPLICIT, TINY] if kind is TEMPLATED else [EXPLICIT]
    assert differences(parse(*base, kind[0], kind[-1]), parse(*base, kind[-1])) == set()


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("modle: {latents: 3}", "modle"),
        ("trainer: {max_step: 3}", "max_step"),
        ("model: {init_args: {backbone: {lora: {rnk: 3}}}}", "rnk"),
        ("model: {init_args: {alignment: {init_args: {rank: 3}}}}", "rank"),
    ],
)
def test_unknown_key_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: str, key: str
):
    monkeypatch.setattr(sys, "argv", ["lori_pl"])
    later = tmp_path / "later.yaml"
    later.write_text(content)
    files = [LORI, "model/gpt2.yaml", "data/gsm8k.yaml"]
    assert main(["fit", *(f"--config={CONFIGS / file}" for file in files), f"--config={later}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(rf"\b{key}\b", error)


def test_unpinned_hub_data_is_refused_before_anything_is_loaded(parse: Parse):
    with pytest.raises(LoriError, match="revision '' does not pin zen-E/GSM8k-Aug; set revision to a commit"):
        build(parse(EXPLICIT, TINY, "data/hub.yaml").data.source)


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


def build(node: Namespace) -> Any:
    module, _, name = node.class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**node.init_args.as_dict())


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


def test_svamp_changes_the_test_set_only(parse: Parse):
    changed = differences(
        parse(EXPLICIT, TINY, "data/gsm8k_aug.yaml", "data/svamp.yaml"), parse(EXPLICIT, TINY, "data/gsm8k_aug.yaml")
    )
    assert changed
    assert all(key.startswith("data.test_sources") for key in changed)
