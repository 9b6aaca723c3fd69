"""What the benchmarks share: their models and problems, timing in turns, and the row that each leaves."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.data.pairing import EncodedProblems, PairedBatch, Ragged, paired_batch
from lori_pl.data.template import Encoder, Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.evaluation.records import git_commit, read_rows, write_rows
from lori_pl.methods import ExplicitCoT, LoRi
from lori_pl.methods.measuring import measure
from lori_pl.models.backbone import Backbone

RESULTS = Path("experiments/bench/results.csv")
VOCABULARY = 4000
QUESTION, RATIONALE, ANSWER = (40, 117), (8, 40), (1, 3)
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 256,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 512,
        "vocab_size": VOCABULARY,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}


def parser(description: str, without: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Options of every benchmark, but for those that one has no use for."""
    options = argparse.ArgumentParser(description=description)
    known: dict[str, dict[str, Any]] = {
        "shape": {"choices": list(SHAPES), "default": "llama", "help": "architecture"},
        "batch": {"type": int, "default": 8, "help": "problems a batch"},
        "rounds": {"type": int, "default": 9, "help": "rounds, of which the median counts"},
        "threads": {"type": int, "default": torch.get_num_threads(), "help": "threads of torch"},
        "record": {"action": "store_true", "help": f"put the row into {RESULTS}"},
    }
    for name, settings in known.items():
        if name not in without:
            options.add_argument(f"--{name}", **settings)
    return options


def problems(
    count: int, encoder: Encoder, seed: int = 0, lengths: Sequence[tuple[int, int]] = (QUESTION, RATIONALE, ANSWER)
) -> EncodedProblems:
    """Problems of random tokens, of lengths between these bounds; by default those that the bars name."""
    rng = np.random.default_rng(seed)

    def part(bounds: tuple[int, int], end: Sequence[int] = ()) -> Ragged:
        lengths = rng.integers(bounds[0], bounds[1], endpoint=True, size=count)
        return Ragged([np.concatenate([rng.integers(400, VOCABULARY, size=n), end]) for n in lengths])

    encoded = EncodedProblems([], encoder)
    encoded.questions, encoded.rationales = part(lengths[0]), part(lengths[1])
    encoded.answers = part(lengths[2], [encoder.end])
    return encoded


def bucketed(encoded: EncodedProblems, batch: int, number: int) -> list[PairedBatch]:
    """Batches of like length, spread over the lengths that there are."""
    order = np.argsort(encoded.lengths(), kind="stable")
    cut = [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]
    chosen = [cut[i] for i in np.linspace(0, len(cut) - 1, number).astype(int)]
    steps = np.full(len(order), 4)
    return [paired_batch(rows.tolist(), steps, encoded, None) for rows in chosen]


def backbone(shape: str, **changes: Any) -> Backbone:
    """A small model of random weights."""
    return Backbone(config={**SHAPES[shape], **changes}, tokenizer="synthetic")


def explicit(shape: str, **changes: Any) -> ExplicitCoT:
    """An explicit-CoT model."""
    torch.manual_seed(0)
    method = ExplicitCoT(backbone(shape, **changes), Template())
    method.configure_model()
    return method


def encoder() -> Encoder:
    """The student's."""
    return Encoder(load_tokenizer("synthetic", True), Template(), True)


def lori(shape: str, latents: int, batches: Sequence[PairedBatch], cached: bool, **terms: Any) -> LoRi:
    """A LoRi student of an explicit-CoT teacher of random weights, its terms measured on the batches.

    Args:
        shape: Architecture.
        latents: K.
        batches: The batches; with ``cached`` they get the teacher's packed statistics, and the teacher goes.
        cached: Whether the teacher's statistics are read instead of made.
        terms: ``alignment`` and ``anchor``, where they are not the defaults.
    """
    with tempfile.TemporaryDirectory() as folder:
        explicit(shape).student.save_pretrained(Path(folder) / "teacher")
        terms = {"alignment": LowRankAlignment(), "anchor": AnchorAlignment()} | terms
        method = LoRi(
            Backbone(), teacher=Backbone(name=f"{folder}/teacher"), latents=latents, template=Template(), **terms
        )
        method.configure_model()
    measure(method.named_terms, lambda _: (method.observed(batch, wants_student=False) for batch in batches))
    if cached:
        for batch in batches:
            signals = method.teacher_signals(batch)
            batch.statistics = {
                f"{name}/{key}": value
                for name, term in method.named_terms.items()
                for key, value in term.pack(term.teacher_statistics(signals)).items()
            }
        method.teacher = None
    return method


def stepper(method: ExplicitCoT | LoRi) -> Callable[[PairedBatch], None]:
    """One optimiser step: forward, backward, AdamW."""
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4)

    def step(batch: PairedBatch) -> None:
        loss, _ = method.losses(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def in_turns(tasks: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Seconds of each task, round by round, the tasks taking turns; a first round does not count."""
    times: list[list[float]] = [[] for _ in tasks]
    for number in range(rounds + 1):
        for task, found in zip(tasks, times, strict=True):
            start = time.perf_counter()
            task()
            if number:
                found.append(time.perf_counter() - start)
    return times


def median(values: Sequence[float]) -> float:
    """Their median."""
    return statistics.median(values)


def report(bar: str, value: float, limit: float, record: bool, **more: Any) -> None:
    """Prints the row as JSON, and puts it into the table."""
    command = shlex.join(["python", *(argument for argument in sys.argv if argument != "--record")])
    row = {"bar": bar, "value": round(value, 4), "commit": git_commit(), "command": command}
    if record:
        write_row(row)
    print(json.dumps({**row, "limit": limit, **more}))


def write_row(row: dict[str, Any]) -> None:
    """Puts a row into the table in place of an older one of the same bar."""
    others = [old for old in read_rows(RESULTS) if old["bar"] != row["bar"]]
    write_rows(RESULTS, sorted([*others, row], key=lambda each: str(each["bar"])))
