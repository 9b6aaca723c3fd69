"""Reading a cache: checked once, then mapped, by row of the training set."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lori_pl.alignment.packing import prefixed
from lori_pl.cache.manifest import Manifest, ShardEntry, first_difference, read_manifest
from lori_pl.cache.shards import MappedShard, map_shard
from lori_pl.errors import LoriError
from lori_pl.files import file_checksum, reading

KEY = "key"
_OTHER_FILES = 512


class TeacherCache:
    """A finished cache.

    Args:
        folder: Its folder.

    Raises:
        LoriError: If the folder holds no finished cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self._shards: list[MappedShard] = []

    def __getstate__(self) -> dict[str, Any]:
        """A worker process maps the files itself."""
        return self.__dict__ | {"_shards": []}

    def check(self, wanted: dict[str, Any]) -> None:
        """Makes sure that the cache was built with what a run has.

        Args:
            wanted: The run's identity, or that part of it that is known.

        Raises:
            LoriError: Naming the first field that differs, and both values.
        """
        terms = self.manifest.identity["terms"]
        if absent := [name for name in wanted.get("terms", {}) if name not in terms]:
            raise LoriError(
                f"cache {self.folder} holds nothing for {absent[0]}, only for {', '.join(terms)}; build one with the "
                "terms of this run"
            )
        if difference := first_difference(self.manifest.identity, wanted):
            field, held, value = difference
            raise LoriError(
                f"cache {self.folder} was built with {field} {held}, and this run has {value}; give the old value, or "
                "build a cache for this run"
            )

    def verify(self) -> None:
        """Reads every file once and compares its checksum.

        Raises:
            LoriError: Naming the first file that is missing, was altered or cannot be read.
        """
        assert self.manifest.state is not None
        for entry in (self.manifest.state, *self.manifest.shards):
            path = self.folder / entry.file
            with reading(path):
                size = path.stat().st_size if path.is_file() else None
            if size is None:
                raise LoriError(f"{path} is missing; start `cache` again, which makes it anew")
            if size != entry.bytes or file_checksum(path) != entry.checksum:
                raise LoriError(f"{path} was altered or cut off; remove it and start `cache` again")

    def state(self, term: str) -> dict[str, Tensor]:
        """The teacher's side of a fitted term, by its name among the terms."""
        assert self.manifest.state is not None
        return of_term(map_shard(self.folder / self.manifest.state.file), term)

    def locate(self, keys: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """Finds rows, in any order and number.

        Args:
            keys: (n, 16) uint8, what `EncodedProblems.keys` gives.
            ids: The problems' ids, for the message.

        Returns:
            (n,) their places in the cache.

        Raises:
            LoriError: Naming the first that is not cached.
        """
        stored = torch.cat([shard.tensors[KEY] for shard in self._mapped()]).numpy()
        places = {row.tobytes(): place for place, row in enumerate(stored)}
        found = np.fromiter((places.get(row.tobytes(), -1) for row in keys), dtype=np.int64, count=len(keys))
        if (found < 0).any():
            first = int(np.flatnonzero(found < 0)[0])
            raise LoriError(
                f"cache {self.folder} lacks problem {ids[first]} ({int((found < 0).sum())} of {len(found)} training "
                "problems are not in it); build it from the same data, or train on fewer problems"
            )
        return found

    def read(self, places: np.ndarray) -> dict[str, Tensor]:
        """Reads the packed statistics of rows.

        Args:
            places: (B,) places in the cache.

        Returns:
            Tensors (B, ...) by ``TERM/NAME``.

        Raises:
            LoriError: If a file was cut off or lost since it was mapped.
        """
        files = self._mapped()
        mapped = [file.tensors for file in files]
        ends = np.cumsum([len(shard[KEY]) for shard in mapped])
        shards = np.searchsorted(ends, places, side="right")
        for shard in np.unique(shards):
            files[shard].check()
        rows = places - np.concatenate([[0], ends])[shards]
        result: dict[str, Tensor] = {}
        for name, like in mapped[0].items():
            if name != KEY:
                parts = [mapped[s][name][r] for s, r in zip(shards.tolist(), rows.tolist(), strict=True)]
                result[name] = torch.stack(parts) if parts else like[:0]
        return result

    def _mapped(self) -> list[MappedShard]:
        if not self._shards:
            _allow_open_files(len(self.manifest.shards))
            self._shards = [self._map(entry) for entry in self.manifest.shards]
        return self._shards

    def _map(self, entry: ShardEntry) -> MappedShard:
        shard = MappedShard(self.folder / entry.file)
        if shard.bytes != entry.bytes:
            raise LoriError(
                f"{shard.path} has {shard.bytes:,} bytes, and the manifest says {entry.bytes:,}; start `cache` again, "
                "which makes it anew"
            )
        return shard


def _allow_open_files(more: int) -> None:
    """Raises this process's limit, as far as the system lets it: every mapped shard holds a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class CachedRows:
    """The part of a cache that belongs to a training set, by row number.

    Args:
        cache: The cache.
        places: (n,) place of each row.
    """

    def __init__(self, cache: TeacherCache, places: np.ndarray) -> None:
        self.cache = cache
        self.places = places

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Packed statistics (B, ...) of ``rows`` by ``TERM/NAME``."""
        return self.cache.read(self.places[np.asarray(rows, dtype=np.int64)])


def of_term(packed: dict[str, Tensor], term: str) -> dict[str, Tensor]:
    """That part of tensors by ``TERM/NAME`` which belongs to one term, by ``NAME``."""
    return prefixed(packed, f"{term}/")
