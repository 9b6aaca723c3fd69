"""What `plan` predicts of a step's memory against what the allocator was asked for.

Run in the root of the repository: ``python experiments/bench/plan.py``. Peaks are of the CPU allocator's own events
(torch.profiler), not of resident memory, over two whole steps in the Trainer's order. Leaves ``plan.csv``
beside this file.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from common import VOCABULARY, bucketed, encoder, problems
from torch.profiler import ProfilerActivity, profile

from lori_pl.alignment import AnchorAlignment, LowRankAlignment
from lori_pl.data.pairing import PairedBatch
from lori_pl.evaluation.records import git_commit, write_rows
from lori_pl.methods import ExplicitCoT, LoRi, Method
from lori_pl.models.backbone import Backbone, LoRA
from lori_pl.planning import cost_of_step, hollow, weigh

TABLE = Path("experiments/bench/plan.csv")
COLUMNS = ("size", "method", "accumulated", "planned_mb", "measured_mb", "ratio", "commit", "command")
SIZES = {  # hidden size, layers
    "53M": (640, 10),
    "107M": (832, 12),
    "163M": (960, 14),
}
RUNS = (("explicit_cot", 1), ("explicit_cot", 2), ("lori", 1), ("lori_lora", 1))
"""Method, and batches whose gradients are accumulated."""
BATCH = 8


def method(size: str, kind: str) -> Method:
    """A method on a LLaMA-shaped model from a config, its teacher another one of that shape."""
    hidden, layers = SIZES[size]
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    }
    backbone = Backbone(tokenizer="synthetic", config=config, lora=LoRA(rank=16) if kind == "lori_lora" else None)
    if kind == "explicit_cot":
        return ExplicitCoT(backbone)
    terms = [LowRankAlignment(rank_hidden=32), AnchorAlignment()]
    teacher = Backbone(tokenizer="synthetic", config=config)
    return LoRi(backbone, teacher=teacher, student_init="base", latents=6, terms=terms)


def measured(built: Method, batch: PairedBatch, accumulated: int) -> int:
    """Peak bytes of two steps of so many batches, weights included."""
    built.configure_model()
    for term in getattr(built, "active_terms", []):
        term.assume_fitted()
    built.train()
    optimizer = built.optimizer([p for p in built.parameters() if p.requires_grad])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for number in range(2 * accumulated):
            loss, _ = built.losses(batch)
            loss.backward()
            del loss
            if (number + 1) % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()  # at once, as in a training
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + weigh([built]).bytes


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--record", action="store_true", help=f"write {TABLE}")
    arguments = options.parse_args()
    batch = bucketed(problems(64, encoder()), BATCH, 1)[0]
    command = shlex.join(["python", "experiments/bench/plan.py", *sys.argv[1:]])
    rows = []
    for size in SIZES:
        for kind, accumulated in RUNS:
            planned = method(size, kind)
            mode = hollow(planned)
            found = cost_of_step(planned, mode, batch, "32-true", on_gpu=False, accumulated=accumulated).parts().total
            del planned
            real = measured(method(size, kind), batch, accumulated)
            sizes = [round(found / 1e6, 1), round(real / 1e6, 1), round(found / real, 3)]
            rows.append([size, kind, accumulated, *sizes, git_commit(), command])
            print(*rows[-1][:6], flush=True)
    if arguments.record:
        write_rows(TABLE, [dict(zip(COLUMNS, row, strict=True)) for row in rows])


if __name__ == "__main__":
    main()
