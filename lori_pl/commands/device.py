"""The device that an option names."""

from __future__ import annotations

import torch

from lori_pl.errors import LoriError


def find_device(name: str) -> torch.device:
    """Looks for the device that ``--device`` names.

    Raises:
        LoriError: If there is none of that name here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoriError(f"--device {name} is not to be had here; give cpu, or the name of a device of torch") from error
    return device
