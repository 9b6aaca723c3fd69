"""What a cache's numbers depend on, as JSON beside them, and its comparison with what a run has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lori_pl.cache.shards import reading
from lori_pl.errors import LoriError, one_line

MANIFEST = "manifest.json"
PLAN = "plan.json"
FORMAT = 1


@dataclass
class ShardEntry:
    """One file of a cache: its name, number of problems, bytes and checksum."""

    file: str
    problems: int
    bytes: int
    checksum: str


@dataclass
class Manifest:
    """Describes a cache.

    Args:
        identity: What the numbers depend on: ``teacher`` (digests of weights and tokenizer, type, layers), ``data``
            (template, rationale tokens), ``statistics`` (problems measured), ``terms`` by name.
        rows: Digest of the keys of all rows, in order.
        problems: Number of rows.
        shape: Layers and hidden size of the teacher's trajectories.
        dtype: Type of the stored statistics.
        shard_problems: Problems of every shard but the last; in a plan, 0 where their size decides.
        shards: The files, in order.
        state: The file of the terms' teacher side.
        versions: Libraries, and commit, that made it.
        made: Facts of the build that nothing depends on.
        format: Version of this layout.
    """

    identity: dict[str, Any]
    rows: str
    problems: int
    shape: dict[str, int]
    dtype: str
    shard_problems: int
    shards: list[ShardEntry] = field(default_factory=list)
    state: ShardEntry | None = None
    versions: dict[str, str] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def plan(self) -> dict[str, Any]:
        """What must agree for an interrupted build to go on: all but what the build itself brings."""
        content = asdict(self)
        names = ("format", "identity", "rows", "problems", "shape", "dtype", "shard_problems")
        return {name: content[name] for name in names}

    def as_json(self) -> bytes:
        """The file's content."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Reads a cache's manifest.

    Raises:
        LoriError: If it is missing, damaged, of another format or cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        begun = " (it is not finished: start `cache` again)" if (folder / PLAN).is_file() else ""
        raise LoriError(
            f"{folder} has no {MANIFEST}, so it holds no cache{begun}; make one with `python -m lori_pl cache`, or "
            "give another folder"
        )
    with reading(path):
        stored = path.read_bytes()
    try:
        content = json.loads(stored.decode("utf-8"))
        if content["format"] != FORMAT:
            raise LoriError(f"{path} has format {content['format']!r}, this version reads {FORMAT}: build it again")
        content["shards"] = [ShardEntry(**entry) for entry in content["shards"]]
        content["state"] = ShardEntry(**content["state"])
        manifest = Manifest(**content)
        _check(manifest)
        return manifest
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, LoriError):
            raise
        raise LoriError(f"{path} is damaged ({one_line(error)}); build the cache again") from error


def _check(manifest: Manifest) -> None:
    """Makes sure of the types of what is read later, and that no file lies outside the folder.

    Raises:
        ValueError: Naming the field.
    """
    entries = [manifest.state, *manifest.shards]
    texts = {"rows": manifest.rows, "dtype": manifest.dtype}
    numbers = {"problems": manifest.problems, "shard_problems": manifest.shard_problems}
    for entry in entries:
        if not isinstance(entry, ShardEntry) or not isinstance(entry.file, str):
            raise ValueError("shards: an entry names no file")
        if entry.file != Path(entry.file).name or entry.file in ("", ".", ".."):
            raise ValueError(f"shards: '{entry.file}' is no file of this folder")
        texts[f"shards: {entry.file}: checksum"] = entry.checksum
        numbers |= {f"shards: {entry.file}: problems": entry.problems, f"shards: {entry.file}: bytes": entry.bytes}
    if set(manifest.shape) != {"layers", "hidden"}:
        raise ValueError("shape: layers and hidden are wanted")
    numbers |= manifest.shape
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} is no text")
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{name} is no count")
    if sum(entry.problems for entry in manifest.shards) != manifest.problems:
        raise ValueError("shards: they have not as many problems as the cache")
    identity = manifest.identity
    if not isinstance(identity, dict) or not isinstance(identity.get("terms"), dict):
        raise ValueError("identity: terms are wanted")


def read_plan(folder: Path) -> dict[str, Any]:
    """Reads what an interrupted build was to make.

    Raises:
        LoriError: If the file is damaged.
    """
    path = folder / PLAN
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plan, dict):
            raise ValueError("it holds no fields")
        return plan
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise LoriError(f"{path} is damaged ({one_line(error)}); remove {folder} and build the cache anew") from error


def first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field of ``wanted`` that ``stored`` has otherwise: its dotted name and both values."""
    for name, value in _flat(wanted):
        held: Any = stored
        for part in name:
            held = held.get(part) if isinstance(held, Mapping) else None
        if _plain(held) != _plain(value):
            return ".".join(name), held, value
    return None


def _flat(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _plain(value: Any) -> Any:
    # as JSON gives it back
    return json.loads(json.dumps(value))
