"""Sealed files: safetensors that appear whole or not at all, carry their checksum in their name, and are mapped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lori_pl.errors import LoriError, one_line

_BLOCK = 1 << 22
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def checksum(content: bytes) -> str:
    """BLAKE2b of 16 bytes, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """The `checksum` of a file's content, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LoriError(
                f"{path}: no space left for {len(content):,} bytes; free some and start again: what is whole stays"
            ) from error
        raise LoriError(f"{path} cannot be written ({one_line(error)}); give another folder") from error
    finally:
        part.unlink(missing_ok=True)


def map_shard(path: Path) -> dict[str, Tensor]:
    """Maps a shard into memory: its tensors, of which only what is read comes from the disk.

    Raises:
        LoriError: If the file is missing, cut off or no shard.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        # copy on write: nothing reaches the file, which may be read-only
        data = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", offset=8 + length))
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if end > len(data):
                raise ValueError(f"'{name}' ends at byte {end} of {len(data)}")
            tensors[name] = data[start:end].view(_TYPES[entry["dtype"]]).view(entry["shape"])
        return tensors
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise LoriError(f"{path} is no whole shard ({one_line(error)}); build the cache again") from error
