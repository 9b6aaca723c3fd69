"""What `plan` says of every model in configs/model/: LoRi on it, with the LoRA, type and batch of its config.

Run in the root of the repository: ``python experiments/bench/plan_models.py``; nothing is downloaded and no weight is
made, so the models' sizes stand here, as their own ``config.json`` has them. Leaves ``plan_models.csv`` beside this
file, and prints its table.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import bucketed, problems
from omegaconf import OmegaConf

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.cache.build import packed_bytes
from lori_pl.data.pairing import PairedBatch
from lori_pl.evaluation.records import git_commit
from lori_pl.files import replace_file
from lori_pl.methods import LoRi
from lori_pl.models.backbone import Backbone, LoRA
from lori_pl.planning import StepCost, cost_of_step, flops_of_step, hollow

TABLE = Path("experiments/bench/plan_models.csv")
CONFIGS = Path("configs/model")
LONGEST, MEAN = (189, 151, 6), (63, 35, 3)
"""Tokens of question, rationale and answer: of GSM8K-Aug's validation and test files in SmolLM2's tokenizer."""
DEVICES = 8
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
SIZES = {
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
    """What of a model's config the cost depends on."""

    batch: int
    epochs: int
    backbone: Backbone

    @classmethod
    def read(cls, name: str) -> Setting:
        """Reads ``configs/model/NAME.yaml``."""
        config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
        assert isinstance(config, dict)
        given = config["model"]["init_args"]["backbone"]
        backbone = Backbone(
            tokenizer="synthetic",
            config=SIZES[name],
            dtype=given["dtype"],
            attention=given["attention"],
            gradient_checkpointing=given["gradient_checkpointing"],
            lora=LoRA(**given["lora"]),
        )
        return cls(config["data"]["batch_size"], config["trainer"]["max_epochs"], backbone)


def batch_of(method: LoRi, size: int, lengths: tuple[int, int, int]) -> PairedBatch:
    """A batch of problems that are all as long."""
    return bucketed(problems(size, method.student.encoder, lengths=[(n, n) for n in lengths]), size, 1)[0]


def lori(backbone: Backbone) -> LoRi:
    """LoRi with configs/method/lori.yaml's ranks and latents, and the anchor in the low-rank space."""
    terms = [LowRankAlignment(rank_hidden=32), AnchorAlignment(anchor_space="low_rank")]
    return LoRi(backbone, teacher=backbone, latents=5, terms=terms)


def plan(name: str) -> tuple[Setting, StepCost, int, int]:
    """The cost of a step of the longest, operations of one of the mean length, and bytes of a problem in a cache."""
    setting = Setting.read(name)
    method = lori(setting.backbone)
    mode = hollow(method)
    step = cost_of_step(method, mode, batch_of(method, setting.batch, LONGEST), "bf16-mixed")
    mean = flops_of_step(method, mode, batch_of(method, setting.batch, MEAN), "bf16-mixed")
    shape = method.teacher_shape()
    real = lori(setting.backbone)
    real.prepare_terms(shape)
    for term in real.active_terms:
        term.assume_fitted()
    each = packed_bytes(real.named_terms, shape.layers, shape.hidden, torch.float16)
    return setting, step, mean, each


HEADER = (
    *("model", "trained_m", "frozen_m", "batch", "checkpointing", "one_gb", f"ddp_{DEVICES}_gb"),
    *(f"sharded_{DEVICES}_gb", "tflop_a_batch", "epochs", "hours", "cache_bytes", "cache_gb", "commit", "command"),
)


def write(text: str) -> None:
    """Writes the table."""
    replace_file(TABLE, lambda file: file.write(text.encode()))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("models", nargs="*", choices=[*SIZES, []], help="of these models alone (default: all)")
    names = options.parse_args().models or list(SIZES)
    command = shlex.join(["python", "experiments/bench/plan_models.py", *sys.argv[1:]])
    with TABLE.open(encoding="utf-8") if TABLE.exists() else io.StringIO() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    for name in names:
        setting, step, mean, each = plan(name)
        hours = mean * PROBLEMS / setting.batch * setting.epochs / (TFLOPS * 1e12) / 3600
        gigabytes = [step.peak(), step.peak(DEVICES, "ddp"), step.peak(DEVICES, "sharded")]
        values = [
            name,
            round(step.student.trained_parameters / 1e6, 1),
            round(step.student.frozen_parameters / 1e6, 1),
            setting.batch,
            "yes" if setting.backbone.gradient_checkpointing else "no",
            *(round(value / 1e9, 1) for value in gigabytes),
            round(mean / 1e12, 1),
            setting.epochs,
            round(hours, 1),
            each,
            round(each * PROBLEMS / 1e9, 1),
        ]
        print("|", " | ".join(str(value) for value in values), "|", flush=True)
        rows[name] = dict(zip(HEADER, [*map(str, values), git_commit(), command], strict=True))
        text = io.StringIO()
        table = csv.DictWriter(text, HEADER, lineterminator="\n")
        table.writeheader()
        table.writerows(rows[known] for known in SIZES if known in rows)
        write(text.getvalue())


if __name__ == "__main__":
    main()
