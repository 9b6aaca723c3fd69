"""The data sources by name, and the one call that reads problems from any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lori_pl.data.problem import Problem
from lori_pl.data.sources.base import LoadedSplit, RowSource, Source, Split
from lori_pl.data.sources.fields import BadRow
from lori_pl.data.sources.gsm8k import GSM8K
from lori_pl.data.sources.gsm8k_aug import GSM8KAug
from lori_pl.data.sources.gsm_hard import GSMHard
from lori_pl.data.sources.hub import Hub
from lori_pl.data.sources.jsonl import JSONL
from lori_pl.data.sources.multiarith import MultiArith
from lori_pl.data.sources.multiplication import Multiplication
from lori_pl.data.sources.prosqa import ProsQA
from lori_pl.data.sources.published import PublishedFile
from lori_pl.data.sources.svamp import SVAMP
from lori_pl.data.sources.synthetic import Synthetic
from lori_pl.errors import LoriError

__all__ = [
    "GSM8K",
    "JSONL",
    "SOURCES",
    "SVAMP",
    "BadRow",
    "GSM8KAug",
    "GSMHard",
    "Hub",
    "LoadedSplit",
    "MultiArith",
    "Multiplication",
    "ProsQA",
    "PublishedFile",
    "RowSource",
    "Source",
    "Split",
    "Synthetic",
    "load_problems",
]

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (Synthetic, GSM8K, GSM8KAug, GSMHard, SVAMP, MultiArith, ProsQA, Multiplication, JSONL, Hub)
}


def load_problems(
    source: str, path: str | Path | None = None, split: Split | None = None, **options: Any
) -> list[Problem]:
    """Reads the problems of a source.

    Args:
        source: Its name, a key of `SOURCES`.
        path: Without a split a file, of which every row is read; with a split the source's folder (or data set), if it
            needs one.
        split: `train`, `validation` or `test`.
        options: Further arguments of the source's class, e.g. `rationale="natural"` for `gsm8k`, `revision` for `hub`.

    Raises:
        LoriError: The name or an option is unknown, or the source raises it.
    """
    if source not in SOURCES:
        raise LoriError(f"no data source '{source}'; use one of {', '.join(SOURCES)}")
    try:
        reader = SOURCES[source](**({"path": str(path)} if path else {}), **options)
    except TypeError as error:
        raise LoriError(f"{source}: {error}; see the arguments of {SOURCES[source].__name__}") from None
    if split is not None:
        return reader.load(split).problems
    if not path and isinstance(reader, RowSource):
        raise LoriError(f"{source}: no path given; name a file, of which every row is read, or ask for a split")
    return reader.read(path or "")
