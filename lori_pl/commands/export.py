"""`export`: a student's folder from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from lori_pl.checkpoint_files import SUFFIX
from lori_pl.commands.lightning import load_trained
from lori_pl.commands.own_options import OwnOptions
from lori_pl.commands.run_folder import refuse_run_folder
from lori_pl.errors import LoriError
from lori_pl.models.saving import has_lora, save_reasoner
from lori_pl.run_files import CHECKPOINTS


def main(arguments: list[str]) -> int:
    """Makes a student's folder from a checkpoint and the config of its run.

    Args:
        arguments: ``--ckpt_path``, ``--folder``, ``--apart``, and what ``fit`` takes.

    Raises:
        LoriError: If the checkpoint is missing, damaged or of another method, or the folder exists.
    """
    options, rest = _parser().parse_known_args(arguments)
    folder = Path(options.folder)
    if folder.exists():
        raise LoriError(f"{folder} exists already; remove it or give another --folder")
    checkpoint = Path(options.ckpt_path)
    refuse_run_folder(checkpoint, takes_student=False)
    if checkpoint.is_dir():
        raise LoriError(
            f"--ckpt_path {checkpoint} is a folder, and `export` makes one of a checkpoint's file, such as "
            f"RUN/{CHECKPOINTS}/best{SUFFIX}"
        )
    if not checkpoint.is_file():
        raise LoriError(f"--ckpt_path {checkpoint}: no such file")
    model = load_trained(rest, options.ckpt_path)
    if options.apart and not has_lora(model.student.lm):
        raise LoriError("--apart keeps LoRA adapters apart, and this student has none; leave it out")
    save_reasoner(model.student.eval(), folder, merge=not options.apart, base=model.backbone, seed=model.trained_seed)
    print(f"student: {folder}")
    return 0


def _parser() -> OwnOptions:
    parser = OwnOptions(
        "export",
        "Make a student's folder from a checkpoint and the config of its run: --config runs/NAME/config.yaml, which "
        "the run has left, or the files and flags that it was started with.",
    )
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help="the checkpoint")
    parser.add_argument("--folder", required=True, metavar="OUT", help="the folder to make; must not exist")
    parser.add_argument(
        "--apart", action="store_true", help="keep LoRA adapters apart from their base model, which is then only named"
    )
    return parser
