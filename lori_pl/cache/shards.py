"""Sealed files: safetensors that appear whole or not at all, carry their checksum in their name, and are mapped."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lori_pl.errors import LoriError, one_line
from lori_pl.files import checksum, file_checksum, keep_names, reading

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def sealed_paths(folder: Path, name: str) -> list[Path]:
    """The files of a name, whatever their checksums."""
    return sorted(folder.glob(f"{name}-*.safetensors"))


def shard_name(number: int) -> str:
    """What a shard is called, its checksum apart."""
    return f"shard-{number:05d}"


def seal(path: Path) -> str:
    """The checksum that a file's name gives."""
    return path.stem.rpartition("-")[2]


def is_sound(path: Path) -> bool:
    """Whether a file's content has the checksum that its name gives."""
    return file_checksum(path) == seal(path)


def write_sealed(folder: Path, name: str, tensors: Mapping[str, Tensor], terms: str = "") -> Path:
    """Writes a file beside its place, reads it back, and only then moves it there.

    Args:
        folder: The cache's folder.
        name: What it is called.
        tensors: Its tensors, on the CPU.
        terms: Seal of the terms' state that a shard was packed with.

    Returns:
        The file: ``NAME-CHECKSUM.safetensors``.

    Raises:
        LoriError: If the disk is full or cannot be written, or holds something else than was written.
    """
    content = safetensors.torch.save(dict(tensors), {"terms": terms} if terms else None)
    path = folder / f"{name}-{checksum(content)}.safetensors"
    write_file(path, content)
    return path


def packed_with(path: Path) -> str:
    """Seal of the terms' state that a sound shard was packed with."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return str(header.get("__metadata__", {}).get("terms", ""))


def write_file(path: Path, content: bytes) -> None:
    """Writes a file beside its place, reads it back, and only then moves it there.

    Raises:
        LoriError: If the disk is full or cannot be written, or holds something else than was written.
    """
    # of its own for each process: two of them never write into one file
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if file_checksum(part) != checksum(content):
            raise LoriError(f"{path}: the disk gave back something else than was written; use another one")
        os.replace(part, path)
        keep_names(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LoriError(
                f"{path}: no space left for {len(content):,} bytes; free some and start again: what is whole stays"
            ) from error
        raise LoriError(f"{path} cannot be written ({one_line(error)}); give another folder") from error
    finally:
        part.unlink(missing_ok=True)


class MappedShard:
    """A shard mapped into memory: its tensors, of which only what is read comes from the disk.

    Args:
        path: The file.

    Raises:
        LoriError: If it is missing, cut off or no shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path), path.open("rb") as file:
            try:
                # copy on write: nothing reaches the file, which may be read-only
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                self.tensors = _tensors(self._map)
            except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
                raise LoriError(f"{path} is no whole shard ({one_line(error)}); build the cache again") from error

    @property
    def bytes(self) -> int:
        """Size of what was mapped."""
        return len(self._map)

    def check(self) -> None:
        """Makes sure that the file still is what was mapped: to read what was cut off ends a process by SIGBUS.

        Raises:
            LoriError: If it was cut off, or the file system has lost it.
        """
        with reading(self.path):
            size = self._map.size()
        if size < self.bytes:
            raise LoriError(
                f"{self.path} was cut off while it was in use, to {size:,} of {self.bytes:,} bytes; start `cache` "
                "again, which makes it anew"
            )


def _tensors(mapped: mmap.mmap) -> dict[str, Tensor]:
    length = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + length]) if length < len(mapped) else {}
    header.pop("__metadata__", None)
    start = 8 + length
    data = torch.from_numpy(np.ndarray((len(mapped) - start,), np.uint8, mapped, start))
    tensors = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        if end > len(data):
            raise ValueError(f"'{name}' ends at byte {end} of {len(data)}")
        tensors[name] = data[first:end].view(_TYPES[entry["dtype"]]).view(entry["shape"])
    return tensors


def map_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a `MappedShard`.

    Raises:
        LoriError: As `MappedShard`.
    """
    return MappedShard(path).tensors
