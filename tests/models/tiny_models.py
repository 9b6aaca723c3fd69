"""Tiny language models and reasoners over the embedded tokenizer, shared by the tests of the models room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.data.pairing import EncodedProblems, PairedBatch, pad_questions, paired_batch
from lori_pl.data.synthetic import synthetic_problems
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.models.backbone import Backbone, LoRA, load_causal_lm, prepare_training
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.models.state import Reading
from lori_pl.models.thought import MARKED, Reasoning, ThoughtSettings

# a wide initialisation, so that a wrong mask or position changes the outputs visibly
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_LLAMA = {**_SIZES, "intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", **_SIZES, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "qwen2": {"model_type": "qwen2", **_LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "gemma2": {"model_type": "gemma2", **_LLAMA, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
    "granite": {"model_type": "granite", **_LLAMA, "num_key_value_heads": 2, "logits_scaling": 3.0},
    "cohere": {"model_type": "cohere", **_LLAMA, "num_key_value_heads": 2, "logit_scale": 0.25},
}
QUESTIONS = (
    "Ann has 4 apples . She buys 3 more . How many apples does Ann have ?",
    "Bob has 7 coins .",
    "Cleo has 9 eggs . She loses 2 . She gets 5 . She gets 6 . How many eggs does Cleo have ?",
)


def backbone(kind: str = "llama", lora: LoRA | None = None, **changes: Any) -> Backbone:
    return Backbone(tokenizer="synthetic", config={**CONFIGS[kind], **changes}, lora=lora)


def tiny_lm(kind: str = "llama", markers: bool = True, seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return load_causal_lm(backbone(kind, **changes), load_tokenizer("synthetic", markers)).eval()


def tiny_reasoner(
    kind: str = "llama",
    reasoning: Reasoning = "latent",
    latents: int = 3,
    projector: bool = True,
    passes: int = 2,
    lora: LoRA | None = None,
    seed: int = 0,
    template: Template | None = None,
    **changes: Any,
) -> LatentReasoner:
    settings = ThoughtSettings(reasoning, latents, projector, passes=passes)
    markers = reasoning in MARKED
    lm = prepare_training(tiny_lm(kind, markers, seed, **changes), backbone(kind, lora))
    tokenizer = load_tokenizer("synthetic", markers)
    reasoner = LatentReasoner(lm, tokenizer, template or Template(), settings)
    if lora is not None:
        with torch.no_grad():  # adapters start at zero and would prove nothing
            for name, parameter in reasoner.lm.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
            if reasoner.markers is not None:
                reasoner.markers.normal_(std=0.3)
    return reasoner.eval()


def encode(
    reasoner: LatentReasoner, questions: tuple[str, ...] = QUESTIONS, left: bool = True
) -> tuple[Tensor, Tensor]:
    return pad_questions(reasoner.encoder.questions(questions), reasoner.encoder, left)


def pairs(reasoner: LatentReasoner, count: int = 3, seed: int = 0) -> PairedBatch:
    problems = synthetic_problems(count, seed, min_steps=1, max_steps=3)
    steps = torch.tensor([len(problem.steps) for problem in problems]).numpy()
    return paired_batch(range(count), steps, EncodedProblems(problems, reasoner.encoder), None)


def read_pair(
    reasoner: LatentReasoner,
    batch: PairedBatch,
    trajectory: LayerSelection | None = None,
    at_anchor: LayerSelection | None = None,
) -> Reading:
    """Question, thought and answer of a batch."""
    return reasoner.read_pair(
        batch.question, batch.question_mask, batch.answer, batch.answer_mask, batch.anchor, trajectory, at_anchor
    )
