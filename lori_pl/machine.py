"""What this program runs on."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """The processor's name as the system tells it, and its architecture: `AMD EPYC 9654 96-Core Processor, x86_64`."""
    names = [platform.processor()]
    with suppress(OSError, UnicodeDecodeError):  # Linux
        found = re.findall(r"^model name\s*:\s*(\S.*?)\s*$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        names = found or names
    architecture = platform.machine()
    return architecture if names[0] in ("", architecture) else f"{names[0]}, {architecture}"
