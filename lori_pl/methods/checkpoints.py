"""Refusing checkpoints and saved models that do not fit a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lori_pl.checkpoint_files import place_of
from lori_pl.data.template import Template
from lori_pl.errors import LoriError
from lori_pl.models.saving import SETTINGS, read_settings

_OF_RATIONALES = ("rationale", "step_separator", "drop_last_step")


def check_template(
    saved: Mapping[str, Any], template: Template, place: str, writes: bool = True, further: str = ""
) -> None:
    """Refuses what was trained on other text.

    Args:
        saved: The template's fields there, as far as they are known.
        template: The template of this run.
        place: What was trained, for the message.
        writes: Whether rationales count: a student that is not trained on and writes none has no use for their text.
        further: What else to do, for the message.

    Raises:
        LoriError: Naming the fields that differ.
    """
    counting = {name: value for name, value in saved.items() if writes or name not in _OF_RATIONALES}
    if other := [name for name, value in counting.items() if getattr(template, name, value) != value]:
        raise LoriError(
            f"{place} was trained with another data.template ({', '.join(other)}); give the data config of its run"
            f"{further}"
        )


def check_student(
    made: Mapping[str, Any], latents: int, settings: Mapping[str, Any], template: Template, place: str
) -> None:
    """Refuses a checkpoint of a student that thinks or reads otherwise than this run's.

    Args:
        made: What the checkpoint says of its student.
        latents: This run's number of latents.
        settings: This run's further arguments that make another student of the same weights.
        template: This run's template.
        place: The checkpoint, for the message.

    Raises:
        LoriError: Naming what differs, with both values.
    """
    if (before := made.get("latents", latents)) != latents:
        raise LoriError(
            f"{place} was made with model.latents {before}, and this run has {latents}; give the config of its "
            "run (and --latents for another number in a test)"
        )
    for name, value in made.get("settings", {}).items():
        if name in settings and settings[name] != value:
            raise LoriError(
                f"{place} was made with model.{name} {value}, and this run has {settings[name]}; give the "
                "config of its run"
            )
    check_template(made.get("template", {}), template, place)


def check_made_by(checkpoint: Mapping[str, Any], method: str) -> None:
    """Refuses a checkpoint of another method.

    Raises:
        LoriError: If another method, or no method of lori_pl, made it.
    """
    made_by = checkpoint.get("lori_pl", {}).get("method")
    if made_by != method:
        raise LoriError(
            f"{place_of(checkpoint)} was made by {made_by or 'something else than lori_pl'}, not by {method}; "
            "give the config of its own method"
        )


def check_teacher(folder: Path, template: Template) -> None:
    """Refuses a saved reasoner whose states over these rationales would mean nothing.

    Raises:
        LoriError: If the folder holds one that writes no rationale, or was trained with another template; or if
            it is no saved reasoner and rationales lack their last step, which such a model cannot have learned.
    """
    if not (folder / SETTINGS).is_file():
        if template.drop_last_step:
            raise LoriError(
                f"data.template.drop_last_step is true, but nothing says that the teacher {folder} was trained so; "
                "give the folder of an explicit-CoT run that was, or set it to false"
            )
        return
    saved = read_settings(folder)
    if saved["reasoning"] != "words":
        raise LoriError(
            f"model.teacher.name {folder} holds a student that reasons by '{saved['reasoning']}', but a teacher "
            "writes its rationale; give the folder of an explicit-CoT run"
        )
    check_template(dataclasses.asdict(saved["template"]), template, f"model.teacher.name {folder}")
