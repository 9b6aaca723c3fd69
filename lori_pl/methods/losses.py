"""Cross-entropy on answers and rationales of each problem: mean over its tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lori_pl.alignment.distributed import mean_across_ranks
from lori_pl.data.pairing import ExplicitBatch, PairedBatch
from lori_pl.models.masks import positions
from lori_pl.models.pair_reading import ReadQuestion, read_words
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.regions import region


def token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Averages token losses (B, T) over each problem's tokens in ``mask``: (B,)."""
    weight = mask.to(loss.dtype)
    return (loss * weight).sum(1) / weight.sum(1).clamp_min(1)


def token_losses(reasoner: LatentReasoner, hidden: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (B, n) of tokens (B, n) that the states (B, n, D) predict."""
    logits = reasoner.logits(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)


def batch_mean(losses: Tensor, tokens: Tensor) -> Tensor:
    """Mean over all tokens of the batch of all processes.

    Args:
        losses: (B,) each problem's mean over its own tokens.
        tokens: (B,) how many these are.
    """
    return mean_across_ranks((losses * tokens).sum(), tokens.sum())


def unused(module: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for all that trains in ``module``: what a step leaves out would stall DDP."""
    training = [parameter.sum() for parameter in module.parameters() if parameter.requires_grad]
    return 0.0 * torch.stack(training).sum() if training else torch.zeros(())


def answer_cross_entropy(reasoner: LatentReasoner, hidden: Tensor, batch: PairedBatch) -> Tensor:
    """Cross-entropy on answer and end token, or on the answer prompt too: on the last columns.

    Args:
        reasoner: The student.
        hidden: (B, n, D) states that predict the last n columns of the answer's A: A - anchor - 1 for answer and end,
            A - 1 for all that stands behind ``<eot>``.
        batch: The batch.

    Returns:
        (B,).
    """
    columns = slice(batch.answer.shape[1] - hidden.shape[1], None)
    with region("answer"):
        loss = token_losses(reasoner, hidden, batch.answer[:, columns])
    return token_mean(loss, batch.answer_mask[:, columns])


def explicit_cross_entropy(
    reasoner: LatentReasoner, batch: ExplicitBatch, question: ReadQuestion | None = None
) -> Tensor:
    """Cross-entropy on rationale, answer prompt, answer and end token (B,); the head sees only those positions.

    Args:
        reasoner: The model.
        batch: The problems in words.
        question: Their questions, where these were read already.
    """
    problems, width = batch.ids.shape
    predicting = batch.target_index - 1
    with region("words"):
        if question is None:
            hidden = reasoner.run(reasoner.embed(batch.ids), batch.mask, positions(batch.mask), None, predicting)
        else:
            hidden = read_words(reasoner, question, batch)
            row = batch.target_index // width
            predicting = row * batch.written + batch.target_index % width - batch.begin[row]
        logits = reasoner.logits(hidden.flatten(0, 1)[predicting]).float()
        loss = F.cross_entropy(logits, batch.ids.flatten()[batch.target_index], reduction="none")
    # the weights are those of a mean over the batch
    weighted = loss * batch.target_weight * problems
    return weighted.new_zeros(problems).index_add(0, batch.target_index // width, weighted)
