"""Optimiser groups and the step-wise learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lori_pl.alignment import stiefel_parameters
from lori_pl.errors import LoriError, check_choice, one_line
from lori_pl.sharding.fsdp2 import HALVES
from lori_pl.sharding.parts import whole_shape

Decay = Literal["cosine", "linear", "late", "none"]


@dataclass
class Schedule:
    """Learning rate by optimiser step: a linear warm-up, times a decay over all steps that ends at zero.

    Args:
        warmup: Steps of warm-up, a whole number, or a share of all steps, below 1. A whole number counts steps however
            it is written: of `int | float`, a reader of configurations may make 50.0 of 50.
        decay: ``cosine``, ``linear``, ``late`` (constant, then linear over the last ``decay_share``) or ``none``.
        decay_share: Share of all steps over which ``late`` decays.
    """

    warmup: int | float = 0.03
    decay: Decay = "cosine"
    decay_share: float = 0.3

    def __post_init__(self) -> None:
        """Checks the values."""
        check_choice("schedule.decay", self.decay, Decay)
        if not 0 <= self.warmup < math.inf or (self.warmup > 1 and self.warmup != int(self.warmup)):
            raise LoriError(
                f"schedule.warmup is {self.warmup}: give a whole number of steps, 0 or more, or a share of all steps, "
                "below 1"
            )
        if not 0 < self.decay_share <= 1:
            raise LoriError(f"schedule.decay_share is {self.decay_share}: give a share of all steps, in (0, 1]")

    def factor(self, step: int, total: int) -> float:
        """Gives the learning rate's factor in [0, 1] at ``step`` of ``total``."""
        warmup = self.warmup * total if self.warmup < 1 else self.warmup
        rise = min(1.0, (step + 1) / (warmup + 1))
        done = min(1.0, step / max(total, 1))
        match self.decay:
            case "cosine":
                return rise * 0.5 * (1 + math.cos(math.pi * done))
            case "linear":
                return rise * (1 - done)
            case "late":
                return rise * min(1.0, (1 - done) / self.decay_share)
        return rise

    def __call__(self, total: float) -> Callable[[int], float]:
        """Gives the factor as a function of the step.

        Raises:
            LoriError: If the number of steps is unknown, and the rate decays or warms up over a share of them.
        """
        if math.isfinite(total):
            return lambda step: self.factor(step, int(total))
        if self.decay != "none":
            raise LoriError("the schedule decays to zero but training has no end: set trainer.max_steps or max_epochs")
        if 0 < self.warmup < 1:
            raise LoriError(
                f"schedule.warmup is {self.warmup}, a share of all steps, but training has no end: give a number of "
                "steps, or set trainer.max_steps or max_epochs"
            )
        return lambda step: self.factor(step, 1)


def parameter_groups(module: nn.Module, parts: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """Splits what trains into named groups, with and without weight decay.

    Without decay: vectors (norms, biases), embeddings-like learned tokens, and Stiefel parameters, whose scale means
    nothing. The other groups say nothing of it: they get the optimiser's.

    Args:
        module: The whole module.
        parts: Sub-modules by name; each parameter belongs to the first that holds it, else to ``backbone``.

    Raises:
        LoriError: If nothing trains.
    """
    exempt = {id(parameter) for parameter in stiefel_parameters(module)}
    owner = {id(parameter): name for name, part in reversed(parts.items()) for parameter in part.parameters()}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(module):
        plain = len(whole_shape(parameter)) < 2 or id(parameter) in exempt or name.endswith(("markers", "fillers"))
        groups.setdefault((owner.get(id(parameter), "backbone"), not plain), []).append(parameter)
    if not groups:
        raise LoriError("nothing trains: every parameter is frozen")
    return [
        {
            "params": parameters,
            "name": f"{name}/{'' if decays else 'no_'}decay",
            **({} if decays else {"weight_decay": 0.0}),
        }
        for (name, decays), parameters in groups.items()
    ]


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Each group's hyper-parameters, all but the rate of the moment."""
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]


def apply_changes(
    optimizer: Optimizer, scheduler: LambdaLR, wanted: list[dict[str, Any]], before: list[dict[str, Any]]
) -> None:
    """Sets what was changed since a checkpoint was made, which has put its own hyper-parameters into the optimiser.

    Args:
        optimizer: The optimiser, as the checkpoint restored it.
        scheduler: Its schedule, likewise.
        wanted: :func:`settings` as the flags gave them in this run.
        before: The same in the run that made the checkpoint; empty where it did not say.
    """
    for i, (group, now, then) in enumerate(zip(optimizer.param_groups, wanted, before, strict=False)):
        # an optimiser may keep state among them: what the flags leave alone stays
        group.update({key: value for key, value in now.items() if then.get(key) != value})
        scheduler.base_lrs[i] = group["initial_lr"]
        group["lr"] = group["initial_lr"] * scheduler.lr_lambdas[i](scheduler.last_epoch)


def trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the named parameters that train."""
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def check_precision(precision: str | None) -> None:
    """Refuses a trainer's precision that casts all weights and buffers.

    Rotary frequencies in half precision make another model of one that was trained with them in fp32 (logits change by
    a tenth behind a few hundred positions), and measured factors and moments would be rounded, too.

    Raises:
        LoriError: If it is such a one.
    """
    if precision in ("bf16-true", "16-true"):
        raise LoriError(
            f"trainer.precision {precision} rounds the model's rotary frequencies and all that is measured of the "
            f"teacher: take {precision.removesuffix('-true')}-mixed, and for weights in half precision "
            "model.backbone.dtype (with model.backbone.lora)"
        )


def forward_context(precision: str | None, device: str) -> AbstractContextManager[Any]:
    """What the Trainer puts around every pass: autocast under mixed precision, else nothing.

    Args:
        precision: The Trainer's.
        device: Type of the device.
    """
    return MixedPrecision(precision, device).forward_context() if precision in HALVES else nullcontext()


def check_optimizer(optimizer: OptimizerCallable) -> None:
    """Makes one for a weight of no importance, so that what it refuses is told before a model is loaded.

    Raises:
        LoriError: If it does not take its arguments.
    """
    try:
        optimizer([{"params": [nn.Parameter(torch.zeros(1, 1))], "name": "check"}])
    except (TypeError, ValueError) as error:
        raise LoriError(f"model.optimizer: {one_line(error)}; correct its init_args") from error
