"""The rank of reasoning: spectra of teacher and student, against controls, and the subspaces that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.progress import track
from torch import Tensor

from lori_pl.alignment.stiefel import orthonormal_columns
from lori_pl.analysis.right_wrong import Difference, compare_right_wrong
from lori_pl.analysis.spectra import States, TrajectorySpectra, permuted_entries, trajectory_spectra
from lori_pl.analysis.streams import Reader
from lori_pl.analysis.subspaces import captured_energy, compare_subspaces

FEWEST = 8
"""Fewest problems answered right, and wrong, for their spectra to be compared."""

Batches = Callable[[], Iterator[States]]


@dataclass
class RankPart:
    """What was measured.

    Args:
        spectra: By name of the states, such as ``teacher/rationale`` or ``student/latents/permuted``.
        reasoning: For each side the states in which it reasons.
        angles: Principal angles by mode, as `compare_subspaces` gives them.
        captured: By ``STATES | SUBSPACE``, (r,) share of the energy of the states in the first 1 to r directions.
        right_wrong: By name of the states the difference between problems answered right and wrong.
        notes: What was left out, and why.
    """

    spectra: dict[str, TrajectorySpectra] = field(default_factory=dict)
    reasoning: dict[str, str] = field(default_factory=dict)
    angles: dict[str, dict[str, Any]] = field(default_factory=dict)
    captured: dict[str, list[float]] = field(default_factory=dict)
    right_wrong: dict[str, Difference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "states": {name: each.summary() for name, each in self.spectra.items()},
            "reasoning": self.reasoning,
            "principal_angles": self.angles,
            "captured_energy": self.captured,
            "right_against_wrong": {name: each.summary() for name, each in self.right_wrong.items()},
            "left_out": self.notes,
        }

    @property
    def compared(self) -> list[str]:
        """States without controls and parts."""
        return [name for name in self.spectra if name.count("/") == 1]


def measure_rank(
    readers: dict[str, Reader],
    latents: Callable[[np.ndarray], Batches] | None,
    words: bool,
    correct: np.ndarray,
    steps: np.ndarray,
    learned: dict[str, tuple[Tensor, Tensor]],
    rank: int,
    seed: int,
) -> RankPart:
    """Measures everything about rank.

    Args:
        readers: ``student`` and, where there is one, ``teacher``.
        latents: Gives the states at the student's latents for problems by number; ``None`` where it has none.
        words: Whether the student reasons in words.
        correct: (n,) whether the student answers each problem right.
        steps: (n,) number of its rationale's steps.
        learned: Factors (U_L, U_D) that the alignment has fitted, by name.
        rank: Rank of the subspaces that are compared.
        seed: Seed of all controls.
    """
    part = RankPart()
    streams: dict[str, Batches] = {}
    for side, reader in readers.items():
        streams |= _streams(part, side, reader, latents if side == "student" else None, words, correct, steps, seed)
    for name, batches in track(streams.items(), "spectra of states", transient=True):
        part.spectra[name] = trajectory_spectra(batches, readers[name.split("/")[0]].device)
    _compare(part, learned, rank, seed)
    return part


def _streams(
    part: RankPart,
    side: str,
    reader: Reader,
    latents: Callable[[np.ndarray], Batches] | None,
    words: bool,
    correct: np.ndarray,
    steps: np.ndarray,
    seed: int,
) -> dict[str, Batches]:
    every = np.arange(len(correct))
    rows = np.flatnonzero(reader.with_rationale)
    found: dict[str, Batches] = {}

    def explicit(chosen: np.ndarray) -> Batches:
        return reader.states("rationale", chosen)

    def question(chosen: np.ndarray) -> Batches:
        return reader.states("question", chosen)

    of: Callable[[np.ndarray], Batches]
    if latents is not None:
        kind, of, chosen = "latents", latents, every
    elif (side == "teacher" or words) and len(rows):
        kind, of, chosen = "rationale", explicit, rows
    else:
        kind, of, chosen = "question", question, every
    part.reasoning[side] = name = f"{side}/{kind}"
    found[name] = of(chosen)
    if len(rows):
        found[f"{side}/rationale"] = explicit(rows)
    else:
        part.notes.append(f"{side}/rationale: the problems have no rationale")
    found[f"{side}/question"] = question(every)
    if kind == "rationale":
        found[f"{name}/shuffled"] = reader.states("shuffled", rows, seed)
    found[f"{name}/permuted"] = _permuted(found[name], seed)
    right, wrong = matched(chosen, correct, steps, seed)
    if len(right) < FEWEST:
        part.notes.append(
            f"{name}/right and /wrong: {int(correct[chosen].sum())} of {len(chosen)} problems are answered right: "
            f"{len(right)} pairs of as many steps, and the comparison needs {FEWEST}"
        )
        return found
    if (difference := compare_right_wrong(of, right, wrong, steps, seed)) is not None:
        part.right_wrong[name] = difference
    else:
        part.notes.append(f"{name}/right against /wrong: their states take too much memory for a test")
    return {**found, f"{name}/right": of(right), f"{name}/wrong": of(wrong)}


def matched(rows: np.ndarray, correct: np.ndarray, steps: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws problems answered right and as many answered wrong, for each number of steps.

    A rank grows with the number of tokens, and longer problems are answered wrong more often: unmatched, the two would
    differ by that alone.

    Args:
        rows: Problems, by number.
        correct: (n,) whether each problem is answered right.
        steps: (n,) number of steps of each.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    right: list[int] = []
    wrong: list[int] = []
    for length in np.unique(steps[rows]):
        of_length = rows[steps[rows] == length]
        parts = [rng.permutation(of_length[correct[of_length] == value]) for value in (True, False)]
        count = min(map(len, parts))
        right += parts[0][:count].tolist()
        wrong += parts[1][:count].tolist()
    return np.sort(np.array(right, dtype=np.int64)), np.sort(np.array(wrong, dtype=np.int64))


def _permuted(batches: Batches, seed: int) -> Batches:
    return lambda: permuted_entries(batches(), seed)


def _compare(part: RankPart, learned: dict[str, tuple[Tensor, Tensor]], rank: int, seed: int) -> None:
    factors = {name: part.spectra[name].factors for name in part.compared}
    hidden = {name: each.hidden[:, :rank] for name, each in factors.items()}
    # of all layers, every subspace is the whole space
    layer = {name: each.layer[:, : max(1, each.layer.shape[0] // 2)] for name, each in factors.items()}
    for name, (of_layers, of_hidden) in learned.items():
        hidden[name] = orthonormal_columns(of_hidden.detach().double().cpu())
        if of_layers.shape[1] < of_layers.shape[0]:
            layer[name] = orthonormal_columns(of_layers.detach().double().cpu())
    part.angles = {"hidden": compare_subspaces(hidden, seed), "layer": compare_subspaces(layer, seed)}
    bases = {**{name: each.hidden for name, each in factors.items()}, **{n: hidden[n] for n in learned}}
    for name in part.reasoning.values():
        gram = part.spectra[name].hidden_gram
        for other, basis in bases.items():
            if basis.shape[0] == gram.shape[0]:
                part.captured[f"{name} | {other}"] = captured_energy(gram, basis).tolist()
