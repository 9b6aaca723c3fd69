"""What a latent holds: the lens, the results of the rationale in it, and what the answer loses without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track

from lori_pl.analysis.agreement import Agreement, Results, agreement, step_results
from lori_pl.analysis.interventions import Interventions, LatentMoments, Outcome
from lori_pl.analysis.lens import Lens, read_latents, shown
from lori_pl.data.problem import Problem
from lori_pl.data.template import Encoder
from lori_pl.errors import LoriError
from lori_pl.models.reasoner import LatentReasoner

EXAMPLES = 3
"""Problems whose latents are shown token by token."""


@dataclass
class LatentPart:
    """What was found in the latents.

    Args:
        lens: What the lens reads.
        results: The results of the rationales' steps.
        agreement: How often they are in a latent; ``None`` where there is no rationale.
        outcomes: Accuracy without and with interventions, that without first.
        moments: The latents' means and directions on either half of the problems.
        tokens: (k,) text of a token by its id, of all that are named.
        problems: The problems.
        notes: What was left out, and why.
    """

    lens: Lens
    results: Results | None
    agreement: Agreement | None
    outcomes: list[Outcome]
    moments: list[LatentMoments]
    tokens: dict[int, str]
    problems: Sequence[Problem]
    notes: list[str]

    @property
    def latents(self) -> int:
        """K."""
        return int(self.lens.tokens.shape[2])

    def summary(self) -> dict[str, Any]:
        """Plain numbers and tokens."""
        kept = self.lens.tokens.shape[-1]
        top = self.lens.mean.topk(kept, dim=-1)
        energy = torch.stack([each.energy for each in self.moments]).mean(0)
        total = energy.sum()
        found = {
            "latents": self.latents,
            "lens": {
                "top_k": kept,
                "mean": self._named(top.indices, top.values),
                "entropy_bits": self.lens.entropy.tolist(),
                "examples": [
                    {
                        "id": problem.id,
                        "steps": problem.steps,
                        "answer": problem.answer,
                        "tokens": self._named(self.lens.tokens[i], self.lens.probabilities[i]),
                    }
                    for i, problem in enumerate(self.problems[:EXAMPLES])
                ],
            },
            "latent_energy_shares": (energy / total if total > 0 else energy).tolist(),
            "interventions": [each.summary(self.outcomes[0].correct) for each in self.outcomes],
            "left_out": self.notes,
        }
        if self.agreement is not None and self.results is not None:
            counts = {"results": self.results.count, "results_of_several_tokens": self.results.longer}
            found["agreement"] = {**counts, **self.agreement.summary()}
        return found

    def _named(self, ids: torch.Tensor, shares: torch.Tensor) -> list[list[list[list[Any]]]]:
        return [
            [
                [[self.tokens[token], share] for token, share in zip(*pair, strict=True)]
                for pair in zip(*layer, strict=True)
            ]
            for layer in zip(ids.tolist(), shares.tolist(), strict=True)
        ]


def ranks_of(hidden: int) -> list[int]:
    """Ranks that latents are projected on: 0, 1, 2, 4, ... and D."""
    powers = [1 << n for n in range(hidden.bit_length()) if 1 << n < hidden]
    return [0, *powers, hidden]


def inspect_latents(
    reasoner: LatentReasoner,
    problems: Sequence[Problem],
    questions: Sequence[np.ndarray],
    interventions: Interventions,
    unchanged: Outcome,
    encoder: Encoder,
    top_k: int,
) -> LatentPart:
    """Looks into the latents.

    Args:
        reasoner: The reasoner, in eval mode, with at least one latent.
        problems: The problems, n.
        questions: Their encoded questions.
        interventions: The interventions on it.
        unchanged: Its answers without any.
        encoder: What encodes the rationales in its tokens.
        top_k: Tokens of a latent that are looked at.
    """
    notes: list[str] = []
    lens = read_latents(reasoner, questions, interventions.plan.batches, top_k)
    results, found = None, None
    try:
        results = step_results(encoder, problems)
    except LoriError as error:
        notes.append(f"agreement: {error}")
    if results is not None and results.count:
        found = agreement(lens.tokens, results.tokens, lens.mean.shape[-1])
    elif results is not None:
        notes.append("agreement: the problems have no rationale")
    outcomes, moments = _intervene(interventions, unchanged, lens.tokens.shape[2])
    named = torch.cat([lens.tokens[:EXAMPLES].flatten(), lens.mean.topk(lens.tokens.shape[-1], -1).indices.flatten()])
    tokens = {token: shown(reasoner, token) for token in named.unique().tolist()}
    return LatentPart(lens, results, found, outcomes, moments, tokens, problems, notes)


def _intervene(
    interventions: Interventions, unchanged: Outcome, latents: int
) -> tuple[list[Outcome], list[LatentMoments]]:
    moments = interventions.moments()
    ranks = ranks_of(moments[0].basis.shape[0])
    # of a single latent every other rank, of all together each
    single = [*range(latents)]
    tasks = [(kind, latent, 0) for latent in (*single, None) for kind in ("drop", "swap")]
    tasks += [("project", latent, rank) for latent in single for rank in ranks[:-1:2]]
    tasks += [("project", None, rank) for rank in ranks]
    outcomes = [unchanged]
    for kind, latent, rank in track(tasks, "interventions", transient=True):
        match kind:
            case "drop":
                outcomes.append(interventions.drop(latent))
            case "swap":
                outcomes.append(interventions.swap(latent))
            case _:
                outcomes.append(interventions.project(latent, rank, moments))
    return outcomes, moments
