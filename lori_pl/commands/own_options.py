"""Options of commands that take those of ``fit`` besides."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn

from lori_pl.errors import LoriError


class OwnOptions(ArgumentParser):
    """Parses the options that a command has besides those of ``fit``, which ``parse_known_args`` leaves over."""

    def __init__(self, command: str, description: str) -> None:
        epilog = "All other options are those of fit; `python -m lori_pl fit --help` lists them."
        usage = f"python -m lori_pl {command} [options] [what fit takes]"
        super().__init__(prog=command, usage=usage, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises what the command line shows as one line."""
        raise LoriError(f"{message}; see `python -m lori_pl {self.prog} --help`")
