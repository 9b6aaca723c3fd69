"""Bring-up of a frozen teacher: a model of its own, or the very model that a student's adapters lie on."""

from __future__ import annotations

from collections.abc import Mapping
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
from lori_pl.models.saving import adapted_base, add_adapters, load_adapted
from lori_pl.models.teacher import FrozenTeacher, SharedTeacher

TEACHER_ADAPTERS = "teacher"


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
    lm = load_causal_lm(teacher, load_tokenizer(teacher.tokenizer_name, False, teacher.revision))
    return FrozenTeacher(lm, layers)


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
    if student.lora is None or (teacher.dtype, teacher.attention) != (student.dtype, student.attention):
        return False
    if student_starts_there:
        return True
    base = adapted_base(teacher)
    if base is None or not same_weights(base, student):
        return False
    # ids beyond the student's own are its markers there
    return holds(tokenizer, load_tokenizer(teacher.tokenizer_name, False, teacher.revision))


def share_teacher(teacher: Backbone, lm: PreTrainedModel, template: Template, layers: LayerSelection) -> FrozenTeacher:
    """Takes the base model of a student's adapters for the teacher, instead of a second copy.

    Args:
        teacher: The teacher; adapters of its own are added to the model.
        lm: The student's model.
        template: How problems become text.
        layers: The layers that make the teacher's trajectory.

    Raises:
        LoriError: As `load_teacher`.
    """
    folder = Path(teacher.name or "")
    check_teacher(folder, template)
    base = adapted_base(teacher)
    if base is None:
        return SharedTeacher(lm, layers)
    assert base.lora is not None
    add_adapters(lm, folder, base.lora, TEACHER_ADAPTERS)
    return SharedTeacher(lm, layers, TEACHER_ADAPTERS)


def same_weights(one: Backbone, other: Backbone) -> bool:
    """Whether two backbones are loaded from the same place, and in the same way."""

    def place(backbone: Backbone) -> tuple[Any, ...]:
        name = backbone.name or ""
        if Path(name).exists():
            return str(Path(name).resolve()), backbone.config
        return name, backbone.revision or "main", backbone.config

    return place(one) == place(other)


def shape_of(backbone: Backbone, selection: LayerSelection) -> TrajectoryShape:
    """Layers and hidden size of the trajectories of a model that is not loaded."""
    config = load_config(adapted_base(backbone) or backbone).get_text_config()
    return TrajectoryShape(len(selection.resolve(config.num_hidden_layers)), config.hidden_size)


def check_config(wanted: Mapping[str, Any], start: Backbone) -> None:
    """Refuses a student that is described as another model than the teacher whose weights it starts from.

    Args:
        wanted: The config that is given for the student.
        start: The teacher, as the student is loaded from it.

    Raises:
        LoriError: Naming the first key that differs, with both values.
    """
    if not wanted:
        return
    config = load_config(start)
    for key, value in wanted.items():
        if (theirs := getattr(config, key, value)) != value:
            raise LoriError(
                f"model.backbone.config.{key} is {value!r}, but the student starts from the teacher's weights, where "
                f"it is {theirs!r}: leave model.backbone.config out, or set model.student_init to base"
            )
