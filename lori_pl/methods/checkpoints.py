"""Reading checkpoints safely."""

from __future__ import annotations

from typing import Any

import torch

from lori_pl.errors import LoriError


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint; no code runs from it.

    Raises:
        LoriError: If it cannot be read.
    """
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError on a damaged file
        raise LoriError(f"{path} is no readable checkpoint ({type(error).__name__}); give another one") from error
    return saved
