"""The logit lens on latents: what the final norm and the LM head read in a latent's state after each layer.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). After the last layer it is what the model itself
would write; at earlier layers, and for the latent as it goes in (layer 0), it says what is there in the output's basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedModel

from lori_pl.analysis.streams import question_batch
from lori_pl.models.hidden import LayerSelection, base_model, decoder_layers
from lori_pl.models.reasoner import LatentReasoner

EVERY_LAYER = LayerSelection("all", final_norm=True, embedding_layer=True)

_ELEMENTS = 2**25  # 128 MiB of logits at a time


@dataclass
class Lens:
    """What the lens reads in the latents of n problems.

    Args:
        tokens: (n, L + 1, K, k) ids of the likeliest tokens, descending; layer 0 is the latent as it goes in.
        probabilities: (n, L + 1, K, k) theirs.
        mean: (L + 1, K, V) mean distribution over the problems.
        entropy: (L + 1, K) mean entropy of a distribution, in bits.
    """

    tokens: Tensor
    probabilities: Tensor
    mean: Tensor
    entropy: Tensor


def final_norm(lm: PreTrainedModel) -> nn.Module:
    """Finds what a model puts its last layer's output through, whatever it is called.

    It is the module outside the stack of layers whose output is the model's last hidden state: the model reads one
    token, and each module's output is looked at.

    Args:
        lm: The causal language model, in eval mode.

    Returns:
        The final norm; `torch.nn.Identity` where the model has none.
    """
    base, stack = base_model(lm), decoder_layers(lm)
    inside = {id(module) for module in stack.modules()}
    around = {id(module) for module in base.modules() if any(part is stack for part in module.modules())}
    seen: list[tuple[nn.Module, Any]] = []
    handles = [
        module.register_forward_hook(lambda module, _args, output: seen.append((module, output)))
        for module in base.modules()
        if id(module) not in inside | around
    ]
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.long, device=lm.get_input_embeddings().weight.device)
            last = base(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    # the same numbers in the same place: some models give a view of what their norm gave
    return next((module for module, output in reversed(seen) if _same_place(output, last)), nn.Identity())


def _same_place(output: Any, last: Tensor) -> bool:
    return isinstance(output, Tensor) and (output.data_ptr(), output.numel()) == (last.data_ptr(), last.numel())


def lens_logits(reasoner: LatentReasoner, states: Tensor, norm: nn.Module) -> Tensor:
    """Logits (B, L + 1, K, V) of recorded states (B, L + 1, K, D), the last layer's after the final norm already."""
    return torch.stack(
        [
            reasoner.logits(states[:, layer] if layer == states.shape[1] - 1 else norm(states[:, layer]))
            for layer in range(states.shape[1])
        ],
        dim=1,
    )


@torch.no_grad()
def read_latents(
    reasoner: LatentReasoner, questions: Sequence[np.ndarray], batches: list[np.ndarray], top_k: int
) -> Lens:
    """Puts the lens on the latents of problems.

    Args:
        reasoner: The reasoner, in eval mode, with at least one latent.
        questions: Encoded questions.
        batches: The problems of each batch, by number; together 0 to n - 1 in order.
        top_k: Tokens to keep, k.
    """
    norm = final_norm(reasoner.lm)
    tokens, probabilities = [], []
    mean = entropy = torch.zeros(())
    for rows in track(batches, "logit lens", transient=True):
        _, states = reasoner.think(*question_batch(reasoner, questions, rows), record=EVERY_LAYER)
        assert states is not None
        size = max(1, _ELEMENTS // (states.shape[1] * states.shape[2] * len(reasoner.tokenizer)))
        for part in states.split(size):
            share = lens_logits(reasoner, part, norm).float().softmax(-1)
            top = share.topk(min(top_k, share.shape[-1]), dim=-1)
            tokens.append(top.indices.cpu())
            probabilities.append(top.values.cpu())
            mean = mean + share.sum(0).cpu()
            entropy = entropy + torch.special.entr(share).sum(-1).sum(0).cpu() / np.log(2)
    count = sum(map(len, batches))
    return Lens(torch.cat(tokens), torch.cat(probabilities), mean / count, entropy / count)


def shown(reasoner: LatentReasoner, token: int) -> str:
    """A token as text, its spaces visible."""
    return str(reasoner.tokenizer.decode([token])).replace(" ", "␣").replace("\n", "⏎") or f"#{token}"
