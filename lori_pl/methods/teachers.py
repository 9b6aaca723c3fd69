"""Bring-up of a frozen teacher: a model of its own, or the very model that a student's adapters lie on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori_pl.alignment import TrajectoryShape
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import holds, load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.methods.checkpoints import check_teacher
from lori_pl.models.backbone import Backbone, load_causal_lm, load_config
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.identity import layers_digest
from lori_pl.models.saving import adapted_base, add_adapters, load_adapted, load_merged, read_settings
from lori_pl.models.teacher import FrozenTeacher, SharedTeacher

TEACHER_ADAPTERS = "teacher"


def loaded_like(teacher: Backbone, student: Backbone) -> Backbone:
    """The teacher with the student's type of weights and attention where it does not say its own."""
    return replace(teacher, dtype=teacher.dtype or student.dtype, attention=teacher.attention or student.attention)


def load_teacher(teacher: Backbone, template: Template, layers: LayerSelection) -> FrozenTeacher:
    """Loads a teacher.

    Args:
        teacher: What to load.
        template: How problems become text.
        layers: The layers that make its trajectory.

    Raises:
        LoriError: If its folder holds something else than a teacher for these rationales.
    """
    folder = Path(teacher.name or "")
    check_teacher(folder, template)
    if (base := adapted_base(teacher)) is not None:
        return FrozenTeacher(load_adapted(folder, base), layers)
    lm = load_causal_lm(teacher, load_tokenizer(teacher.tokenizer_name, False, teacher.revision), "model.teacher")
    return FrozenTeacher(lm, layers)


def load_start(teacher: Backbone, student: Backbone, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads a student's model from a teacher's weights, adapters that stand apart from their base merged.

    Args:
        teacher: The teacher.
        student: How the student is loaded.
        tokenizer: The student's tokenizer, its markers included.

    Raises:
        LoriError: If the student is described as another model, has not the teacher's tokens, or nothing loads.
    """
    if not holds(tokenizer, load_tokenizer(teacher.tokenizer_name, False, teacher.revision)):
        raise LoriError(
            "the student starts from the teacher's weights, but model.backbone names another tokenizer than the "
            "teacher's: set model.backbone.name and tokenizer to null, or model.student_init to base"
        )
    trust = teacher.trust_remote_code or student.trust_remote_code
    start = replace(
        student, name=teacher.name, config=teacher.config, revision=teacher.revision, trust_remote_code=trust
    )
    base = adapted_base(start)
    check_model(student, base or start)
    if base is not None:
        folder = Path(str(start.name))
        if (reasoning := read_settings(folder)["reasoning"]) != "words":
            raise LoriError(
                f"model.teacher.name {folder} keeps the adapters of a student that reasons by '{reasoning}' apart from "
                "their base model; export it merged to start from it"
            )
        return load_merged(folder, replace(base, dropout=student.dropout), tokenizer)
    return load_causal_lm(start, tokenizer, "model.teacher")


def can_share(
    teacher: Backbone, student: Backbone, tokenizer: PreTrainedTokenizerBase, student_starts_there: bool
) -> bool:
    """Whether a teacher is, or has adapters on, the very model that a student's adapters lie on.

    Args:
        teacher: The teacher.
        student: The student.
        tokenizer: The student's tokenizer, its markers included.
        student_starts_there: Whether the student starts from the teacher's weights.
    """
    dtypes = {backbone.dtype or "float32" for backbone in (teacher, student)}
    if student.lora is None or len(dtypes) > 1 or teacher.attention != student.attention:
        return False
    if student_starts_there:
        # merged in half precision, adapters are rounded as they are not apart
        return dtypes == {"float32"} or adapted_base(teacher) is None
    base = adapted_base(teacher)
    if base is None or not same_weights(base, student):
        return False
    # ids beyond the student's own are its markers there
    return holds(tokenizer, load_tokenizer(teacher.tokenizer_name, False, teacher.revision))


def share_teacher(
    teacher: Backbone, lm: PreTrainedModel, template: Template, layers: LayerSelection, student_starts_there: bool
) -> FrozenTeacher:
    """Takes the base model of a student's adapters for the teacher, instead of a second copy.

    Args:
        teacher: The teacher; adapters of its own are added to the model, unless it is merged into it.
        lm: The student's model.
        template: How problems become text.
        layers: The layers that make the teacher's trajectory.
        student_starts_there: Whether the student started from the teacher's weights, adapters merged.

    Raises:
        LoriError: As `load_teacher`.
    """
    folder = Path(teacher.name or "")
    check_teacher(folder, template)
    base = None if student_starts_there else adapted_base(teacher)
    if base is None:
        return SharedTeacher(lm, layers)
    assert base.lora is not None
    add_adapters(lm, folder, base.lora, TEACHER_ADAPTERS)
    return SharedTeacher(lm, layers, TEACHER_ADAPTERS)


def noted_teacher(teacher: FrozenTeacher, backbone: Backbone | None) -> dict[str, Any]:
    """What a checkpoint notes of its teacher; empty where this process has none of its weights.

    Args:
        teacher: The teacher.
        backbone: What it was loaded from.
    """
    digest = layers_digest(teacher.lm)
    if digest is None:
        return {}
    name = backbone.name if backbone is not None else None
    return {"name": name or "random weights", "layers": digest, "shares_base": isinstance(teacher, SharedTeacher)}


def check_noted(before: dict[str, Any], now: dict[str, Any], place: str) -> dict[str, Any]:
    """Refuses to train on with another teacher.

    Args:
        before: What a checkpoint notes of its teacher: nothing if it had none, or is older than these notes.
        now: `noted_teacher` of this run.
        place: The checkpoint, for the message.

    Returns:
        What the next checkpoint is to note: this run's teacher, or the one before where this run has a cache of it.

    Raises:
        LoriError: Naming both teachers.
    """
    if not now:
        return before
    # the same adapters may be merged on a shared base and apart on a copy
    alike = before.get("shares_base") == now["shares_base"]
    if before and alike and before["layers"] != now["layers"]:
        raise LoriError(
            f"{place} was trained with the teacher {before['name']} (digest {before['layers'][:12]}), and this run has "
            f"{now['name']} (digest {now['layers'][:12]}): give the old one, or start a new run"
        )
    return now


def same_weights(one: Backbone, other: Backbone) -> bool:
    """Whether two backbones are loaded from the same place, and in the same way."""

    def place(backbone: Backbone) -> tuple[Any, ...]:
        name = backbone.name or ""
        if Path(name).exists():
            return str(Path(name).resolve()), backbone.config
        return name, backbone.revision or "main", backbone.config

    return place(one) == place(other)


def shape_of(backbone: Backbone, selection: LayerSelection, place: str, layers: str) -> TrajectoryShape:
    """Layers and hidden size of the trajectories of a model that is not loaded.

    Args:
        backbone: The model.
        selection: The layers that make its trajectory.
        place: The option that describes the model, for messages.
        layers: The option that holds the selection, for messages.

    Raises:
        LoriError: If nothing is found under its name, or a layer is none of its layers.
    """
    base = adapted_base(backbone)
    config = load_config(base or backbone, place=f"the base of {place}" if base else place).get_text_config()
    return TrajectoryShape(len(selection.resolve(config.num_hidden_layers, layers)), config.hidden_size)


def check_model(student: Backbone, start: Backbone) -> None:
    """Refuses a student that is named or described as another model than the teacher whose weights it starts from.

    Args:
        student: What is given for the student.
        start: The teacher, as the student is loaded from it.

    Raises:
        LoriError: Naming the first key of the config that differs, with both values.
    """
    if student.name is None:
        place, remedy, wanted = "model.backbone.config.", "leave model.backbone.config out", student.config
    elif student.name == start.name:
        return
    else:  # the teacher may be a trained copy of it, under another name
        place, remedy = f"model.backbone.name '{student.name}': its config's ", "set model.backbone.name to null"
        named = load_config(adapted_base(student) or student, place="model.backbone").get_text_config()
        wanted = {key: getattr(named, key) for key in ("model_type", "hidden_size", "num_hidden_layers")}
    if not wanted:
        return
    config = load_config(start, place="model.teacher").get_text_config()
    for key, value in wanted.items():
        if (theirs := getattr(config, key, value)) != value:
            raise LoriError(
                f"{place}{key} is {value!r}, but the student starts from the teacher's weights, where it is "
                f"{theirs!r}: {remedy}, or set model.student_init to base"
            )
