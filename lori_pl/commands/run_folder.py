"""The folder of a run: what it holds, who may write there, and which checkpoint a run goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lori_pl.checkpoint_files import SUFFIX, checkpoints_in, newest_sound, read_checkpoint
from lori_pl.errors import LoriError
from lori_pl.files import clear_halves, lock_folder
from lori_pl.methods.checkpoints import check_made_by
from lori_pl.models.saving import read_settings
from lori_pl.run_files import CHECKPOINTS, CONFIG, STUDENT, SUMMARY


def resolve_checkpoint(subcommand: str, options: Any, root: Path, method: str) -> str | None:
    """Finds what ``ckpt_path`` means, and leaves a checkpoint's path, or ``None``, in the options.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        options: Its parsed options.
        root: The run's folder.
        method: Name of the method that must have made a checkpoint.

    Returns:
        A student's folder, if ``ckpt_path`` named one.

    Raises:
        LoriError: If there is nothing of that name, or not what the sub-command takes, or a checkpoint is damaged.
    """
    path = wanted = options.get("ckpt_path")
    if subcommand == "fit" and path in ("last", "auto", "best"):
        path = options["ckpt_path"] = _of_this_run(path, root / CHECKPOINTS)
    if path in (None, "best"):
        if subcommand != "fit":
            raise LoriError(
                f"`{subcommand}` needs trained weights: give --ckpt_path, a checkpoint or a student's folder"
            )
        return None
    if subcommand != "fit" and path in ("last", "auto"):
        raise LoriError(
            f"--ckpt_path {path}: `{subcommand}` takes a checkpoint's file, such as RUN/{CHECKPOINTS}/best{SUFFIX}, or "
            f"a student's folder, such as RUN/{STUDENT}"
        )
    if Path(str(path)).is_dir():
        refuse_run_folder(Path(str(path)), takes_student=subcommand != "fit")
        read_settings(Path(str(path)))
        if subcommand == "fit":
            raise LoriError(
                f"--ckpt_path {path} is a student's folder, and `fit` goes on from a checkpoint only; to start "
                "from its weights give --model.backbone.name"
            )
        options["ckpt_path"] = None
        return str(path)
    if not Path(str(path)).is_file():
        raise LoriError(f"--ckpt_path {path}: no such file or folder")
    # what `last` and `auto` found has been checked
    checked = subcommand != "fit" or wanted not in ("last", "auto")
    check_made_by(read_checkpoint(str(path), mmap=True, checked=checked), method)
    return None


def refuse_run_folder(folder: Path, takes_student: bool) -> None:
    """Refuses the folder of a run, where a checkpoint is wanted.

    Args:
        folder: What was given.
        takes_student: Whether a student's folder does, too.

    Raises:
        LoriError: Naming what there is of both.
    """
    within = [folder / STUDENT] if takes_student and (folder / STUDENT).is_dir() else []
    within += sorted(checkpoints_in(folder / CHECKPOINTS))
    if within:
        names = ", ".join(map(str, within))
        raise LoriError(f"--ckpt_path {folder} is a run's folder: give one of what is in it ({names})")


def _of_this_run(name: str, folder: Path) -> str | None:
    found = folder / f"best{SUFFIX}" if name == "best" else newest_sound(folder)
    if found is not None and found.is_file():
        return str(found)
    if name == "auto":
        return None
    missing = f"{found} does not exist" if found is not None else f"{folder} holds no checkpoint"
    raise LoriError(f"--ckpt_path {name}: {missing}, so there is nothing to go on with")


def check_folder(subcommand: str, wanted: str | None, root: Path) -> None:
    """Refuses a folder that holds another run.

    Args:
        subcommand: ``fit`` or ``test``.
        wanted: ``ckpt_path`` as it was given; ``auto`` takes a run that had not come to a checkpoint for its own.
        root: The folder.

    Raises:
        LoriError: Naming what is there.
    """
    for name in (SUMMARY, STUDENT) if wanted == "auto" else (CONFIG, SUMMARY, STUDENT):
        if (root / name).exists():
            go_on = ", or go on with it by --ckpt_path last" if subcommand == "fit" else ""
            raise LoriError(
                f"{root} holds another run ({name}); remove it, give another --trainer.default_root_dir{go_on}"
            )


def checkpoints_seen(root: Path) -> dict[str, tuple[int, int]]:
    """The checkpoints of a run's folder by name, with what changes when one is written anew."""
    seen = {}
    for path in checkpoints_in(root / CHECKPOINTS):
        with suppress(FileNotFoundError):
            found = path.stat()
            seen[path.name] = found.st_ino, found.st_mtime_ns
    return seen


@contextmanager
def held(root: Path, seen: dict[str, tuple[int, int]]) -> Iterator[None]:
    """Holds a run's folder, so that no second training writes there, and clears what a killed one left half-written.

    Args:
        root: The folder.
        seen: Its `checkpoints_seen` when it was decided what to go on from.

    Raises:
        LoriError: If another training holds it, or has held it since, or it cannot be written.
    """
    with lock_folder(root, "another training works here"):
        if checkpoints_seen(root) != seen:
            raise LoriError(f"{root}: another training wrote checkpoints here while this one started; start it again")
        for part in (root / CHECKPOINTS).glob(f".*{SUFFIX}.*"):
            part.unlink(missing_ok=True)
        clear_halves(root / STUDENT)
        yield
