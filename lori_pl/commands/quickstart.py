"""`quickstart`: the main job on the embedded default, and what came out of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lori_pl.errors import LoriError
from lori_pl.evaluation.report import print_table, write_json
from lori_pl.files import replace_folder
from lori_pl.run_files import STUDENT, SUMMARY
from lori_pl.sweep.command import INTERRUPTED, look_at, signals_interrupt
from lori_pl.sweep.runner import Sweep, settled_states
from lori_pl.sweep.specification import load_specification
from lori_pl.sweep.summary import read_entry
from lori_pl.tables import say

RECIPE = Path("experiments/quickstart.yaml")
USAGE = f"""usage: python -m lori_pl quickstart [-h] [FILE]

Train No-CoT, latents alone and LoRi from the shipped teacher, compare them, and keep LoRi's student in the sweep's
folder. Started again, it goes on where it stopped: a finished part is not done again.

positional arguments:
  FILE        a sweep file of the same kind (default: {RECIPE})

options:
  -h, --help  show this help message and exit
"""


def main(arguments: list[str]) -> int:
    """Trains No-CoT, latent-only and LoRi from the shipped teacher, compares them, and keeps LoRi's student.

    Args:
        arguments: A sweep file of the same kind; by default ``experiments/quickstart.yaml``.

    Raises:
        LoriError: If the file is missing, a cell's options are not taken, or a run failed.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    recipe = Path(arguments[0]) if arguments else RECIPE
    if not recipe.is_file():
        raise LoriError(
            f"{recipe}: no such file; run the quickstart in the root of the repository, or name a sweep file"
        )
    sweep = Sweep(load_specification(recipe))
    if len(sweep.specification.seeds) > 1 or sweep.specification.search is not None or sweep.specification.tests:
        raise LoriError(
            f"{recipe}: a quickstart compares one run a method, and this file has several seeds, a search or tests; "
            f"run it with `lori_pl sweep {recipe}`"
        )
    try:
        with signals_interrupt():
            look_at(sweep, sweep.examples(skipped=settled_states(retry_failed=True)))
            failed = sweep.run(retry_failed=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    if failed:
        raise LoriError(f"{failed} runs failed; their log.txt lie under {sweep.output}")
    results = sweep.results()
    if missing := sum(sweep.status(cell, results) != "ok" for cell in sweep.cells):
        raise LoriError(f"{missing} runs are at work in another process; start the quickstart again when it has ended")
    methods, folders = collect(sweep)
    write_json(sweep.output / SUMMARY, {"methods": methods})
    print_table(methods)
    floor = next(iter(methods.values()))["floor"]
    say(f"always the most frequent answer: {100 * floor:.1f}")
    if "lori" in folders:
        replace_folder(sweep.output / STUDENT, lambda part: shutil.copytree(folders["lori"] / STUDENT, part))
        say(f"student:     {sweep.output / STUDENT}  (LatentReasoner.from_pretrained)")
    say(f"summary:     {sweep.output / SUMMARY}")
    say(f"TensorBoard: tensorboard --logdir {sweep.output}")
    return 0


def collect(sweep: Sweep) -> tuple[dict[str, Any], dict[str, Path]]:
    """Gathers each method's figures and folder from the cells of a finished sweep."""
    methods: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    for cell in sweep.cells:
        folder = sweep.folder(cell)
        if not (folder / SUMMARY).is_file():
            raise LoriError(f"{folder} is gone, but {sweep.table.path} says that it is done; remove {sweep.output}")
        try:
            name, values, summary = read_entry(folder / SUMMARY)
        except LoriError as error:
            raise LoriError(f"{folder}: {error}; remove {sweep.output} and start anew") from error
        if name in methods:
            raise LoriError(
                f"{sweep.specification.file} has two runs of {name}, of which a quickstart would keep the last; "
                f"see both with `lori_pl sweep {sweep.specification.file}`"
            )
        methods[name] = {**values, "seconds": summary.get("training_seconds", 0.0)}
        folders[name] = folder
    return methods, folders
