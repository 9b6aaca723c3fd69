"""Metrics over problems that stay exact when a distributed sampler repeats problems to even out the ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lori_pl.alignment.distributed import is_distributed
from lori_pl.errors import LoriError


class _ByProblem(Metric):
    """Keeps one entry a problem, told apart by the problem's index; a repeated index counts once."""

    is_differentiable = False
    full_state_update = False
    index: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def _check(self, index: Tensor, **columns: Tensor) -> None:
        for name, column in columns.items():
            if index.ndim != 1 or column.shape != index.shape:
                raise LoriError(
                    f"{type(self).__name__}: '{name}' has shape {tuple(column.shape)} and 'index' "
                    f"{tuple(index.shape)}: give one value a problem, shape (B,)"
                )

    def _first_occurrences(self) -> Tensor:
        """Position of each distinct index's first entry over all ranks, sorted by index, shape (n,)."""
        if (isinstance(self.index, list) and not self.index) or len(index := dim_zero_cat(self.index)) == 0:
            raise LoriError(f"{type(self).__name__}: no problem was evaluated: check the split and the batch limits")
        distinct, inverse = torch.unique(index, return_inverse=True)
        positions = torch.arange(len(index), device=index.device)
        first = torch.full_like(distinct, len(index))
        return first.scatter_reduce(0, inverse, positions, "amin")


class AnswerAccuracy(_ByProblem):
    r"""Share of problems answered correctly, overall and by the number of rationale steps.

    With :math:`c_i` whether distinct problem :math:`i` is answered correctly and :math:`s_i` its number of steps,
    ``accuracy`` :math:`= \frac{1}{n} \sum_i c_i` and ``accuracy_steps_k`` the same mean over the problems with
    :math:`s_i = k`. Exact under data parallelism: each problem counts once, by its index, however often the samplers
    repeat it.

    Args:
        kwargs: Passed to `torchmetrics.Metric`.
    """

    correct: list[Tensor]
    steps: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", default=[], dist_reduce_fx="cat")
        self.add_state("steps", default=[], dist_reduce_fx="cat")

    def update(self, correct: Tensor, steps: Tensor, index: Tensor) -> None:
        """Add a batch of B answered problems.

        Args:
            correct: Whether each answer is right, bool, shape (B,).
            steps: Number of rationale steps of each problem, long, shape (B,).
            index: Index of each problem in its data set, long, shape (B,).

        Raises:
            LoriError: The shapes differ.
        """
        self._check(index, correct=correct, steps=steps)
        self.index.append(index.detach().long())
        self.correct.append(correct.detach().bool())
        self.steps.append(steps.detach().long())

    def compute(self) -> dict[str, Tensor]:
        """Accuracy as fractions.

        Returns:
            ``accuracy``, ``n`` (number of distinct problems) and ``accuracy_steps_k`` for every number of steps k that
            occurs, each a scalar tensor.

        Raises:
            LoriError: No problem was added.
        """
        first = self._first_occurrences()
        correct, steps = dim_zero_cat(self.correct)[first], dim_zero_cat(self.steps)[first]
        result = {"accuracy": _mean(correct), "n": torch.tensor(len(first), device=first.device)}
        for k in torch.unique(steps).tolist():
            result[f"accuracy_steps_{k}"] = _mean(correct[steps == k])
        return result


class MeanByProblem(_ByProblem):
    """Mean of one number a problem, e.g. its model passes or its milliseconds; a repeated problem counts once.

    Args:
        kwargs: Passed to `torchmetrics.Metric`.
    """

    value: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("value", default=[], dist_reduce_fx="cat")

    def update(self, value: Tensor, index: Tensor) -> None:
        """Add a batch of B problems.

        Args:
            value: The number, shape (B,).
            index: Index of each problem in its data set, long, shape (B,).

        Raises:
            LoriError: The shapes differ.
        """
        self._check(index, value=value)
        self.index.append(index.detach().long())
        self.value.append(value.detach().float())

    def compute(self) -> Tensor:
        """The mean over distinct problems, a scalar tensor.

        Raises:
            LoriError: No problem was added.
        """
        first = self._first_occurrences()
        return _mean(dim_zero_cat(self.value)[first])


class TestSetMetrics(nn.Module):
    """What is measured on one test set: accuracy, model passes and milliseconds a question, and each outcome.

    Attributes:
        rows: Each problem's id and whether its answer is right, by its row in the data set.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = AnswerAccuracy()
        self.passes = MeanByProblem()
        self.milliseconds = MeanByProblem()
        self.rows: dict[int, tuple[str, bool]] = {}

    def compute(self) -> dict[str, Tensor]:
        """All figures by name: those of `AnswerAccuracy`, ``passes`` and ``milliseconds``."""
        values = self.accuracy.compute()
        return values | {"passes": self.passes.compute(), "milliseconds": self.milliseconds.compute()}

    def gather_rows(self) -> None:
        """Takes in the rows that the other processes answered; all of them must call."""
        if is_distributed():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.rows)
            self.rows = {row: outcome for part in parts for row, outcome in part.items()}

    @property
    def outcomes(self) -> dict[str, bool]:
        """Whether each answer is right, by the problem's id, in the order of the data set."""
        return dict(outcome for _, outcome in sorted(self.rows.items()))


def _mean(values: Tensor) -> Tensor:
    return values.float().mean()
