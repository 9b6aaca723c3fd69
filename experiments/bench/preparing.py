"""Times how fast training problems are made, encoded and measured: the world of configs/data/synthetic.yaml.

Run in the root of the repository: ``python experiments/bench/preparing.py``. With another checkout as its argument
(``git worktree add /tmp/before COMMIT``) both take turns, and the ratio of their best times is told. What is counted
is processor time, so that other work on the machine matters little.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

PROBLEMS = 20_000
ROUNDS = 3
TOKENS = ("all", "step_results")
WORLD = Path("configs/data/synthetic.yaml")


def seconds(tokens: str) -> float:
    from lori_pl.data.datamodule import PairedDataModule
    from lori_pl.data.sources import Synthetic

    data = yaml.safe_load(WORLD.read_text(encoding="utf-8"))["data"]
    source = Synthetic(**{**data["source"]["init_args"], "train": PROBLEMS})
    module = PairedDataModule(source, rationale_tokens=tokens, max_length=data["max_length"])
    start = time.process_time()
    module.prepare(source, "train")
    return time.process_time() - start


def best(checkouts: list[Path]) -> list[list[float]]:
    times: list[list[list[float]]] = [[] for _ in checkouts]
    for _ in range(ROUNDS):
        for folder, found in zip(checkouts, times, strict=True):
            environment = {**os.environ, "PYTHONPATH": str(folder.resolve()), "TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(
                [sys.executable, __file__, "--once"], env=environment, check=True, capture_output=True, text=True
            )
            found.append([float(time) for time in done.stdout.split()])
    return [[min(rounds) for rounds in zip(*found, strict=True)] for found in times]


def main() -> None:
    if sys.argv[1:] == ["--once"]:
        print(*map(seconds, TOKENS))
        return
    here, *there = best([Path(), *map(Path, sys.argv[1:2])])
    for i, tokens in enumerate(TOKENS):
        line = f"{tokens:12}  {PROBLEMS / here[i]:8,.0f} problems/s"
        if there:
            line += f"  there {PROBLEMS / there[0][i]:8,.0f}  ratio {there[0][i] / here[i]:.2f}"
        print(line)


if __name__ == "__main__":
    main()
