"""Files of a data set at its origin, and how they are fetched."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.progress import wrap_file

from lori_pl.errors import LoriError, one_line
from lori_pl.files import replace_file

log = logging.getLogger(__name__)

_PIECE = 1 << 20
_SECONDS = 60  # without a byte


@dataclass(frozen=True)
class PublishedFile:
    """A file of a data set at its origin.

    Args:
        name: What it is called in the source's folder.
        url: Where it lies, at a fixed commit.
        sha256: Of its bytes; ``None`` where the address alone fixes them.
    """

    name: str
    url: str
    sha256: str | None = None

    def is_at(self, path: Path) -> bool:
        """Whether a file is this one, as far as can be told."""
        if path.name != self.name or self.sha256 is None:
            return path.name == self.name
        return hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def fetch_file(published: PublishedFile, folder: Path) -> Path:
    """Fetches a file into a folder, whole or not at all.

    Args:
        published: The file.
        folder: Where it goes; made if it is not there.

    Returns:
        Its path.

    Raises:
        LoriError: If it cannot be fetched or written, is not the file that was published, or the network is not to be
            used (``HF_HUB_OFFLINE``, ``TRANSFORMERS_OFFLINE``).
    """
    target = folder / published.name
    by_hand = f"put it there by hand from {published.url}"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise LoriError(f"{target} is not here, and {name} forbids to fetch it: unset that, or {by_hand}")
    try:
        with urllib.request.urlopen(published.url, timeout=_SECONDS) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise _WrongContent("a web page came")
            size = int(answer.headers.get("Content-Length") or 0)
            silent = not sys.stdout.isatty()
            with wrap_file(answer, size, description=published.name, transient=True, disable=silent) as source:
                replace_file(target, lambda file: _copy(source, file, size, published.sha256))
    except (OSError, ValueError, http.client.HTTPException, _WrongContent) as error:
        raise LoriError(
            f"{target} cannot be fetched ({one_line(error)}); check network and disk, or {by_hand}"
        ) from error
    log.info("%s: fetched from %s", target, published.url)
    return target


class _WrongContent(Exception):
    """What was sent is not the file."""


def _copy(source: IO[bytes], file: IO[bytes], size: int, sha256: str | None) -> None:
    digest, length = hashlib.sha256(), 0
    while piece := source.read(_PIECE):
        digest.update(piece)
        length += len(piece)
        file.write(piece)
    if not length or (size and length != size):
        raise _WrongContent(f"{length} of {size} bytes came")
    if sha256 not in (None, digest.hexdigest()):
        raise _WrongContent(f"its SHA-256 is {digest.hexdigest()}, not {sha256}")
