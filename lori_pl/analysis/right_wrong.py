"""Whether the rank over problems answered right differs from that over problems answered wrong by more than chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lori_pl.alignment.precision import autocast_off
from lori_pl.analysis.spectra import Spectrum, States

DIVISIONS = 39
"""Random divisions that the difference is compared with: no p-value is below 1 / 40."""

_ELEMENTS = 2**28  # 1 GiB of fp32


@dataclass(frozen=True)
class Difference:
    """Right minus wrong, against random divisions of the same problems.

    Args:
        problems: Number of problems on either side.
        observed: Difference in effective rank of the hidden mode.
        random: The same of each random division.
    """

    problems: int
    observed: float
    random: list[float]

    @property
    def p(self) -> float:
        """Two-sided p-value of the permutation test, `(1 + #{|d_i| >= |d|}) / (1 + n)`."""
        beyond = sum(abs(each) >= abs(self.observed) - 1e-12 for each in self.random)
        return (1 + beyond) / (1 + len(self.random))

    def __str__(self) -> str:
        """One line."""
        return (
            f"effective rank {self.observed:+.1f} where right ({self.problems} problems and as many; random divisions "
            f"{min(self.random):+.1f} to {max(self.random):+.1f}, p = {self.p:.3f})"
        )

    def summary(self) -> dict[str, Any]:
        """Plain numbers."""
        values = {"problems": self.problems, "difference": self.observed, "random": self.random, "p": self.p}
        return {"effective_rank_hidden": values}


def effective_rank(tokens: list[Tensor]) -> float:
    """Effective rank of the hidden mode of some problems, as `trajectory_spectra` measures it.

    Args:
        tokens: For each problem its states (T, L, D).
    """
    states = torch.cat(tokens)
    gram = torch.zeros(states.shape[2], states.shape[2], dtype=torch.float64)
    for layer in states.unbind(1):
        about = layer.float() - layer.float().mean(0)
        size = about.square().mean()
        if size > 0:
            with autocast_off(about.device):
                gram += (about.T @ about).double().cpu() / float(size)
    return Spectrum.of_gram(gram).effective_rank


def divide(
    first: np.ndarray, second: np.ndarray, steps: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Divides matched problems anew: as many of each number of steps on either side, whoever was on it before.

    Args:
        first: Problems of one side, by number.
        second: Those of the other, as many of each number of steps.
        steps: (n,) number of steps of each problem.
        rng: The draw.

    Returns:
        The two sides.
    """
    every = np.concatenate([first, second])
    order = rng.permutation(len(every))
    # sorted by steps, equals in random order: every other one is on one side
    places = order[np.argsort(steps[every[order]], kind="stable")]
    return every[places[::2]], every[places[1::2]]


def compare_right_wrong(
    of: Callable[[np.ndarray], Callable[[], Iterator[States]]],
    right: np.ndarray,
    wrong: np.ndarray,
    steps: np.ndarray,
    seed: int,
) -> Difference | None:
    """Compares the rank over problems answered right with that over as many answered wrong.

    If neither side were special, any division of these problems would be as good as this one: the difference is
    compared with those of random divisions that keep the numbers of steps (a permutation test).

    Args:
        of: Gives the states of problems by number.
        right: Problems answered right.
        wrong: As many answered wrong, of each number of steps.
        steps: (n,) number of steps of each problem.
        seed: Seed of the divisions.

    Returns:
        The difference; ``None`` where the states are too large to be kept.
    """
    rows = np.sort(np.concatenate([right, wrong]))
    kept: list[Tensor] = []
    elements = 0
    for hidden, mask in of(rows)():
        elements += int(mask.sum()) * hidden.shape[1] * hidden.shape[3]
        if elements > _ELEMENTS:
            return None
        kept += [states[keep] for states, keep in zip(hidden.transpose(1, 2), mask, strict=True)]
    tokens = dict(zip(rows.tolist(), kept, strict=True))

    def difference(one: np.ndarray, two: np.ndarray) -> float:
        ranks = [effective_rank([tokens[row] for row in side.tolist()]) for side in (one, two)]
        return ranks[0] - ranks[1]

    rng = np.random.default_rng([seed, 1])
    random = [difference(*divide(right, wrong, steps, rng)) for _ in range(DIVISIONS)]
    return Difference(len(right), difference(right, wrong), random)
