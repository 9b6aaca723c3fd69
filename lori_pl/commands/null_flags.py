"""Flags that set a nested field to null, in the one form that the parser takes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_NESTED = re.compile(
    r"--model\.(?:init_args\.)?(?P<part>backbone|teacher|decoder|stages)\.(?P<fields>[\w.]+)(?:=(?P<value>.*))?", re.S
)
"""A field of a model's dataclasses, some of which may be null."""


def nulls_in_mappings(arguments: Sequence[str]) -> list[str]:
    """Writes ``--model.backbone.name null`` as ``--model.backbone '{"name": null}'``.

    That changes that field alone, too; jsonargparse hands the first form on within the model's class as the text
    ``None``.

    Args:
        arguments: A command line.
    """
    written, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        found = _NESTED.fullmatch(argument)
        apart = found is not None and found["value"] is None
        if found is None or (rest[:1] if apart else [found["value"]]) != ["null"]:
            written.append(argument)
            continue
        if apart:
            rest.pop(0)
        nested: Any = None
        for field in reversed(found["fields"].split(".")):
            nested = {field: nested}
        written += [f"--model.{found['part']}", json.dumps(nested)]
    return written
