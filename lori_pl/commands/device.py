"""The device that an option names."""

from __future__ import annotations

from argparse import ArgumentParser

import torch

from lori_pl.errors import LoriError


def add_device(parser: ArgumentParser) -> None:
    """Adds the option ``--device``, by default the first GPU, or the processor where there is none."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu, cuda, cuda:1, ...")


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
