"""Prints how often each digit of an answer is right, from files that `lori_pl predict` wrote, as a table of Markdown.

Run in the root of the repository: ``python experiments/figures/digits.py FILE...``. A row is named by its file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lori_pl.report.markdown import as_markdown
from lori_pl.report.tables import Table


def right(file: Path) -> np.ndarray:
    """(problems, digits): whether each digit of the answer stands at its place in what was predicted."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [(line["gold"].split(), line["prediction"].split()) for line in lines]
    width = max(len(gold) for gold, _ in pairs)
    padded = [(gold, [*said, *[""] * width]) for gold, said in pairs]  # what was not said is wrong
    return np.array([[g == p for g, p in zip(gold, said, strict=False)] for gold, said in padded])


def main(arguments: Sequence[str]) -> None:
    found = {Path(name).stem: right(Path(name)) for name in arguments}
    digits = max(each.shape[1] for each in found.values())
    heads = ["digits right (%)", *(str(place) for place in range(1, digits + 1)), "all"]
    shares = {name: [*each.mean(0), each.mean()] for name, each in found.items()}
    rows = [[name, *(f"{100 * share:.1f}" for share in each)] for name, each in shares.items()]
    print(as_markdown(Table(heads, rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
