"""Kills a short training at random moments, starts it again, and compares the weights it ends with.

Each run is a LoRi training that is killed (SIGKILL) once, started again with the same command, and trained to its end;
its weights are to be, bit for bit, those of a run that nothing killed. Of every three runs one is killed as soon as a
checkpoint's file is being written, the others at a moment drawn from the whole length of a run; every second run has a
data worker, which outlives its training for some seconds. Where the kill fell is read from what it left. Rows go to
``kills.csv`` as they land, and a second call goes on behind the last.

Runs on Linux and macOS: the trainings are forked, so that a run costs no start of the interpreter.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from lori_pl.callbacks.finite_loss import FiniteLoss  # noqa: F401  (imported before the fork, as is all of it)
from lori_pl.checkpoint_files import LAST, newest_sound, read_checkpoint
from lori_pl.cli import main as lori_pl
from lori_pl.evaluation.records import git_commit

COLUMNS = ("run", "seconds", "phase", "resumed_from", "same_weights", "commit", "command")
STEPS = 24
RECIPE = [
    "--config=configs/method/lori.yaml",
    "--config=configs/data/synthetic.yaml",
    "--config=configs/experiment/embedded/quick.yaml",
    "--config=configs/experiment/embedded/with_teacher.yaml",
    "--config=configs/experiment/embedded/lori.yaml",
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=2",
    "--trainer.enable_progress_bar=false",
    "--data.batch_size=8",
    "--data.val_problems=16",
    "--data.source.train=2000",
    "--data.source.validation=32",
    "--data.source.test=32",
    "--model.statistics_problems=64",
    "--model.max_new_tokens=4",
    "--test_after_fit=false",
    "--ckpt_path=auto",
]


def start(folder: Path, workers: int = 0) -> int:
    """Forks a training, with so many data workers, and gives its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with (folder.parent / f"{folder.name}.log").open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            torch.set_num_threads(1)
            status = lori_pl(["fit", *RECIPE, f"--data.num_workers={workers}", f"--trainer.default_root_dir={folder}"])
    finally:
        os._exit(status)
    return 0


def finish(child: int) -> int:
    """Waits for a training and gives its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def half_written(folder: Path) -> list[Path]:
    """Checkpoints that are being written, or were when their writer was killed."""
    try:
        return [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
    except FileNotFoundError:
        return []


def kill(folder: Path, draw: random.Random, length: float, in_writing: bool, workers: int) -> float:
    """Starts a training and kills it.

    Args:
        folder: Its folder.
        draw: Where the moment comes from.
        length: Seconds of a whole run.
        in_writing: Kill while a checkpoint is being written; else at any moment.
        workers: Its number of data workers.

    Returns:
        Seconds from its start.
    """
    begun = time.monotonic()
    child = start(folder, workers)
    if in_writing:
        # each validation writes one file at least, and each file has a name of its own while it is written
        wanted, seen = draw.randrange(1, STEPS // 2), set[Path]()
        while len(seen) < wanted and time.monotonic() - begun < 3 * length:
            seen.update(half_written(folder))
        time.sleep(draw.random() * 0.004)
    else:
        time.sleep(draw.random() * length)
    seconds = time.monotonic() - begun
    os.kill(child, signal.SIGKILL)
    finish(child)
    return seconds


def phase_of(folder: Path) -> str:
    """Where the kill fell, by what it left."""
    if half_written(folder):
        return "checkpoint"
    if (folder / "student").exists():
        return "after training"
    return "training" if (folder / "config.yaml").exists() else "start"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run trained, and the step that it came to."""
    saved = read_checkpoint(folder / "checkpoints" / LAST)
    return {**saved["state_dict"], "global_step": torch.tensor(saved["global_step"])}


def run(number: int, folder: Path, expected: dict[str, torch.Tensor], length: float, seed: int) -> dict[str, Any]:
    """Kills one training, starts it again and compares."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    workers = number % 2
    seconds = kill(folder, random.Random(seed * 1000 + number), length, in_writing=number % 3 == 0, workers=workers)
    phase = phase_of(folder)
    found = newest_sound(folder / "checkpoints")
    resumed = 0 if found is None else int(read_checkpoint(found)["global_step"])
    if phase != "after training" and finish(start(folder, workers)):
        raise SystemExit(f"run {number}: the second start failed, see {folder}.log")
    got = weights(folder)
    same = got.keys() == expected.keys() and all(torch.equal(got[name], value) for name, value in expected.items())
    return {"run": number, "seconds": round(seconds, 3), "phase": phase, "resumed_from": resumed, "same_weights": same}


def main() -> None:
    """Runs what is missing of the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--output", type=Path, default=Path("runs/kills"), help="folder of the trainings")
    parser.add_argument("--table", type=Path, default=Path("experiments/faults/kills.csv"), help="where rows go")
    options = parser.parse_args()
    options.table.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    if options.table.exists():
        with options.table.open(newline="", encoding="utf-8") as file:
            done = len(list(csv.DictReader(file)))
    reference = options.output / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    reference.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    if finish(start(reference)):
        raise SystemExit(f"the run that nothing kills failed, see {reference}.log")
    length = time.monotonic() - begun
    expected = weights(reference)
    command = shlex.join(["python", "experiments/faults/kills.py", *sys.argv[1:]])
    with options.table.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            table.writeheader()
        for number in track(range(done + 1, options.runs + 1), "kills"):
            row = run(number, options.output / "killed", expected, length, options.seed)
            table.writerow({**row, "commit": git_commit(), "command": command})
            file.flush()
    with options.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    phases = {name: sum(row["phase"] == name for row in rows) for name in {row["phase"] for row in rows}}
    same = sum(row["same_weights"] == "True" for row in rows)
    print(
        f"{len(rows)} kills ({', '.join(f'{count} in {name}' for name, count in sorted(phases.items()))}): {same} same"
    )


if __name__ == "__main__":
    main()
