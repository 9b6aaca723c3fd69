"""`prepare`: all that a run reads from elsewhere, fetched once, so that jobs run offline."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download

from lori_pl.commands.lightning import parse
from lori_pl.commands.own_options import OwnOptions
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.data.sources.base import RowSource, Source, Split
from lori_pl.data.sources.published import fetch_file
from lori_pl.errors import LoriError, one_line
from lori_pl.files import lock_folder, replace_file, replace_folder
from lori_pl.methods import Method
from lori_pl.models.backbone import Backbone
from lori_pl.models.saving import adapted_base

log = logging.getLogger(__name__)

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
OVERLAY = "local.yaml"


def main(arguments: list[str]) -> int:
    """Fetches models and data of a run, checks them, and copies them to a node's own disk if it is asked to.

    Args:
        arguments: ``--copy_to``, and what ``fit`` takes.

    Raises:
        LoriError: If something cannot be fetched or read, or the folder cannot be written.
    """
    options, rest = _parser().parse_known_args(arguments)
    cli = parse(["fit", *rest])
    method, data = cli.model, cli.datamodule
    places = {field: fetch(field, backbone) for field, backbone in backbones(method)}
    if options.copy_to is None:
        read_data(data)
    else:
        copy(method, places, Path(options.copy_to))
    return 0


def _parser() -> OwnOptions:
    parser = OwnOptions(
        "prepare",
        "Fetch all that a run reads from the network, models and data, at the revisions of its config, and read it "
        "once: jobs then run with HF_HUB_OFFLINE=1.",
    )
    parser.add_argument(
        "--copy_to",
        metavar="DIR",
        help="instead, copy models and cache to this folder, once a node, and write DIR/local.yaml: a config that goes "
        "behind the others of fit",
    )
    return parser


def backbones(method: Method) -> Iterator[tuple[str, Backbone]]:
    """The models that a run loads, each with the config's field that names it."""
    others = ((field, getattr(method, f"{field}_backbone", None)) for field in ("teacher", "decoder"))
    for field, backbone in (("backbone", method.backbone), *others):
        if backbone is not None and backbone.name is not None:
            yield field, backbone
            if (base := adapted_base(backbone)) is not None and base.name is not None:
                yield f"{field}'s base", base


def fetch(field: str, backbone: Backbone) -> Path:
    """Makes sure that a model's files are here.

    Returns:
        Their folder, or a GGUF file.

    Raises:
        LoriError: If they are not, and cannot be fetched.
    """
    name = str(backbone.name)
    if Path(name).exists() or name.endswith(".gguf"):
        if not Path(name).exists():
            raise LoriError(f"model.{field} '{name}': no such file; give its full path")
        log.info("%s: %s (here)", field, name)
        return Path(name)
    try:
        folder = Path(snapshot_download(name, revision=backbone.revision, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's client raises anything from OSError to its own errors
        raise LoriError(
            f"model.{field} '{name}' at revision {backbone.revision or 'main'} is neither a folder nor can it be "
            f"fetched ({one_line(error)}); check the name, the network and HF_TOKEN"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise LoriError(f"model.{field} '{name}' has no safetensors file, and nothing else is fetched")
    log.info("%s: %s at %s, %.2f GB", field, name, folder.name, size_of(folder) / 1e9)
    if backbone.revision in (None, "main"):
        log.info("%s: its revision is not pinned; for results, set it to %s", field, folder.name)
    return folder


def read_data(data: PairedDataModule) -> None:
    """Fetches what is not here and reads every split once, so that what is bad is found before a job starts."""
    wanted: list[tuple[Source, Split]] = [(data.source, "train"), (data.source, "validation")]
    wanted += [(source, "test") for source in data.tested.values()]
    for source, split in wanted:
        if isinstance(source, RowSource) and (file := source.absent(split)) is not None:
            fetch_file(file, source.path)
    data.setup("fit")
    if not data.tests:
        data.setup_tests()


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy(method: Method, places: dict[str, Path], target: Path) -> None:
    """Copies models and cache to a folder, and writes the config that names the copies.

    What is there already and has the same files is left as it is.

    Args:
        method: The run's method.
        places: Where its models are, by field.
        target: The folder.

    Raises:
        LoriError: If it cannot be written, or another process copies there.
    """
    found: dict[str, Any] = {}
    with lock_folder(target, "another process copies here"):
        try:
            for field, place in places.items():
                if field.endswith("base"):
                    raise LoriError(
                        "a model whose adapters lie apart from their base names that by its place, so a copy would "
                        "not be used: export it merged"
                    )
                name = mirror(place, target / field / place.name)
                found[field] = {"name": str(name), "revision": None}
            if (cache := getattr(method, "cache", None)) is not None:
                found["cache"] = str(mirror(Path(cache), target / "cache" / Path(cache).name))
        except OSError as error:
            raise LoriError(
                f"{target} cannot be written ({one_line(error)}); free space or give another folder"
            ) from error
        overlay = yaml.safe_dump({"model": {"init_args": found}})
        replace_file(target / OVERLAY, lambda file: file.write(overlay.encode()))
    log.info("%s: put --config %s behind the others", target, target / OVERLAY)


def mirror(source: Path, target: Path) -> Path:
    """Copies a folder or a file, whole or not at all; one of the same files, sizes and times is left as it is."""
    if _listing(source) == _listing(target):
        log.info("%s is there already", target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        with source.open("rb") as opened:
            replace_file(target, lambda file: shutil.copyfileobj(opened, file, 1 << 24))
        shutil.copystat(source, target)
    else:
        # what a hub's cache links to is copied
        replace_folder(target, lambda part: shutil.copytree(source, part, symlinks=False))
    log.info("%s: copied to %s", source, target)
    return target


def _listing(place: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file; of a place that is not there, something that no other has."""
    if place.is_file():
        return {"": (place.stat().st_size, place.stat().st_mtime_ns)}
    found: dict[str, tuple[int, int]] = {}
    for folder, _, names in os.walk(place, followlinks=True):
        for name in names:
            path = Path(folder) / name
            with suppress(OSError):
                found[str(path.relative_to(place))] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found or {json.dumps(str(place)): (-1, -1)}
