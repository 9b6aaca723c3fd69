"""Tiny reasoners over the embedded tokenizer, and an independent computation of what they answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lori_pl.data.synthetic import synthetic_problems
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.models.backbone import Backbone, load_causal_lm
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.models.thought import MARKED, ThoughtSettings

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96}
LLAMA = {**SIZES, "intermediate_size": 24, "tie_word_embeddings": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **LLAMA},
    "gpt2": {"model_type": "gpt2", **SIZES, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gemma2": {
        "model_type": "gemma2",
        **LLAMA,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "final_logit_softcapping": 3.0,
    },
}
KINDS = ("latent", "parallel", "pause")


def thinker(reasoning: Any = "latent", latents: int = 3, kind: str = "llama") -> LatentReasoner:
    """A reasoner of random weights, wide enough that every change of an input shows."""
    torch.manual_seed(1)
    markers = reasoning in MARKED
    tokenizer = load_tokenizer("synthetic", markers)
    lm = load_causal_lm(Backbone(tokenizer="synthetic", config={**CONFIGS[kind], "initializer_range": 0.3}), tokenizer)
    settings = ThoughtSettings(reasoning, latents, passes=2)
    return LatentReasoner(lm, tokenizer, Template(), settings).eval()


def world(count: int, **settings: Any) -> list:
    return synthetic_problems(count, 0, **{"min_steps": 1, "max_steps": 3, "limit": 20, **settings})


def encoded(reasoner: LatentReasoner, problems: list) -> list[np.ndarray]:
    return [np.array(ids) for ids in reasoner.encoder.questions([problem.question for problem in problems])]


@torch.no_grad()
def plain_logits(reasoner: LatentReasoner, question: np.ndarray, latents: Tensor, behind: list[int]) -> Tensor:
    """Logits (n, V) of the language model itself over question, markers, latents (K, D) and tokens, without a cache."""
    ids = torch.tensor([*question.tolist(), *reasoner.encoder.bot])
    after = torch.tensor(behind, dtype=torch.long)
    embed = reasoner.lm.get_input_embeddings()
    inputs = torch.cat([embed(ids), latents.to(torch.float32), embed(after)])[None]
    return reasoner.lm(inputs_embeds=inputs).logits[0]


@torch.no_grad()
def plain_answer(reasoner: LatentReasoner, question: np.ndarray, latents: Tensor, most: int) -> list[int]:
    """Greedy tokens behind the question and given latents (K, D), one full pass a token."""
    written: list[int] = []
    encoder = reasoner.encoder
    while len(written) < most and (not written or written[-1] != encoder.end):
        logits = plain_logits(reasoner, question, latents, [*encoder.suffix, *written])[-1]
        logits[encoder.bot + encoder.eot] = -torch.inf
        written.append(int(logits.argmax()))
    return written


@torch.no_grad()
def plain_latents(reasoner: LatentReasoner, question: np.ndarray) -> Tensor:
    """Latents (K, D), by full passes: recurrent ones one after the other, parallel ones pass by pass."""
    thought, count = reasoner.thought, reasoner.thought.latents
    if thought.kind == "pause":
        return thought.fillers.detach()
    base, embed = reasoner.lm.base_model, reasoner.lm.get_input_embeddings()
    start = embed(torch.tensor([*question.tolist(), *reasoner.encoder.bot]))

    def last(latents: Tensor) -> Tensor:
        return base(inputs_embeds=torch.cat([start, latents])[None]).last_hidden_state[0, len(start) - 1 :]

    latents = start[:0]
    if thought.kind == "latent":
        for _ in range(count):
            latents = torch.cat([latents, thought.projector(last(latents)[-1:])])
        return latents
    first = thought.projector(last(latents))
    latents = torch.cat([first, thought.placeholder.expand(count - 1, -1)])
    for _ in range(thought.passes - 1):
        latents = torch.cat([first, thought.projector(last(latents)[1:-1])])
    return latents
