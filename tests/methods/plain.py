"""A plain computation of what the methods compute: one problem at a time, no padding, no cache, no code of theirs.

Only the batch, the model's weights and the projector are taken from the method under test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close

from lori_pl.data.pairing import EncodedProblems, PairedBatch, paired_batch
from lori_pl.data.synthetic import synthetic_problems
from lori_pl.data.template import Template
from lori_pl.methods import Method
from lori_pl.methods.distillation import Distillation
from lori_pl.models.backbone import Backbone, LoRA

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 128,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "initializer_range": 0.3,
}


def divide(method: Method) -> None:
    """Divides it among the two processes of a group."""
    method.shard(init_device_mesh("cpu", (2,)), torch.device("cpu"), reshard_after_forward=True, cpu_offload=False)


def build(kind: Any, config: dict[str, Any] = TINY, lora: LoRA | None = None, **settings: Any) -> Any:
    """A method of random weights that needs no folder."""
    torch.manual_seed(0)
    backbone = Backbone(tokenizer="synthetic", config=config, lora=lora, attention=settings.pop("attention", None))
    if issubclass(kind, Distillation):
        settings["student_init"] = "base"
    method = kind(backbone, **{"template": Template()} | settings)
    method.configure_model()
    return method


def batch_of(
    method: Any, rows: list[int], swap: bool = False, pieces: bool = False, longer: bool = False
) -> PairedBatch:
    """A batch of the embedded world, whose answers are one token each.

    Args:
        method: The method, for its tokens.
        rows: The problems.
        swap: Every problem has another's rationale.
        pieces: Also in pieces.
        longer: Answers of two, four, one, three, two, ... tokens.
    """
    problems = synthetic_problems(max(rows) + 1, 0, min_steps=2, max_steps=3)
    if longer:
        further = ("7", "3 8 3", "", "9 9")
        problems = [
            replace(problem, answer=f"{problem.answer} {further[i % 4]}".strip()) for i, problem in enumerate(problems)
        ]
    encoded = EncodedProblems(problems, method.student.encoder, steps=pieces)
    if swap:
        order = [*range(1, len(problems)), 0]
        encoded.rationales = encoded.rationales.select(order)
    steps = np.array([len(problem.steps) for problem in problems])
    return paired_batch(rows, steps, encoded, None, pieces=pieces)


def states(lm: Any, embedded: Tensor) -> list[Tensor]:
    """Hidden states (T, D) of a sequence (T, D) by layer, the embeddings first, the last after the final norm."""
    output = lm(inputs_embeds=embedded[None], output_hidden_states=True, use_cache=False)
    return [hidden[0] for hidden in output.hidden_states]


def surprise(lm: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p of each token (T,)."""
    return -lm.lm_head(hidden).log_softmax(-1)[range(len(targets)), targets]


def cross_entropy(lm: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean over tokens of -log p."""
    return surprise(lm, hidden, targets).mean()


def student(method: Any, batch: PairedBatch, row: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """-log p of a row's tokens behind <eot>, its anchor states by layer from the embeddings on, its latents' inputs."""
    reasoner = method.student
    lm, table = reasoner.lm, reasoner.lm.get_input_embeddings().weight
    sequence = table[batch.question[row][batch.question_mask[row]]]
    if reasoner.reasoning == "pause":
        latents = reasoner.thought.fillers
    elif reasoner.reasoning == "parallel":
        latents = together(method, sequence)
    else:
        latents = one_by_one(method, sequence)
    sequence = torch.cat([sequence, latents])
    answer = batch.answer[row][batch.answer_mask[row]]
    hidden = states(lm, torch.cat([sequence, table[answer]]))
    anchor = len(sequence) + batch.anchor
    losses = surprise(lm, hidden[-1][len(sequence) : -1], answer[1:])
    return losses, [layer[anchor] for layer in hidden], latents


def one_by_one(method: Any, question: Tensor, latents: int | None = None) -> Tensor:
    """The inputs (K, D) of recurrent latents behind an embedded question; as many as the method has for ``None``."""
    sequence = question
    for _ in range(method.latents if latents is None else latents):
        last = states(method.student.lm, sequence)[-1][-1:]
        sequence = torch.cat([sequence, method.student.thought.projector(last[None])[0]])
    return sequence[len(question) :]


def together(method: Any, question: Tensor) -> Tensor:
    """The inputs (K, D) of latents that are updated together, in the last pass."""
    thought, lm = method.student.thought, method.student.lm
    latents = [thought.projector(states(lm, question)[-1][-1:][None])[0, 0]]
    latents += [thought.placeholder] * (method.latents - 1)
    for _ in range(method.passes - 1):
        hidden = states(lm, torch.cat([question, torch.stack(latents)]))[-1][len(question) :]
        latents = [latents[0], *(thought.projector(state[None, None])[0, 0] for state in hidden[:-1])]
    return torch.stack(latents)


def words(method: Any, batch: PairedBatch, row: int) -> tuple[Tensor, list[Tensor]]:
    """-log p of a row's rationale and answer in words, and its anchor states by layer."""
    lm, explicit = method.student.lm, batch.explicit
    ids = explicit.ids[row][explicit.mask[row]]
    hidden = states(lm, lm.get_input_embeddings().weight[ids])
    # the question is the student's without <bot>
    start = int(batch.question_mask[row].sum()) - 1
    losses = surprise(lm, hidden[-1][start - 1 : -1], ids[start:])
    return losses, [layer[int(explicit.anchor[row])] for layer in hidden]


def tokens_of(method: Any, batch: PairedBatch, row: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Question, rationale, answer prompt with answer and end, and where the steps begin, cut out of the sequence."""
    tokenizer, explicit = method.student.tokenizer, batch.explicit
    ids = explicit.ids[row][explicit.mask[row]]
    first, last = ids.tolist().index(tokenizer.convert_tokens_to_ids("<<")), int(explicit.anchor[row])
    rationale = ids[first:last]
    begins = [i for i, token in enumerate(rationale.tolist()) if token == tokenizer.convert_tokens_to_ids("<<")]
    return ids[:first], rationale, ids[last:], begins


def behind_latents(method: Any, batch: PairedBatch, latents: int, removed: int | None, given: int = 0) -> list[Tensor]:
    """By problem, -log p of what Coconut has behind its latents.

    Args:
        method: The method.
        batch: The problems.
        latents: How many there are.
        removed: How many steps are gone; ``None`` for all.
        given: How many tokens do not count, from the first.
    """
    reasoner, table = method.student, method.student.lm.get_input_embeddings().weight
    losses = []
    for row in range(len(batch.index)):
        question, rationale, answer, begins = tokens_of(method, batch, row)
        begin = len(rationale) if removed is None or removed >= len(begins) else begins[removed]
        embedded = table[torch.cat([question, torch.tensor(reasoner.encoder.bot)])]
        ids = torch.cat([torch.tensor(reasoner.encoder.eot), rationale[begin:], answer])
        sequence = torch.cat([embedded, one_by_one(method, embedded, latents), table[ids]])
        hidden = states(reasoner.lm, sequence)[-1][-len(ids) :]
        losses.append(surprise(reasoner.lm, hidden[:-1], ids[1:])[given:])
    return losses


def assert_same_gradients(method: Any, loss: Tensor, expected: Tensor) -> None:
    """Of two losses for all that trains; what the expected one does not reach has one of zero.

    None is missing, lest data parallelism wait for it.
    """
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    found, wanted = (torch.autograd.grad(each, trained, allow_unused=True) for each in (loss, expected))
    assert all(gradient is not None for gradient in found)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, torch.zeros_like(one) if other is None else other, atol=1e-4, rtol=1e-4)


def joint_losses(method: Any, batch: PairedBatch, first: int, published: bool = False) -> dict[str, Tensor]:
    """The parts of CODI's loss; the distance starts at layer `first`, 0 for the embeddings.

    With `published` the cross-entropies are means over all tokens of the batch, the student's prompt among them.
    """
    rows = range(len(batch.index))
    pairs = [(student(method, batch, row), words(method, batch, row)) for row in rows]
    distances = []
    for layer in range(first, TINY["num_hidden_layers"] + 1):
        own = torch.stack([mine[1][layer] for mine, _ in pairs])
        theirs = torch.stack([teacher[1][layer] for _, teacher in pairs]).detach()
        difference = (own - theirs).abs()
        smooth = torch.where(difference < 1, difference.square() / 2, difference - 0.5)
        distances.append(smooth.mean() / theirs.std())
    distillation = sum(distances) / len(distances)
    if published:
        task, teacher = (torch.cat([pair[side][0] for pair in pairs]).mean() for side in (0, 1))
    else:
        task = sum(mine[0][batch.anchor :].mean() for mine, _ in pairs) / len(pairs)
        teacher = sum(theirs[0].mean() for _, theirs in pairs) / len(pairs)
    return {"task": task, "distillation": distillation, "teacher": teacher}
