"""Under autocast, one cast of each training weight a step instead of one a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def weights_cast_once(device: torch.device) -> Iterator[None]:
    """Within the block autocast keeps the training weights that it has cast, for all passes; then they are dropped.

    Lightning turns that off, so that each of a step's passes (question, every latent, answer) would cast all weights
    anew, and the backward pass keep a copy of each. Nothing changes where autocast is off, and no value but by the type
    in which the passes' gradients of a weight are added up. Frozen weights autocast never keeps.

    Args:
        device: The model's.
    """
    kind = device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
        torch.clear_autocast_cache()
