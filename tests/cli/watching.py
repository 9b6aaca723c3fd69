"""What each process of a training computed, and the weights that a method had when a hook ran."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lori_pl.methods import Method
from lori_pl.models import generation
from lori_pl.sharding import own_part

WATCH = ["--trainer.callbacks+=watching.Watch"]


class Watch(pl.Callback):
    """Writes ``rankN.pt`` behind the last step.

    In it are the losses of every step, and the weights that this process held before the first and holds behind it.
    """

    def __init__(self) -> None:
        self.losses: dict[int, list[dict[str, float]]] = defaultdict(list)
        self.rationales: dict[int, list[int]] = defaultdict(list)
        self.start: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # before any pass, behind which weights in no layer would stand as a whole
        self.start = _held(pl_module.named_parameters(remove_duplicate=False))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # accumulated gradients count with the step that they end in
        step = trainer.global_step + int(trainer.fit_loop._should_accumulate())
        self.losses[step].append({name: float(value) for name, value in outputs["parts"].items()})
        self.rationales[step].append(int(batch.teacher.rationale_mask.sum()))
        if trainer.global_step == trainer.max_steps:
            held = {
                "start": self.start,
                "parameters": _held(pl_module.named_parameters(remove_duplicate=False)),
                "buffers": _held(pl_module.named_buffers(remove_duplicate=False)),
                "losses": dict(self.losses),
                "rationales": dict(self.rationales),
            }
            torch.save(held, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def _held(named: Any) -> dict[str, Tensor]:
    return {name.replace("_fsdp_wrapped_module.", ""): own_part(value).detach().clone() for name, value in named}


def processes(folder: Path) -> list[dict[str, Any]]:
    """What the processes of a run wrote."""
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("rank*.pt"))]


def losses(folder: Path) -> dict[tuple[int, str], float]:
    """The mean of a run's losses over processes and accumulated batches, by step and name."""
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    for process in processes(folder):
        for step, batches in process["losses"].items():
            for parts in batches:
                for name, value in parts.items():
                    found[step, name].append(value)
    return {place: sum(values) / len(values) for place, values in found.items()}


def logged(folder: Path, *kinds: str) -> dict[tuple[int, str], float]:
    """What was written of the training's losses, or of other ``kinds``, by step and name."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith(kinds or "train/")]
    return {(event.step, name): event.value for name in names for event in events.Scalars(name)}


def updates(folder: Path) -> dict[str, Tensor]:
    """What training has changed of each weight, flat; of several processes, each holds its part."""
    parts = [
        {name: (process["parameters"][name] - start).flatten() for name, start in process["start"].items()}
        for process in processes(folder)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def assert_one_model(folder: Path, state: dict[str, Tensor], divided: bool) -> None:
    """Two processes hold the same weights, bit for bit, or parts that make one of each.

    Args:
        folder: The run's.
        state: The weights and buffers of its last checkpoint.
        divided: Whether every weight is to be in parts.
    """
    first, second = processes(folder)
    assert first["parameters"].keys() == second["parameters"].keys()
    trained = [name for name in state if name in first["parameters"]]
    assert trained
    for name in trained:
        ours, theirs, whole = first["parameters"][name], second["parameters"][name], state[name]
        if divided:
            assert torch.equal(torch.cat([ours.flatten(), theirs.flatten()]), whole.flatten()), name
        else:
            assert torch.equal(ours, theirs), name
            assert torch.equal(ours, whole), name
    for name, value in state.items():
        if name not in first["parameters"]:
            for process in (first, second):
                assert torch.equal(process["buffers"][name], value), name


UNEVEN = ["--trainer.callbacks+=watching.Uneven"]


class Uneven(pl.Callback):
    """Makes answers to problems of even number end at once, and others never; a batch is to hold either.

    Writes ``answersN.json`` behind the test: the tokens of each answer, by problem.
    """

    def __init__(self) -> None:
        self.original = generation.choose
        self.tokens: dict[str, list[int]] = {}

    def _force(self, pl_module: Any, batch: Any, label: str) -> None:
        names = [f"{label} {index}" for index in batch.index.tolist()]
        (odd,) = set((batch.index % 2).tolist())
        end = torch.tensor([pl_module.student.encoder.end])
        for name in names:
            self.tokens[name] = []

        def choose(logits: Tensor, *rest: Any) -> Tensor:
            chosen = self.original(logits.index_fill(-1, end, -1e9 if odd else 1e9), *rest)
            if len(chosen) == len(names) and (odd or not self.tokens[names[0]]):
                for name, token in zip(names, chosen.tolist(), strict=True):
                    self.tokens[name].append(token)
            return chosen

        generation.choose = choose

    def _leave(self, *_: Any) -> None:
        generation.choose = self.original

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self._force(pl_module, batch, f"validation {trainer.global_step}")

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self._force(pl_module, batch, "test")

    on_validation_batch_end = on_test_batch_end = on_exception = _leave

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        path = Path(trainer.default_root_dir) / f"answers{trainer.global_rank}.json"
        path.write_text(json.dumps(self.tokens), encoding="utf-8")


def answers(folder: Path) -> dict[str, list[int]]:
    """What the processes of a run answered, by problem."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("answers*.json")):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def weights_after(hook: str, method: type[Method], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Fills a list with the weights that the method has whenever a hook of it has run."""
    seen: list[dict[str, torch.Tensor]] = []
    original = getattr(method, hook)

    def look(self):
        original(self)
        seen.append({key: value.clone() for key, value in self.state_dict().items()})

    monkeypatch.setattr(method, hook, look)
    return seen
