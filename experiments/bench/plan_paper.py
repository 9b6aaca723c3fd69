"""What `plan` says of every cell in experiments/paper/: each method on each model, as the cell's own configs set them.

Run in the root of the repository: ``python experiments/bench/plan_paper.py``; nothing is downloaded and no weight is
made. Leaves ``plan_paper.csv`` beside this file. ``--docs`` writes the tables of docs/paper.md and the needs of
the sweep files' cells from it, and plans nothing. Sizes and lengths are those of ``plan_models.py``.

A model's layers are alike, so each model is gone through with two of them and with four, and what is found is carried
on in a straight line to all that it has; ``--whole`` goes through all of them, which takes many times as long.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import problems
from plan_models import LONGEST, MEAN, PROBLEMS, SIZES, TFLOPS, write_between
from transformers import AutoConfig

from lori_pl.commands.lightning import parse
from lori_pl.data.pairing import PairedBatch, Ragged, paired_batch
from lori_pl.evaluation.records import git_commit, read_rows, write_rows
from lori_pl.methods import Method
from lori_pl.methods.stages import StagedMethod
from lori_pl.planning import StepCost, cost_of_step, flops_of_step, hollow
from lori_pl.sweep.cells import Cell, expand
from lori_pl.sweep.specification import load_specification

SWEEPS = Path("experiments/paper")
TABLE = Path("experiments/bench/plan_paper.csv")
PAGE = Path("docs/paper.md")
BEGIN, END = "<!-- plan_paper -->\n", "<!-- /plan_paper -->\n"
MODELS = ("gpt2", "qwen2.5-0.5b", "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b")
MOST_STEPS, STEPS = 8, 3
"""Steps of the longest rationale of GSM8K-Aug's validation and test files, and of one of mean length."""
PROMPT = "#### #### #### #### ####"
"""As many tokens as ``The answer is:`` with its line end has in GPT-2's tokenizer."""
DEVICES_GB = (40, 80)
"""The two A100s."""
FREE = 0.1
"""Share of a device that is left to what `plan` does not count: its context, fragments, workspaces."""
HEADER = (
    *("model", "method", "test_sets", "batch", "accumulated", "epochs", "trained_m", "frozen_m"),
    *("one_all_gb", "device_gb", "tflop_a_step", "hours", "commit", "command"),
)


def cells(model: str) -> list[Cell]:
    """The cells of one seed, as the sweep of a model runs them."""
    return expand(load_specification(SWEEPS / f"{model}.yaml", ["seeds=[0]"]))


def layers_of(model: str) -> int:
    """Number of decoder layers."""
    return int(AutoConfig.for_model(**(SIZES[model] or {})).num_hidden_layers)


def hollow_config(model: str, layers: int, has_teacher: bool) -> dict[str, Any]:
    """What stands in the place of weights and tokenizer: the model's sizes, with so many layers."""
    known = {**(SIZES[model] or {}), "n_layer" if model == "gpt2" else "num_hidden_layers": layers}
    sizes = {"name": None, "tokenizer": "synthetic", "config": known}
    settings = {"backbone": {**sizes, "revision": None}, **({"teacher": sizes} if has_teacher else {})}
    return {"model": {"init_args": settings}, "data": {"template": {"answer_prompt": PROMPT}}}


def parsed(cell: Cell, model: str, layers: int) -> Any:
    """The command line of a cell, for this machine, without weights."""
    given = [yaml.safe_load(Path(config).read_text(encoding="utf-8")) for config in cell.configs]
    has_teacher = any("teacher" in (config.get("model") or {}).get("init_args", {}) for config in given)
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "hollow.yaml"
        last.write_text(yaml.safe_dump(hollow_config(model, layers, has_teacher)), encoding="utf-8")
        command = cell.command(Path(folder) / "run")
        flags = [argument for argument in command[command.index("fit") + 1 :] if not argument.startswith("--config=")]
        here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto"]
        return parse(["fit", *(f"--config={config}" for config in (*cell.configs, last)), *flags, *here])


def batch_of(method: Method, size: int, lengths: tuple[int, int, int], steps: int) -> PairedBatch:
    """A batch of problems that are all as long, their rationales in steps that are all as long."""
    encoded = problems(size, method.student.encoder, lengths=[(n, n) for n in lengths])
    starts = [number * lengths[1] // steps for number in range(steps)]
    encoded.step_starts = Ragged([starts] * size)
    return paired_batch(range(size), np.full(size, steps), encoded, None, pieces=method.reads_pieces)


def epochs_of_stages(method: Method, epochs: int) -> dict[int, float]:
    """How many of a training's epochs are spent in each stage; a method without stages has one.

    Where stages are shorter than an epoch, the middle one of each epoch stands for it.
    """
    if not isinstance(method, StagedMethod):
        return {0: float(epochs)}
    each, final = method.stages.epochs, method.final_stage
    assert each is not None
    assert each * final <= epochs
    together = max(1, round(1 / each))
    assert final % together == 0
    spent = {first + together // 2: together * each for first in range(0, final, together)}
    return {**spent, final: epochs - each * final}


@dataclass(frozen=True)
class Cost:
    """What a cell takes.

    Args:
        steps: A step of the longest problems, in the first stage and in the last.
        operations: Floating-point operations of a batch of mean length, times the epochs spent in its stage.
    """

    steps: tuple[StepCost, ...]
    operations: float


def go_through(cli: Any) -> Cost:
    """Goes through a step of the longest problems in the first and the last stage, and one of mean length in each.

    From stage to stage as much comes as goes, so what needs most memory is the first or the last.
    """
    method, options, size = cli.model, cli.options["trainer"], cli.datamodule.batch_size
    precision, accumulated = options["precision"], options["accumulate_grad_batches"]
    mode = hollow(method)

    def enter(stage: int) -> None:
        if isinstance(method, StagedMethod):
            method.enter(stage)

    spent = epochs_of_stages(method, options["max_epochs"])
    steps, operations = [], 0.0
    for stage in sorted({0, max(spent)}):
        enter(stage)
        batch = batch_of(method, size, LONGEST, MOST_STEPS)
        steps.append(cost_of_step(method, mode, batch, precision, accumulated=accumulated))
    for stage, lasts in spent.items():
        enter(stage)
        operations += lasts * flops_of_step(method, mode, batch_of(method, size, MEAN, STEPS), precision)
    return Cost(tuple(steps), operations)


def carried(few: Any, more: Any, times: int) -> Any:
    """Carries numbers on in a straight line, from few by the difference to more so many times."""
    if is_dataclass(few):
        named = [field.name for field in fields(few)]
        return replace(few, **{name: carried(getattr(few, name), getattr(more, name), times) for name in named})
    if isinstance(few, tuple):
        return tuple(carried(one, other, times) for one, other in zip(few, more, strict=True))
    return few if few is None or isinstance(few, bool) else few + (more - few) * times


def plan(cell: Cell, model: str, whole: bool) -> dict[str, Any]:
    """The row of a cell."""
    layers = layers_of(model)
    if whole:
        cost = go_through(cli := parsed(cell, model, layers))
    else:
        assert layers % 2 == 0
        few, more = (go_through(cli := parsed(cell, model, number)) for number in (2, 4))
        cost = carried(few, more, (layers - 2) // 2)
    trainer, size = cli.options["trainer"], cli.datamodule.batch_size
    epochs, accumulated = trainer["max_epochs"], trainer["accumulate_grad_batches"]
    memory = max(step.parts().total for step in cost.steps) / 1e9
    return {
        "model": model,
        "method": cli.model.label,
        "test_sets": " ".join(cli.datamodule.test_sources),
        "batch": size,
        "accumulated": accumulated,
        "epochs": epochs,
        "trained_m": round(cost.steps[0].student.trained_parameters / 1e6, 1),
        "frozen_m": round(cost.steps[0].student.frozen_parameters / 1e6, 1),
        "one_all_gb": f"{memory:.1f}",
        "device_gb": next((device for device in DEVICES_GB if memory <= (1 - FREE) * device), ""),
        "tflop_a_step": f"{cost.operations / epochs * accumulated / 1e12:.3g}",
        "hours": f"{cost.operations * PROBLEMS / size / (TFLOPS * 1e12) / 3600:.1f}",
    }


def tables() -> str:
    """The tables of docs/paper.md."""
    lines = ["| model | method | batch x accumulated | epochs | memory (GB) | A100 | hours |", "|" + "---|" * 7]
    rows = read_rows(TABLE)
    for row in rows:
        device = f"{row['device_gb']} GB" if row["device_gb"] else "more than one"
        cells = [f"`{row['model']}`", f"`{row['method']}`", f"{row['batch']} x {row['accumulated']}", row["epochs"]]
        lines.append(f"| {' | '.join([*cells, row['one_all_gb'], device, row['hours']])} |")
    lines += ["", "| model | hours of its cells, one seed | three seeds | five seeds |", "|---|---|---|---|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        hours = sum(float(row["hours"]) for row in rows if row["model"] == model)
        lines.append(f"| `{model}` | {hours:,.0f} | {3 * hours:,.0f} | {5 * hours:,.0f} |")
    return "\n".join(lines) + "\n"


def annotated(model: str) -> str:
    """A model's sweep file with what its cells need: the A100, the memory and the hours of one seed, behind each."""
    text = (SWEEPS / f"{model}.yaml").read_text(encoding="utf-8")
    needs = iter(row for row in read_rows(TABLE) if row["model"] == model)

    def said(found: re.Match[str]) -> str:
        row = next(needs)
        device = f"A100 {row['device_gb']} GB" if row["device_gb"] else "more than one A100"
        return f"{found[1]}  # {device} ({row['one_all_gb']} GB), {row['hours']} hours a seed"

    return re.sub(r"(?m)^(    - \[.*\])(?:  #.*)?$", said, text)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("models", nargs="*", choices=[*MODELS, []], help="of these models alone (default: all)")
    options.add_argument("--method", help="of this method's cell alone (name of its config); other rows stay")
    options.add_argument("--whole", action="store_true", help="go through all layers of a model")
    options.add_argument("--docs", action="store_true", help=f"write what {TABLE} says into {PAGE} and the sweep files")
    arguments = options.parse_args()
    if arguments.docs:
        write_between(PAGE, BEGIN, tables(), END)
        for model in MODELS:
            (SWEEPS / f"{model}.yaml").write_text(annotated(model), encoding="utf-8")
        return
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    command = shlex.join(["python", "experiments/bench/plan_paper.py", *sys.argv[1:]])
    for model in arguments.models or MODELS:
        found: list[dict[str, Any]] = []
        own = None if arguments.method is None else f"configs/method/{arguments.method}.yaml"
        for cell in cells(model):
            if own is None or own in cell.configs:
                found.append({**plan(cell, model, arguments.whole), "commit": git_commit(), "command": command})
                print(found[-1], flush=True)
        known = {name: [row for row in read_rows(TABLE) if row["model"] == name] for name in MODELS}
        if own is None:
            known[model] = found
        else:
            new = {row["method"]: row for row in found}
            known[model] = [new.get(row["method"], row) for row in known[model]]
        write_rows(TABLE, [{column: row[column] for column in HEADER} for each in known.values() for row in each])


if __name__ == "__main__":
    main()
