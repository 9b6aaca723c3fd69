"""Whether latents hold the intermediate results of the rationale: how often a step's result is in a latent's top k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from lori_pl.data.problem import Problem
from lori_pl.data.template import Encoder

NONE = -1
NORMAL_95 = NormalDist().inv_cdf(0.975)
"""Standard errors on either side of a mean that make its 95 % interval."""


@dataclass
class Results:
    """The results of the steps of n problems, as tokens.

    Args:
        tokens: (n, S) the first token of each step's result; `NONE` where there is no such step, or it has none.
        longer: Number of results of more than one token.
        count: Number of results.
    """

    tokens: Tensor
    longer: int
    count: int


def step_results(encoder: Encoder, problems: Sequence[Problem]) -> Results:
    """Finds the result of each step as it is tokenized in its rationale.

    A result is what `rationale_tokens: step_results` takes for one: the word behind the step's last ``=``, or its last
    word. Of a result of more than one token only the first is looked for.

    Raises:
        LoriError: If the tokenizer cannot say where in the text its tokens stand.
    """
    if not problems:
        return Results(torch.full((0, 0), NONE), 0, 0)
    rationales = encoder.rationales(problems)
    found: list[list[int]] = []
    longer = 0
    for ids, places, starts in zip(
        rationales, encoder.selected(problems, "step_results"), encoder.step_starts(problems), strict=True
    ):
        row = []
        for start, end in zip(starts, [*starts, len(ids)][1:], strict=True):
            inside = [place for place in places if start <= place < end]
            row.append(ids[inside[0]] if inside else NONE)
            longer += len(inside) > 1
        found.append(row)
    width = max(map(len, found))
    padded = [row + [NONE] * (width - len(row)) for row in found]
    tokens = torch.tensor(padded, dtype=torch.long).view(len(found), width)
    return Results(tokens, longer, int((tokens != NONE).sum()))


@dataclass
class Agreement:
    """How often step i's result is among the k likeliest tokens of latent j after each layer.

    Args:
        share: (L + 1, S, K) share of the problems that have step i and another problem of as many steps.
        chance: (L + 1, S, K) the same with the results of step i of all the other problems of as many steps.
        error: (L + 1, S, K) standard error of ``share - chance``, by the jackknife: a problem counts twice, by its own
            latents and by its result in those of all others (J. N. Arvesen, "Jackknifing U-statistics", 1969).
        problems: (S,) number of the problems.
    """

    share: Tensor
    chance: Tensor
    error: Tensor
    problems: Tensor

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """(L + 1, S, K) each: the two ends of the 95 % interval of ``share - chance``, by the normal distribution."""
        difference, half = self.share - self.chance, NORMAL_95 * self.error
        return difference - half, difference + half

    def summary(self) -> dict[str, Any]:
        """Plain numbers, by layer, step and latent; where a step has no problem, ``None``."""
        values: dict[str, Any] = {"problems": self.problems.tolist()}
        for name in ("share", "chance", "error"):
            table = getattr(self, name)
            values[name] = [
                [[None if x != x else x for x in row] for row in layer]  # NaN is no JSON
                for layer in table.tolist()
            ]
        return values


def agreement(top: Tensor, results: Tensor, vocabulary: int) -> Agreement:
    """Compares the lens with the results.

    The chance level is exact: for each problem the mean over all other problems with as many steps of whether *their*
    result of the same step is in this problem's top k. So a latent that always says the commonest result, or that only
    knows how long the chain is, agrees no more than by chance.

    Args:
        top: (n, L + 1, K, k) the likeliest tokens, all different in one latent.
        results: (n, S) first tokens of the results, `NONE` where there is none.
        vocabulary: Number of tokens V.
    """
    steps = results.shape[1]
    lengths = (results != NONE).sum(1)
    shape = (*top.shape[1:2], steps, top.shape[2])
    share, chance, error = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(3))
    problems = torch.zeros(steps, dtype=torch.long)
    for step in range(steps):
        hits, by_others, influences = [], [], []
        for length in lengths.unique().tolist():
            rows = ((lengths == length) & (results[:, step] != NONE)).nonzero()[:, 0]
            if len(rows) < 2:
                continue
            wanted, seen = results[rows, step], top[rows]
            hit = (seen == wanted[:, None, None, None]).any(-1).double()
            # how many of the group's problems have a result that is there, this one itself taken out
            counts = torch.bincount(wanted, minlength=vocabulary)
            by_other = counts[seen].sum(-1).double() - hit
            in_others = _found(seen, wanted, vocabulary) - hit
            hits.append(hit)
            by_others.append(by_other / (len(rows) - 1))
            # what the difference loses without each problem, as far as that differs between them
            lost = hit - (by_other + in_others) / max(len(rows) - 2, 1)
            influences.append(lost - lost.mean(0) + (hits[-1] - by_others[-1]).mean(0))
        if hits:
            hit, other = torch.cat(hits), torch.cat(by_others)
            problems[step] = len(hit)
            share[:, step], chance[:, step] = hit.mean(0), other.mean(0)
            error[:, step] = torch.cat(influences).std(0) / len(hit) ** 0.5
    return Agreement(share, chance, error, problems)


def _found(top: Tensor, results: Tensor, vocabulary: int) -> Tensor:
    """(n, L + 1, K): in how many of the n problems' top k (n, L + 1, K, k) the result (n,) of each problem is."""
    known, place = results.unique(return_inverse=True)
    compact = top.new_full((vocabulary,), len(known))
    compact[known] = torch.arange(len(known), device=known.device)
    tokens = compact[top].permute(1, 2, 0, 3).flatten(2)
    counts = torch.zeros(*tokens.shape[:2], len(known) + 1, dtype=torch.float64, device=top.device)
    counts.scatter_add_(2, tokens, torch.ones_like(tokens, dtype=torch.float64))
    return counts[:, :, place].permute(2, 0, 1)
