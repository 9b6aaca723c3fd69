"""What methods with a frozen teacher share: its weights, its states or its cache, and the terms that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel

from lori_pl.alignment import Signals, Term, TrajectoryShape
from lori_pl.cache.store import TeacherCache, of_term
from lori_pl.data.datamodule import PairedDataModule, PreparedSplit
from lori_pl.data.pairing import PairedBatch
from lori_pl.data.template import Template
from lori_pl.errors import LoriError, check_choice
from lori_pl.methods.base import Method
from lori_pl.methods.cached_teacher import cache_identity, load_cached_terms
from lori_pl.methods.checkpoints import check_teacher
from lori_pl.methods.measuring import Observed, measure_on_rationales
from lori_pl.methods.optimization import Schedule
from lori_pl.methods.teachers import (
    can_share,
    check_noted,
    load_start,
    load_teacher,
    loaded_like,
    noted_teacher,
    shape_of,
    share_teacher,
)
from lori_pl.methods.terms import named_terms, weighs, weighted_terms
from lori_pl.models.backbone import Backbone, frozen
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.teacher import FrozenTeacher, SharedTeacher, explicit_signals
from lori_pl.regions import region
from lori_pl.sharding import assembled

Start = Literal["teacher", "base"]
_OF_TRAINING = ("lora", "gradient_checkpointing", "compile")


class Distillation(Method):
    """Base of the methods whose student learns from a frozen teacher through terms of the loss.

    Args:
        backbone: The student's language model.
        teacher: An explicit-CoT model: its folder as written by ``fit`` or ``export``, or any causal LM. ``None`` only
            where ``student_init`` is ``base`` and no term needs one, or a ``cache`` stands for it.
        student_init: Start from the ``teacher``'s weights, or from the ``base`` that ``backbone.name`` gives.
        terms: Terms of the loss that compare the student with the frozen teacher, as class paths.
        weights: Overrides the weight of a loss by its name, e.g. ``{mean: 0.0, covariance: 0.1}``; a term whose
            weights are all zero is left out.
        layers: Layers that make the teacher's trajectory.
        student_layers: The same for the student, where it differs.
        statistics_problems: Training problems on which centre, scale and factors are measured; ``null`` for all.
        template: How problems become text; the command line takes it from ``data.template``.
        optimizer: Optimiser.
        schedule: Learning rate by step.
        max_new_tokens: Most tokens generated for an answer in evaluation.
        cache: Folder of the teacher's statistics, made by the command ``cache``; the teacher is then never run.
        share_base: With LoRA, and where the student starts from the teacher, or both are adapters on one base model,
            take the student's own base model for the teacher, with the teacher's adapters if it has any; ``false``
            loads a second copy, which gives the same.

    Raises:
        LoriError: If a value is out of range, the teacher has settings of a training, or the terms do not go together.
    """

    term_fields: ClassVar[tuple[str, ...]] = ()
    """Arguments that hold one term each, beside ``terms``."""

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | None = None,
        student_init: Start = "teacher",
        terms: list[Term] | None = None,
        weights: dict[str, float] | None = None,
        layers: LayerSelection | None = None,
        student_layers: LayerSelection | None = None,
        statistics_problems: int | None = 4096,
        template: Template | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        max_new_tokens: int = 64,
        cache: str | None = None,
        share_base: bool = True,
    ) -> None:
        super().__init__(backbone, template, optimizer, schedule, max_new_tokens)
        if statistics_problems is not None and statistics_problems < 1:
            raise LoriError(f"model.statistics_problems is {statistics_problems}: give 1 or more, or null for all")
        check_choice("model.student_init", student_init, Start)
        self.student_init = student_init
        self.share_base = share_base
        if teacher is not None and (asked := [name for name in _OF_TRAINING if getattr(teacher, name)]):
            raise LoriError(f"model.teacher.{asked[0]} is set, but a frozen teacher does not train: leave it out")
        self.teacher_backbone = None if teacher is None else loaded_like(teacher, self.backbone)
        self.cache = cache
        self.layers = layers or LayerSelection()
        self.student_layers = student_layers or self.layers
        self.student_layers_at = "model.layers" if student_layers is None else "model.student_layers"
        self.statistics_problems = statistics_problems
        self.terms = nn.ModuleList(weighted_terms(terms or [], weights or {}))
        self.needs = frozenset[str]().union(*(term.needs for term in self.active_terms))
        self.teacher: FrozenTeacher | None = None
        self.teacher_note: dict[str, Any] = {}
        self.teacher_before: dict[str, Any] = {}
        self._cache_is_checked = False
        if not self.needs and cache is not None:
            raise LoriError("model.cache is set, but no term that weighs something needs a teacher: set it to null")

    @classmethod
    def aligns(cls, fields: Mapping[str, Any]) -> bool:
        """Whether these arguments, parsed or not, hold a term that weighs something."""
        terms = [*(fields.get(name) for name in cls.term_fields), *(fields.get("terms") or [])]
        return any(term and weighs(term, fields.get("weights") or {}) for term in terms)

    @classmethod
    def requires_rationale(cls, config: Mapping[str, Any]) -> bool:
        """Only where a term that weighs something compares with the teacher."""
        return cls.aligns(config.get("init_args") or {})

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> None:
        """Checks that there is a teacher where one is needed.

        Raises:
            LoriError: If there is none.
        """
        if fields.get("teacher"):
            return
        if cls.aligns(fields) and not fields.get("cache"):
            who, remedy = "the terms compare with one", ""
        elif fields.get("student_init") == "teacher":
            who, remedy = "the student starts from its weights", ", or set model.student_init to base"
        else:
            return
        raise LoriError(
            f"model.teacher is not set, but {who}: give the folder of an explicit-CoT model as "
            f"model.teacher.name{remedy}"
        )

    @property
    def tokenizer_backbone(self) -> Backbone:
        """The student's own, or else the teacher that it starts from."""
        named = self.backbone.tokenizer or self.backbone.name
        return self.backbone if named or self.teacher_backbone is None else self.teacher_backbone

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the student's weights are the teacher's at the start."""
        return self.student_init == "teacher"

    @property
    def active_terms(self) -> list[Term]:
        """The terms: those that weigh something, and those on which these rest."""
        return [term for term in self.terms if isinstance(term, Term)]

    @property
    def weighing_terms(self) -> list[Term]:
        """The terms whose losses count."""
        return [term for term in self.active_terms if term.weighs]

    @property
    def terms_and_others(self) -> list[tuple[Term, list[Term]]]:
        """Each of the terms, and those beside it."""
        return [(term, [other for other in self.active_terms if other is not term]) for term in self.active_terms]

    @property
    def over_batch(self) -> list[str]:
        """What the terms say."""
        return [*super().over_batch, *(term.over_batch for term in self.weighing_terms if term.over_batch)]

    @property
    def named_terms(self) -> dict[str, Term]:
        """The terms by the names that a cache knows them by."""
        return named_terms(self.active_terms)

    entries = (*Method.entries, "observed", "alignment_diagnostics")
    not_kept = (*Method.not_kept, "teacher.")

    def models(self) -> tuple[list[PreTrainedModel], list[nn.Module]]:
        """Also a teacher's that is not the student's."""
        models, frozen_parts = super().models()
        if self.teacher is None or isinstance(self.teacher, SharedTeacher):
            return models, frozen_parts
        return [*models, self.teacher.lm], [*frozen_parts, self.teacher]

    # ---- bring-up -------------------------------------------------------------------------------------------------

    def load_backbone(self, tokenizer: Any) -> Any:
        """Loads the student's model: the teacher's weights, or its own."""
        if not self.starts_from_teacher:
            return super().load_backbone(tokenizer)
        assert self.teacher_backbone is not None
        return load_start(self.teacher_backbone, self.backbone, tokenizer)

    def configure_model(self) -> None:
        """Builds student, teacher (where a term needs it and the run is no mere test) and terms, once.

        Raises:
            LoriError: If there is no teacher where one is needed, or it does not fit.
        """
        if self.reasoner is not None:
            return
        teacher = self.teacher_backbone
        if self.folder is None:
            fields = {"teacher": teacher, "student_init": self.student_init, "terms": self.active_terms}
            self.check({**fields, "cache": self.cache})
        aligned = self.needs and self.folder is None
        if aligned:  # looked at before weights are read
            shapes = self.student_shape(), self.teacher_shape()
        super().configure_model()
        if not aligned:
            return
        if self.trains and self.cache is None:
            with self.loading():
                self.teacher = self.share_teacher() if self.shares_base else self.load_teacher()
            self.teacher_note = noted_teacher(self.teacher, teacher)
        self.prepare_terms(*shapes)

    def load_teacher(self) -> FrozenTeacher:
        """Loads the teacher.

        Raises:
            LoriError: If its folder holds something else than a teacher for these rationales.
        """
        assert self.teacher_backbone is not None
        return load_teacher(self.teacher_backbone, self.template, self.layers)

    def share_teacher(self) -> FrozenTeacher:
        """Takes the student's base model for the teacher, instead of a second copy.

        Raises:
            LoriError: As `load_teacher`.
        """
        assert self.teacher_backbone is not None
        return share_teacher(
            self.teacher_backbone, self.student.lm, self.template, self.layers, self.starts_from_teacher
        )

    @property
    def shares_base(self) -> bool:
        """Whether the teacher is, or has adapters on, the very model that the student's adapters lie on."""
        if not self.share_base or self.teacher_backbone is None:
            return False
        return can_share(self.teacher_backbone, self.backbone, self.student.tokenizer, self.starts_from_teacher)

    def teacher_shape(self) -> TrajectoryShape:
        """Layers and hidden size of the teacher's trajectories, from its config or else from the cache."""
        if self.teacher_backbone is None:
            return TrajectoryShape(**TeacherCache(self.cache or "").manifest.shape)
        return shape_of(self.teacher_backbone, self.layers, "model.teacher", "model.layers")

    def student_shape(self) -> TrajectoryShape:
        """Layers and hidden size of the student's, from the config that it will be loaded with."""
        starts, place = self.backbone, "model.backbone"
        if self.starts_from_teacher:
            assert self.teacher_backbone is not None
            starts, place = self.teacher_backbone, "model.teacher"
        return shape_of(starts, self.student_layers, place, self.student_layers_at)

    def prepare_terms(self, student: TrajectoryShape, teacher: TrajectoryShape) -> None:
        """Gives the terms the shapes of both sides."""
        for term, others in self.terms_and_others:
            term.prepare(student, teacher, others)

    def optimizer_parts(self) -> dict[str, nn.Module]:
        """Thought and terms get groups of their own."""
        return {**super().optimizer_parts(), "alignment": self.terms}

    def check_terms(self) -> None:
        """Makes sure that there is a teacher for the terms, and that they go with both sides; nothing is loaded.

        Raises:
            LoriError: If the teacher's folder holds none for these rationales, or the terms do not go with both sides'
                layers and hidden sizes or with each other.
        """
        if not self.needs:
            return
        if self.teacher_backbone is not None and self.cache is None:
            check_teacher(Path(self.teacher_backbone.name or ""), self.template)
        shapes = self.student_shape(), self.teacher_shape()
        for term, others in self.terms_and_others:
            term.check(*shapes, others)

    def check_run(self, data: PairedDataModule, trainer: pl.Trainer) -> None:
        """Makes sure of teacher and terms, and once that the cache was built with what this run has.

        Raises:
            LoriError: As `check_terms`; if there is no cache in the folder, or naming what differs in it, with both
                values.
        """
        self.check_terms()
        # one process of a machine is enough: it reads the teacher's weights
        if self.cache is not None and not self._cache_is_checked and trainer.local_rank == 0:
            TeacherCache(self.cache).check(cache_identity(self, data, trainer.precision))
            self._cache_is_checked = True

    # ---- statistics before training -------------------------------------------------------------------------------

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """The student's, and the explicit ones that the teacher reads, and before training perhaps the student."""
        found = super().sequences(split)
        what = "question, rationale, answer prompt and answer"
        if self.teacher is not None:
            found.append((f"the teacher's {what}", self.teacher.lm, (split.teacher or split.student).lengths()))
        if split.name == "train" and any(term.observes_student and not term.is_fitted for term in self.active_terms):
            found.append((f"{what}, on which the student is measured,", self.student.lm, split.student.lengths()))
        return found

    def on_fit_start(self) -> None:
        """Measures centre, scale and factors on training rationales, unless a checkpoint brought them.

        Raises:
            LoriError: If the checkpoint had another teacher.
        """
        super().on_fit_start()
        self.teacher_note = check_noted(self.teacher_before, self.teacher_note, self.loaded_from)
        if self.cache is not None:
            with assembled(self, self.terms):
                load_cached_terms(self)
        self.measuring_cost = measure_on_rationales(self)

    def observed(self, batch: PairedBatch, wants_student: bool) -> Observed:
        """What the terms see of a batch before training: the teacher's side by term, and the untrained student's."""
        teacher = self.teacher_signals(batch)
        student = self.initial_student_signals(batch) if wants_student else None
        if teacher is not None:
            return dict.fromkeys(self.named_terms, teacher), student
        return {
            name: Signals(statistics=self.teacher_statistics(name, term, batch, None))
            for name, term in self.named_terms.items()
        }, student

    def teacher_signals(self, batch: PairedBatch) -> Signals | None:
        """The teacher's trajectory at the chosen rationale tokens, and its anchor states; ``None`` with a cache."""
        if self.teacher is None:
            return None
        with region("teacher"):
            trajectory, anchor = self.teacher(batch.teacher)
        return Signals(trajectory, batch.teacher.rationale_mask, anchor)

    def teacher_statistics(
        self, name: str, term: Term, batch: PairedBatch, teacher: Signals | None
    ) -> dict[str, Tensor]:
        """What a term needs of the teacher: from its states, or from the cache."""
        if teacher is not None:
            return term.teacher_statistics(teacher)
        assert batch.statistics is not None
        return term.unpack(of_term(batch.statistics, name))

    def initial_student_signals(self, batch: PairedBatch) -> Signals:
        """The untrained student's own states over the same rationales, in its own tokens."""
        with frozen(self.student):
            trajectory, anchor = explicit_signals(self.student.lm, batch.explicit, self.student_layers)
        return Signals(trajectory, batch.explicit.rationale_mask, anchor)

    @property
    def measured_with(self) -> dict[str, Any]:
        """What the buffers of the terms depend on, as plain values, teacher and problems apart."""
        measuring = [term for term in self.active_terms if term.sweeps]
        if not measuring:
            return {}
        values = {
            "model.statistics_problems": self.statistics_problems,
            **{f"model.layers.{k}": v for k, v in dataclasses.asdict(self.layers).items()},
            **{f"model.student_layers.{k}": v for k, v in dataclasses.asdict(self.student_layers).items()},
        }
        if "trajectory" in self.needs:
            values["data.rationale_tokens"] = self.data.rationale_tokens
        for term in measuring:
            values |= {f"{type(term).__name__}.{name}": value for name, value in term.measured_with.items()}
        return values

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also notes with what the alignment was measured, and which teacher there was."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lori_pl"]["measured"] = self.measured_with
        checkpoint["lori_pl"]["teacher"] = self.teacher_note

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also refuses to train on with an alignment that was measured otherwise.

        Raises:
            LoriError: Naming what differs.
        """
        super().on_load_checkpoint(checkpoint)
        self.teacher_before = checkpoint["lori_pl"].get("teacher", {})
        now = self.measured_with if self.trains else {}
        for name, value in checkpoint["lori_pl"].get("measured", {}).items():
            if name in now and now[name] != value:
                raise LoriError(
                    f"the alignment of {self.loaded_from} was measured with {name} {value}, and this run has "
                    f"{now[name]}: give the old value, or start a new run"
                )
