"""What `plan` says of every model in configs/model/: LoRi on it, with the LoRA, type and batch of its config.

Run in the root of the repository: ``python experiments/bench/plan_models.py``; nothing is downloaded and no weight is
made, so the models' sizes stand here, as their own ``config.json`` has them. Leaves ``plan_models.csv`` beside this
file. ``--docs`` writes the tables of docs/cluster.md from it, and plans nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from common import bucketed, problems
from omegaconf import OmegaConf

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.cache.build import packed_bytes
from lori_pl.data.pairing import PairedBatch
from lori_pl.evaluation.records import git_commit, read_rows, write_rows
from lori_pl.files import replace_file
from lori_pl.methods import LoRi
from lori_pl.models.backbone import Backbone, LoRA
from lori_pl.planning import Parts, Strategy, cost_of_answer, cost_of_step, flops_of_step, hollow

TABLE = Path("experiments/bench/plan_models.csv")
CONFIGS = Path("configs/model")
LONGEST, MEAN = (189, 151, 6), (63, 35, 3)
"""Tokens of question, rationale and answer: of GSM8K-Aug's validation and test files in SmolLM2's tokenizer."""
DEVICES = 8
WORLD = ((52, 35, 2), (43, 31, 2))
"""The same of the embedded world with ``quick.yaml``, for the model that belongs to it."""
TFLOPS = 125
"""TFLOP/s of a device in the mean: 40 % of an A100's 312 in bfloat16."""
PROBLEMS = 385_620
"""GSM8K-Aug's."""


def llama(hidden: int, inner: int, layers: int, heads: int, groups: int, words: int, **more: Any) -> dict[str, Any]:
    """Sizes of a model of LLaMA's kind."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": words,
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
        **more,
    }


QWEN = {"model_type": "qwen2"}
UNTIED = {"tie_word_embeddings": False}
SIZES: dict[str, dict[str, Any] | None] = {
    "tiny": None,  # its file has them
    "gpt2": {"model_type": "gpt2"},
    "smollm2-135m": llama(576, 1536, 30, 9, 3, 49152),
    "qwen2.5-0.5b": llama(896, 4864, 24, 14, 2, 151936, **QWEN),
    "llama-3.2-1b": llama(2048, 8192, 16, 32, 8, 128256, head_dim=64),
    "qwen2.5-1.5b": llama(1536, 8960, 28, 12, 2, 151936, **QWEN),
    "llama-3.2-3b": llama(3072, 8192, 28, 24, 8, 128256, head_dim=128),
    "qwen2.5-7b": llama(3584, 18944, 28, 28, 4, 152064, **QWEN, **UNTIED),
    "llama-3.1-8b": llama(4096, 14336, 32, 32, 8, 128256, **UNTIED),
}


@dataclass
class Setting:
    """What of a model's config the cost depends on; no epochs where it sets none."""

    batch: int
    accumulated: int
    epochs: int | None
    precision: str
    lengths: tuple[tuple[int, int, int], tuple[int, int, int]]
    backbone: Backbone

    @classmethod
    def read(cls, name: str) -> Setting:
        """Reads ``configs/model/NAME.yaml``."""
        config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
        assert isinstance(config, dict)
        given = config["model"]["init_args"]["backbone"]
        if (sizes := SIZES[name]) is None:
            return cls(64, 1, None, "32-true", WORLD, Backbone(**given))
        backbone = Backbone(
            tokenizer="synthetic",
            config=sizes,
            dtype=given["dtype"],
            attention=given["attention"],
            gradient_checkpointing=given["gradient_checkpointing"],
            lora=LoRA(**given["lora"]),
        )
        trainer = config["trainer"]
        batches = config["data"]["batch_size"], trainer["accumulate_grad_batches"]
        return cls(*batches, trainer["max_epochs"], "bf16-mixed", (LONGEST, MEAN), backbone)


def batch_of(method: LoRi, size: int, lengths: tuple[int, int, int]) -> PairedBatch:
    """A batch of problems that are all as long."""
    return bucketed(problems(size, method.student.encoder, lengths=[(n, n) for n in lengths]), size, 1)[0]


def lori(backbone: Backbone) -> LoRi:
    """LoRi with configs/method/lori.yaml's ranks and latents, and the anchor in the low-rank space."""
    terms = [LowRankAlignment(rank_hidden=32), AnchorAlignment(anchor_space="low_rank")]
    return LoRi(backbone, teacher=backbone, latents=5, terms=terms)


STRATEGIES: dict[str, tuple[Strategy, int]] = {
    "one": ("single", 1),
    "ddp": ("ddp", DEVICES),
    "sharded": ("sharded", DEVICES),
    "fsdp1": ("fsdp1", DEVICES),
}
PARTS = [field.name for field in fields(Parts)]
HEADER = (
    *("model", "trained_m", "frozen_m", "batch", "accumulated", "checkpointing", "fsdp1_dtype"),
    *(f"{strategy}_{part}_gb" for strategy in STRATEGIES for part in (*PARTS, "all")),
    *("tflop_a_step", "gflop_an_answer", "kv_bytes_a_token", "epochs", "hours", "cache_bytes", "cache_gb"),
    *("commit", "command"),
)


def plan(name: str) -> dict[str, Any]:
    """Goes through a step of the longest problems, and one and an answer of the mean length.

    FSDP1 refuses layers whose weights are of two types: its memory is that of the base model in float32 then.
    """
    setting = Setting.read(name)
    longest, mean = setting.lengths
    method = lori(setting.backbone)
    mode = hollow(method)
    batch = batch_of(method, setting.batch, longest)
    step = cost_of_step(method, mode, batch, setting.precision, accumulated=setting.accumulated)
    batch = batch_of(method, setting.batch, mean)
    flops = flops_of_step(method, mode, batch, setting.precision)
    answer = cost_of_answer(method, mode, batch, batch.answer.shape[1])
    shape = method.teacher_shape()
    older, dtype = step, setting.backbone.dtype or "float32"
    if not step.of_one_type:
        dtype = "float32"
        method = lori(replace(setting.backbone, dtype=dtype))
        mode = hollow(method)
        batch = batch_of(method, setting.batch, longest)
        older = cost_of_step(method, mode, batch, setting.precision, accumulated=setting.accumulated)
        assert older.of_one_type
    real = lori(setting.backbone)
    real.prepare_terms(shape, shape)
    for term in real.active_terms:
        term.assume_fitted()
    each = packed_bytes(real.named_terms, shape.layers, shape.hidden, torch.float16)
    row = {
        "model": name,
        "trained_m": round(step.student.trained_parameters / 1e6, 1),
        "frozen_m": round(step.student.frozen_parameters / 1e6, 1),
        "batch": setting.batch,
        "accumulated": setting.accumulated,
        "checkpointing": "yes" if setting.backbone.gradient_checkpointing else "no",
        "fsdp1_dtype": dtype,
        "tflop_a_step": f"{flops * setting.accumulated / 1e12:.3g}",
        "gflop_an_answer": f"{answer.flops / 1e9:.3g}",
        "kv_bytes_a_token": answer.cache_bytes,
        "epochs": setting.epochs or "",
        "hours": "",
        "cache_bytes": each,
        "cache_gb": "",
    }
    if setting.epochs is not None:
        hours = flops * PROBLEMS / setting.batch * setting.epochs / (TFLOPS * 1e12) / 3600
        row |= {"hours": round(hours, 1), "cache_gb": round(each * PROBLEMS / 1e9, 1)}
    for strategy, (kind, devices) in STRATEGIES.items():
        parts = (older if kind == "fsdp1" else step).parts(devices, kind)
        for part, size in zip((*PARTS, "all"), (*astuple(parts), parts.total), strict=True):
            row[f"{strategy}_{part}_gb"] = f"{size / 1e9:.3f}"
    return row


def rows() -> dict[str, dict[str, str]]:
    """What is recorded, by model."""
    return {row["model"]: row for row in read_rows(TABLE)}


def tables() -> str:
    """The tables of docs/cluster.md."""
    lines = [
        "| model | parameters that train, that do not (M) | batch x accumulated | layers recomputed | TFLOP a step | "
        "GFLOP an answer | keys and values (bytes a token) | epochs | hours, one device | cache of the teacher (GB) |",
        "|" + "---|" * 10,
    ]
    memory = [
        "| model | strategy | weights | gradients | optimiser | together | activations | all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows().items():
        cells = [
            f"`{name}`",
            f"{row['trained_m']}, {row['frozen_m']}",
            f"{row['batch']} x {row['accumulated']}",
            row["checkpointing"],
            *(f"{float(row[key]):,.6g}" for key in ("tflop_a_step", "gflop_an_answer", "kv_bytes_a_token")),
            *(row[key] or "-" for key in ("epochs", "hours", "cache_gb")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        for strategy, (_, devices) in STRATEGIES.items():
            label = "one device" if strategy == "one" else f"{devices}, `{strategy}`"
            sizes = [row[f"{strategy}_{part}_gb"] for part in (*PARTS, "all")]
            memory.append(f"| {' | '.join([f'`{name}`', label, *sizes])} |")
    return "\n".join([*lines, "", "Memory a device, in GB:", "", *memory]) + "\n"


PAGE = Path("docs/cluster.md")
BEGIN, END = "<!-- plan_models -->\n", "<!-- /plan_models -->\n"


def write_between(page: Path, begin: str, text: str, end: str) -> None:
    """Puts a text in the place of what stands between two marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    whole = before + begin + text + end + rest.partition(end)[2]
    replace_file(page, lambda file: file.write(whole.encode()))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("models", nargs="*", choices=[*SIZES, []], help="of these models alone (default: all)")
    options.add_argument("--docs", action="store_true", help=f"write the tables of {PAGE} from {TABLE} alone")
    arguments = options.parse_args()
    if arguments.docs:
        write_between(PAGE, BEGIN, tables(), END)
        return
    command = shlex.join(["python", "experiments/bench/plan_models.py", *sys.argv[1:]])
    for name in arguments.models or list(SIZES):
        row = {**plan(name), "commit": git_commit(), "command": command}
        print(row, flush=True)
        known = {**rows(), name: row}
        recorded = [known[each] for each in SIZES if each in known]
        write_rows(TABLE, [{column: row[column] for column in HEADER} for row in recorded])


if __name__ == "__main__":
    main()
