"""Files and folders that appear whole or not at all, what sums them up, and a folder that one process holds."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lori_pl.errors import LoriError, one_line

log = logging.getLogger(__name__)

_BLOCK = 1 << 22
_LOCKS: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _let_go() -> None:
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


# data workers are forked, and live on for some seconds when their training is killed
os.register_at_fork(after_in_child=_let_go)


def replace_file(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file beside its place and moves it there, so that nobody ever sees half of it.

    Args:
        path: The file to make or replace; its folder is made.
        write: Called with the open temporary file; where it raises, the old file stays as it was.
    """
    with _beside(Path(path), write) as temporary:
        os.replace(temporary, path)


def make_file(path: str | Path, write: Callable[[IO[bytes]], object]) -> bool:
    """Makes a file that nobody ever sees half of, unless there is one: the file server decides.

    A client of a network file system may remember for a while that a name was not there, and ``exists`` says so.

    Args:
        path: The file to make; its folder is made.
        write: Called with the open temporary file.

    Returns:
        Whether it was made; ``False`` leaves what is there as it was.
    """
    path = Path(path)
    with _beside(path, write) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # some file systems have no links
            if path.exists():
                return False
            os.replace(temporary, path)
    return True


@contextmanager
def _beside(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """A file that is written and brought to the disk beside its place; what the block does not move away is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    # the process's umask says who may read it: mkstemp would make it private
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    keep_names(path.parent)


def keep_names(folder: Path) -> None:
    """Brings a folder's names to the disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(path: str | Path, write: Callable[[Path], object]) -> None:
    """Writes a folder beside its place and moves it there; an earlier one goes only when the new one is on the disk.

    A process that is killed while it does so leaves a folder ``.NAME.*``, for `clear_halves`.

    Args:
        path: The folder to make or replace.
        write: Called with a path of the same name that does not exist yet, where it makes the folder.

    Raises:
        LoriError: If it is the folder that the command runs in, which cannot be moved.
    """
    path = Path(path).absolute()
    if path == Path.cwd():
        raise LoriError(f"{path} is the folder that the command runs in; give another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    part, old = temporary / "new" / path.name, temporary / "old"
    try:
        part.parent.mkdir()
        write(part)
        _keep_tree(temporary)
        keep_names(path.parent)
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(part, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        for folder in (path.parent, part.parent, temporary):
            keep_names(folder)
    finally:
        if path.exists() or not old.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _keep_tree(folder: Path) -> None:
    """Brings all files of a folder and its folders to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            keep_names(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def clear_halves(path: Path) -> None:
    """Clears what a killed `replace_folder` left beside a folder, which nobody else may be writing.

    Where it was killed between moving the old folder away and the new one there, the old one is put back.

    Args:
        path: The folder.
    """
    for temporary in path.parent.glob(f".{path.name}.*"):
        old, part = temporary / "old", temporary / "new" / path.name
        # without the new one the move was done, and somebody has removed the folder since
        if old.exists() and part.exists() and not path.exists():
            os.replace(old, path)
            keep_names(path.parent)
            log.warning("%s: the one before is back: a process was killed while it was being replaced", path)
        shutil.rmtree(temporary, ignore_errors=True)


class FolderBusy(LoriError):
    """Another process holds a folder."""


@contextmanager
def lock_folder(folder: Path, busy: str, wait: bool = False) -> Iterator[int]:
    """Makes a folder and holds it, so that another process of the same kind cannot work in it.

    A program that is started with the descriptor holds it too; a forked process does not.

    Args:
        folder: The folder.
        busy: What the error says where another process holds it, behind the folder's name.
        wait: Wait for another process instead.

    Yields:
        The lock's descriptor.

    Raises:
        FolderBusy: If another process holds it.
        LoriError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LoriError(f"{folder} cannot be written ({one_line(error)}); give another folder") from error
    _LOCKS.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise FolderBusy(f"{folder}: {busy}: wait for it or end it") from error
        except OSError:  # some network file systems have no locks
            log.warning("%s: this file system has no locks, so mind that only one process works there", folder)
        yield descriptor
    finally:
        if descriptor in _LOCKS:  # a forked process that comes to here has closed it
            _LOCKS.discard(descriptor)
            os.close(descriptor)


def check_place(path: Path) -> None:
    """Looks whether something can be made at a place, before the work whose result it is to be; its parents are made.

    Raises:
        LoriError: If nothing can.
    """
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LoriError(f"{path} cannot be made ({one_line(error)}); give another place") from error


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder, which is made, knows locks at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def checksum(content: bytes) -> str:
    """BLAKE2b of 16 bytes, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """The `checksum` of a file's content, read in blocks.

    Raises:
        LoriError: If the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with reading(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block what a disk or a network file system refuses is one line.

    Raises:
        LoriError: Naming the file.
    """
    try:
        yield
    except OSError as error:
        raise LoriError(
            f"{path} cannot be read ({one_line(error)}); mend the disk or the mount, and where it is gone make it again"
        ) from error
