"""What a command that fails has to print."""

from __future__ import annotations

import re


def message(capsys) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def fails(world, capsys, *pattern: str, method="ExplicitCoT", command="fit", flags=(), root="run", **arguments) -> None:
    assert world.run(command, *flags, method=method, root=root, **arguments) == 2
    text = message(capsys)
    for part in pattern:
        assert re.search(part, text), text
