"""`plan`: what a training needs of memory, disk and arithmetic, before it is started."""

from __future__ import annotations

import re
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from lori_pl.cache.build import packed_bytes
from lori_pl.commands.lightning import HERE, parse
from lori_pl.commands.own_options import OwnOptions
from lori_pl.data.datamodule import PairedDataModule, PreparedSplit
from lori_pl.data.loading import collate_pairs
from lori_pl.data.pairing import PairedBatch
from lori_pl.errors import LoriError
from lori_pl.methods import Method
from lori_pl.methods.distillation import Distillation
from lori_pl.methods.optimization import check_precision
from lori_pl.planning import Parts, StepCost, Strategy, cost_of_answer, cost_of_step, flops_of_step, hollow
from lori_pl.tables import print_whole, say

SHARDING: dict[Strategy, str] = {
    "sharded": "reshard_after_forward: false",
    "fsdp1": "sharding_strategy: SHARD_GRAD_OP",
}
"""Strategies that divide weights, and what has them keep put together what a step has put together."""
UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def main(arguments: list[str]) -> int:
    """Shows what a training needs.

    Args:
        arguments: ``--devices``, ``--memory``, and what ``fit`` takes.

    Raises:
        LoriError: If the config or the data is bad, or an option is out of range.
    """
    options, rest = _parser().parse_known_args(arguments)
    memory = bytes_of(options.memory) if options.memory else None
    if options.devices < 1:
        raise LoriError(f"--devices is {options.devices}: give 1 or more")
    if options.tflops is not None and not options.tflops > 0:
        raise LoriError(f"--tflops is {options.tflops}: give a positive number")
    cli = parse(["fit", *rest, *HERE])
    method, data = cli.model, cli.datamodule
    precision = str(cli.options["trainer"].get("precision") or "32-true")
    check_precision(precision)
    data.setup_train()
    split = data.splits["train"]
    mode = hollow(method)
    batch = longest(data, split)
    accumulated = cli.options["trainer"].get("accumulate_grad_batches") or 1
    step = cost_of_step(method, mode, batch, precision, accumulated=accumulated)
    console = Console()
    show_model(console, step)
    show_step(console, step, batch, precision, accumulated)
    show_strategies(console, step, options.devices, memory, accumulated)
    if options.tflops is not None:
        usual = flops_of_step(method, mode, middling(data, split), precision)
        show_hours(console, usual, batches_of(cli.options, data, split, options.devices), options)
    show_answer(console, method, data, mode, batch)
    show_cache(console, method, split)
    return 0


def _parser() -> OwnOptions:
    parser = OwnOptions(
        "plan",
        "Show what a training needs: memory of a device by part and strategy, arithmetic of a step and of an answer, "
        "bytes of a cache. One step is gone through with tensors without content: nothing is trained, and no weight is "
        "read.",
    )
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="number of devices (default: 1)")
    parser.add_argument("--memory", metavar="SIZE", help="memory of a device, such as 80GB: say what fits")
    parser.add_argument(
        "--tflops", type=float, metavar="N", help="what a device reaches in the mean, in TFLOP/s: say how long it takes"
    )
    return parser


def bytes_of(text: str) -> int:
    """Reads a size such as ``80GB`` or ``24GiB``.

    Raises:
        LoriError: If it is none.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B)?\s*", text, re.IGNORECASE)
    if found is None:
        raise LoriError(f"--memory {text}: give a number and a unit, such as 80GB or 24GiB")
    return int(float(found[1]) * UNITS[(found[2] or "").upper()])


def longest(data: PairedDataModule, split: PreparedSplit) -> PairedBatch:
    """The training batch of the longest problems: the one that needs most.

    Raises:
        LoriError: If there are fewer problems than a batch has.
    """
    lengths = split.student.lengths()
    if len(lengths) < data.batch_size:
        raise LoriError(f"data: {len(lengths)} training problems do not fill one batch of {data.batch_size}")
    return collate_pairs(split)(np.argsort(lengths, kind="stable")[-data.batch_size :].tolist())


def middling(data: PairedDataModule, split: PreparedSplit) -> PairedBatch:
    """A training batch of problems whose length is about the mean."""
    lengths = split.student.lengths()
    return collate_pairs(split)(np.argsort(abs(lengths - lengths.mean()), kind="stable")[: data.batch_size].tolist())


def batches_of(options: Any, data: PairedDataModule, split: PreparedSplit, devices: int) -> int:
    """How many batches a whole training has, over all devices; 0 where it has no end.

    Args:
        options: The parsed options of ``fit``.
        data: The data.
        split: Its training split.
        devices: Number of devices.
    """
    trainer = options["trainer"]
    steps, epochs = trainer.get("max_steps") or -1, trainer.get("max_epochs")
    # those of a step, on all devices
    together = (trainer.get("accumulate_grad_batches") or 1) * devices
    found = []
    if steps > 0:
        found.append(steps * together)
    if epochs is not None and epochs > 0:
        # whole steps only, as the loader gives them
        found.append(epochs * (len(split.problems) // (data.batch_size * together)) * together)
    return min(found, default=0)


def show_model(console: Console, step: StepCost) -> None:
    """Prints numbers of parameters."""
    student, teacher = step.student, step.teacher
    line = (
        f"{student.trained_parameters / 1e6:,.1f} M parameters train, {student.frozen_parameters / 1e6:,.1f} M do not"
    )
    if teacher.bytes:
        line += f"; the teacher has {teacher.frozen_parameters / 1e6:,.1f} M"
    say(line, console)


def show_step(console: Console, step: StepCost, batch: PairedBatch, precision: str, accumulated: int) -> None:
    """Prints what one process that holds everything takes, by part."""
    problems, question = batch.question.shape
    explicit = batch.explicit.ids.shape[1]
    line = f"the longest batch: {problems} problems, questions to {question} tokens, explicit sequences to {explicit}"
    more = f"; {accumulated} batches accumulated" if accumulated > 1 else ""
    say(f"{line}; precision {precision}{more}", console)
    table = Table(title="one device that holds everything")
    table.add_column("part")
    table.add_column("GB", justify="right")
    parts = {
        "student, what trains": step.student.trained,
        "student, what does not": step.student.frozen,
        "teacher": step.teacher.bytes,
        "gradients": step.gradients,
        "optimiser's state": step.optimizer,
        "activations kept for the backward pass": step.activations,
        "peak": step.parts().total,
    }
    for name, size in parts.items():
        table.add_row(name, f"{size / 1e9:.3f}")
    print_whole(table, console)
    say(f"{step.flops * accumulated / 1e12:,.3f} TFLOP a step and device, forward and backward", console)


def show_strategies(console: Console, step: StepCost, devices: int, memory: int | None, accumulated: int) -> None:
    """Prints each strategy's peak a device by part, whether it fits, and what ``cpu_offload`` keeps on the host."""
    table = Table(title=f"peak a device in GB, {devices} device{'s' if devices > 1 else ''}")
    columns = ("strategy", "weights", "gradients", "optimiser", "together", "activations", "all")
    for column in (*columns, *(["fits"] if memory else [])):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    rows: list[tuple[str, Parts]] = [("one device", step.parts())]
    sharding = [(name, whole) for name, whole in SHARDING.items() if name != "fsdp1" or step.of_one_type]
    # fsdp1 refuses it where batches are accumulated
    offloading = [name for name, _ in sharding if name != "fsdp1" or accumulated == 1]
    if devices > 1:
        rows.append(("ddp", step.parts(devices, "ddp")))
        for name, whole in sharding:
            rows.append((name, step.parts(devices, name)))
            rows.append((f"{name}, {whole}", step.parts(devices, name, reshard_after_forward=False)))
            if name in offloading:
                rows.append((f"{name}, cpu_offload: true", step.parts(devices, name, cpu_offload=True)))
    for label, parts in rows:
        fits = [] if memory is None else ["yes" if parts.total <= memory else "no"]
        sizes = (*astuple(parts), parts.total)
        table.add_row(label, *(f"{size / 1e9:.3f}" for size in sizes), *fits)
    print_whole(table, console)
    if devices > 1:
        hosts = ", ".join(f"{name} {step.host(devices, name) / 1e9:.3f}" for name in offloading)
        say(f"cpu_offload: true keeps in the host's memory, GB a process: {hosts}", console)
        if not step.of_one_type:
            say("fsdp1 takes no layer whose weights are of two types: see docs/cluster.md", console)
        elif "fsdp1" not in offloading:
            say("fsdp1 takes no cpu_offload where batches are accumulated: see docs/cluster.md", console)


def show_hours(console: Console, flops: int, batches: int, options: Any) -> None:
    """Prints how long a training takes, its validations and its start apart."""
    if not batches:
        say("the training has no end: set trainer.max_epochs or trainer.max_steps to hear how long it takes", console)
        return
    hours = flops * batches / (options.tflops * 1e12 * options.devices) / 3600
    shown = f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"
    say(
        f"{batches:,} batches of {flops / 1e12:.4g} TFLOP in the mean: {shown} hours on {options.devices} x "
        f"{options.tflops:g} TFLOP/s, without validations",
        console,
    )


def show_answer(
    console: Console, method: Method, data: PairedDataModule, mode: FakeTensorMode, batch: PairedBatch
) -> None:
    """Prints what an answer costs."""
    answer = cost_of_answer(method, mode, batch, min(method.max_new_tokens, batch.answer.shape[1]))
    held = answer.cache_bytes * answer.length * data.eval_batch_size
    say(
        f"an answer of {answer.tokens} tokens: {answer.flops / 1e9:,.1f} GFLOP; keys and values "
        f"{answer.cache_bytes / 1e3:,.1f} KB a token, {held / 1e9:.3f} GB for "
        f"data.eval_batch_size {data.eval_batch_size}",
        console,
    )


def show_cache(console: Console, method: Method, split: PreparedSplit) -> None:
    """Prints the bytes of a cache of the teacher, where the method has one."""
    if not isinstance(method, Distillation) or not method.needs:
        return
    shape = method.teacher_shape()
    each, problems = packed_bytes(method.named_terms, shape.layers, shape.hidden, torch.float16), len(split.problems)
    say(
        f"a cache of the teacher in half precision: {each:,} bytes a problem, {each * problems / 1e9:.3f} GB for "
        f"{problems:,} problems",
        console,
    )
