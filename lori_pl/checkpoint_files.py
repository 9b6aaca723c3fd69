"""Checkpoints on disk: written whole or not at all, read without running code, the newest sound one found."""

from __future__ import annotations

import logging
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lori_pl.errors import LoriError, one_line
from lori_pl.files import replace_file

log = logging.getLogger(__name__)

SUFFIX = ".ckpt"
LAST = f"last{SUFFIX}"
_FILE = "lori_pl_file"  # only once it is read


def read_checkpoint(path: str | Path, mmap: bool = False, checked: bool = False) -> dict[str, Any]:
    """Reads a checkpoint; no code runs from it.

    Args:
        path: The file.
        mmap: Leave tensors in the file until they are used.
        checked: Compare its checksums, at which torch does not look.

    Raises:
        LoriError: If it cannot be read, or ``checked`` finds a byte that is not what was written.
    """
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError on a damaged file
        raise LoriError(f"{path} is no readable checkpoint ({type(error).__name__}); give another one") from error
    if not isinstance(saved, dict):
        raise LoriError(f"{path} is no checkpoint, it holds a {type(saved).__name__}; give another one")
    if checked and (reason := damage(Path(path))):
        raise LoriError(
            f"{path} is damaged ({reason}); put it back from a copy, or give another one: fit's --ckpt_path last finds "
            "the newest that is sound"
        )
    saved[_FILE] = str(path)
    return saved


def place_of(checkpoint: Mapping[str, Any]) -> str:
    """Where a checkpoint was read from, for messages."""
    return f"the checkpoint {checkpoint[_FILE]}" if _FILE in checkpoint else "the checkpoint"


def damage(path: Path) -> str:
    """What is wrong with a checkpoint's bytes; nothing where all checksums hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, struct.error, ValueError, RuntimeError, EOFError) as error:
        return one_line(error)
    # the name is the file's, and may hold anything
    return f"{one_line(wrong)} has another checksum" if wrong else ""


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, none that is being written; nothing where there is no folder."""
    return list(folder.glob(f"[!.]*{SUFFIX}"))


def newest_sound(folder: Path) -> Path | None:
    """Finds the checkpoint of the most steps whose bytes are what was written; a damaged one is named and passed over.

    Args:
        folder: Where a run keeps its checkpoints.

    Returns:
        Its path; ``None`` where there is no checkpoint.

    Raises:
        LoriError: If there are some, and all are damaged.
    """
    steps: dict[Path, int] = {}
    damaged: dict[Path, str] = {}
    for path in checkpoints_in(folder):
        try:
            steps[path] = int(read_checkpoint(path, mmap=True)["global_step"])
        except (LoriError, KeyError, TypeError, ValueError) as error:
            damaged[path] = damage(path) or one_line(error)
    # the newest, and of those of one step the last
    for path in sorted(steps, key=lambda path: (steps[path], path.name == LAST), reverse=True):
        if not (reason := damage(path)):
            for other, what in damaged.items():
                log.warning("%s is damaged (%s): passed over for %s of step %d", other, what, path.name, steps[path])
            return path
        damaged[path] = reason
    if damaged:
        listed = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise LoriError(
            f"no checkpoint in {folder} is sound ({listed}): put one back from a copy, or start anew in another "
            "--trainer.default_root_dir"
        )
    return None


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's way to checkpoint files, made safe.

    A checkpoint is written under another name, brought to the disk, and only then moved to its own, so that a run that
    is killed at any moment leaves the one before; reading it runs no code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            LoriError: If it cannot be written; an earlier one of that name is still there.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are plain files: storage_options mean nothing here")
        try:
            replace_file(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise LoriError(
                f"the checkpoint {path} cannot be written ({one_line(reason)}); checkpoints written before are whole: "
                "free space or mend the folder, and go on with --ckpt_path last"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint to the CPU.

        Raises:
            LoriError: If it cannot be read.
        """
        return read_checkpoint(path)
