"""`export`: a student's folder from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from lori_pl.commands.lightning import parse, take_option
from lori_pl.errors import LoriError
from lori_pl.methods.checkpoints import read_checkpoint
from lori_pl.models.saving import save_reasoner


def main(arguments: list[str]) -> int:
    """Makes a student's folder from a checkpoint and the config of its run.

    ``python -m lori_pl export --config runs/NAME/config.yaml --ckpt_path runs/NAME/checkpoints/best.ckpt --folder OUT``

    Args:
        arguments: ``--ckpt_path``, ``--folder``, ``--apart`` (keep LoRA adapters apart), and what ``fit`` takes.

    Raises:
        LoriError: If the checkpoint is missing, damaged or of another method, or the folder exists.
    """
    arguments, checkpoint = take_option(arguments, "--ckpt_path")
    arguments, folder = take_option(arguments, "--folder")
    apart = "--apart" in arguments
    arguments = [argument for argument in arguments if argument != "--apart"]
    if "-h" in arguments or "--help" in arguments or checkpoint is None or folder is None:
        print((main.__doc__ or "").split("Args:")[0].strip())
        if "-h" in arguments or "--help" in arguments:
            return 0
        raise LoriError("export needs --ckpt_path FILE and --folder OUT, and the run's --config")
    if Path(folder).exists():
        raise LoriError(f"{folder} exists already; remove it or give another --folder")
    if not Path(checkpoint).is_file():
        raise LoriError(f"--ckpt_path {checkpoint}: no such file")
    model = parse(["fit", *arguments], run=False).model
    model.teacher_is_wanted = False
    saved = read_checkpoint(checkpoint)
    model.on_load_checkpoint(saved)
    model.configure_model()
    model.load_state_dict(saved["state_dict"])
    save_reasoner(model.student.eval(), Path(folder), merge=not apart, base=model.backbone if apart else None)
    print(f"student: {folder}")
    return 0
