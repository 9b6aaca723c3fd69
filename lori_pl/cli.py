"""The command line: LightningCLI's sub-commands, and ours beside them."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from lori_pl.errors import LoriError, printable

log = logging.getLogger(__name__)

USAGE = """usage: python -m lori_pl COMMAND [options]        (COMMAND --help for its options)

  quickstart the main job on the embedded default: train, compare, export a student
  fit        train a method; ends with a table, summary.json and the exported student
  validate   accuracy on the validation problems
  test       accuracy, passes and milliseconds on the test sets; takes a checkpoint or a student's folder
  predict    answer test problems or a file of questions into JSON lines
  preview    show one training pair with its tokens, masks and anchor, lengths, and what was dropped
  export     make a student's folder from a checkpoint
  cache      run the teacher once and keep its statistics, so that fit never loads it
  prepare    fetch models and data of a run once, so that jobs run offline; copy them to a node's own disk
  plan       show what a training needs: memory of a device by part and strategy, arithmetic, bytes of a cache
  benchmark  time the answers of several students: accuracy against milliseconds
  analyze    measure the rank of reasoning of teacher and student, and look into the student's latents
  sweep      run a file of experiments, resumably
  report     make one HTML file of results, runs and analyses: tables, claims with intervals, pictures
"""

# those that are no sub-commands of LightningCLI: their modules, whose ``main`` takes the arguments
OWN_COMMANDS = {
    "quickstart": "lori_pl.commands.quickstart",
    "preview": "lori_pl.commands.preview",
    "export": "lori_pl.commands.export",
    "cache": "lori_pl.commands.cache",
    "prepare": "lori_pl.commands.prepare",
    "plan": "lori_pl.commands.plan",
    "benchmark": "lori_pl.commands.benchmark",
    "analyze": "lori_pl.commands.analyze",
    "sweep": "lori_pl.sweep.command",
    "report": "lori_pl.commands.report",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        args: The arguments; those of the process by default.

    Returns:
        Exit status: 0, or 2 after one line on what is wrong with the input.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # advice on worker counts and logging intervals that small runs cannot follow
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*treespec.*LeafSpec.*")
    # they are the teacher's
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    # accuracies are alike on every process already
    warnings.filterwarnings("ignore", message=".*It is recommended to use `self.log.*sync_dist=True.*")
    # the process's own arguments stay as they are: with strategy=ddp every further process is started with them
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        logging.getLogger("lori_pl").setLevel(logging.WARNING)  # the first process tells for all
    connectors = "lightning.pytorch.trainer.connectors"
    for name in ("httpx", "lightning.pytorch.utilities.rank_zero", f"{connectors}.checkpoint_connector"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    try:
        return _run(arguments)
    except LoriError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    command, rest = arguments[0], arguments[1:]
    if command in OWN_COMMANDS:
        # each brings what it needs only when it is called
        own: Callable[[list[str]], int] = importlib.import_module(OWN_COMMANDS[command]).main
        try:
            return own(rest)
        except LoriError:
            raise
        except Exception as error:
            from lori_pl.commands.failures import fault_behind  # with torch, which not every command needs

            if line := fault_behind(error, command):
                raise LoriError(line) from error
            raise
    if command.startswith("-") or command not in ("fit", "validate", "test", "predict"):
        raise LoriError(f"no command '{command}'; see `python -m lori_pl --help`")
    from lori_pl.commands.lightning import run

    return run(arguments)
