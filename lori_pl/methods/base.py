"""What all methods share beside evaluation: bring-up of the student, optimisation, lean checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from lori_pl.alignment.distributed import average_across_ranks
from lori_pl.checkpoint_files import place_of
from lori_pl.data.datamodule import PairedDataModule, PreparedSplit
from lori_pl.data.pairing import PairedBatch
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError, one_line
from lori_pl.methods.answering import AnsweringModule
from lori_pl.methods.checkpoints import check_made_by, check_student, check_template
from lori_pl.methods.losses import answer_cross_entropy
from lori_pl.methods.optimization import (
    Schedule,
    apply_changes,
    check_optimizer,
    check_precision,
    parameter_groups,
    settings,
)
from lori_pl.methods.positions import check_sequences
from lori_pl.models.backbone import Backbone, load_causal_lm, prepare_training
from lori_pl.models.casting import weights_cast_once
from lori_pl.models.reasoner import LatentReasoner
from lori_pl.models.thought import MARKED, Reasoning, ThoughtSettings
from lori_pl.sharding import is_sharded, loading, most_anywhere, shard

log = logging.getLogger(__name__)


def is_last(trainer: pl.Trainer, step: int) -> bool:
    """Whether a training ends with a step, which its present batch makes."""
    in_last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 == trainer.max_epochs
    return step == trainer.max_steps or (in_last_epoch and trainer.is_last_batch)


def is_written(trainer: pl.Trainer) -> bool:
    """Whether the logger will write what a step logs that has begun: each so many steps, and the last of all."""
    every, step = trainer.log_every_n_steps, trainer.global_step + 1
    return every > 0 and (step % every == 0 or is_last(trainer, step))


class Method(AnsweringModule):
    """Base of the methods: one student, trained its own way, evaluated in one way.

    Args:
        backbone: The student's language model.
        template: How problems become text; the command line takes it from ``data.template``.
        optimizer: Optimiser, e.g. ``{class_path: torch.optim.AdamW, init_args: {lr: 1e-3, weight_decay: 0.01}}``.
        schedule: Learning rate by step.
        max_new_tokens: Most tokens generated for an answer in evaluation.
    """

    name: ClassVar[str]
    reasoning: ClassVar[Reasoning]
    latents: int = 0
    reads_pieces: ClassVar[bool] = False
    """Whether training reads the explicit sequences in pieces (`Pieces`)."""
    entries: ClassVar[tuple[str, ...]] = ("losses", "task_losses", "answer_batch")
    """The methods that compute with weights: where these are sharded, they are put together for them."""
    not_kept: ClassVar[tuple[str, ...]] = ("val_accuracy.", "val_loss.")
    """What is no part of a checkpoint, as the names of weights and buffers begin."""

    def __init__(
        self,
        backbone: Backbone,
        template: Template | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__(max_new_tokens)
        self.backbone = backbone
        self.template = template or Template()
        self.optimizer = optimizer
        check_optimizer(optimizer)
        self.schedule = schedule or Schedule()
        self.reasoner: LatentReasoner | None = None
        self.folder: str | None = None
        self.loaded_from = "the checkpoint"
        self.trained_seed: int | None = None
        self.optimizer_settings: list[dict[str, Any]] = []
        self.resumed_settings: list[dict[str, Any]] = []

    # ---- bring-up -------------------------------------------------------------------------------------------------

    @classmethod
    def uses_markers(cls) -> bool:
        """Whether ``<bot>`` and ``<eot>`` surround this method's thought."""
        return cls.reasoning in MARKED

    @classmethod
    def requires_rationale(cls, config: Mapping[str, Any]) -> bool:
        """Whether training under this parsed config needs rationales."""
        return False

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> None:
        """Checks parsed arguments before anything is loaded.

        Raises:
            LoriError: If they do not fit together.
        """

    def check_run(self, data: PairedDataModule, trainer: pl.Trainer) -> None:
        """Checks what model, data and trainer must agree on in training, before anything is loaded.

        Raises:
            LoriError: If they do not.
        """

    def setup(self, stage: str) -> None:
        """Checks the run.

        Raises:
            LoriError: If model, data and trainer do not agree.
        """
        check_precision(self.trainer.precision)
        if stage == "fit":
            self.check_run(self.data, self.trainer)

    @property
    def tokenizer_backbone(self) -> Backbone:
        """The backbone whose tokenizer is the student's."""
        return self.backbone

    @property
    def thought(self) -> ThoughtSettings:
        """How the student thinks."""
        return ThoughtSettings(self.reasoning, self.latents)

    @property
    def checkpoint_settings(self) -> dict[str, Any]:
        """Arguments, beside the number of latents, that make another student of the same weights."""
        return {"passes": self.thought.passes} if self.reasoning == "parallel" else {}

    @property
    def label(self) -> str:
        """What this method is called in tables and records."""
        return self.name

    @property
    def student(self) -> LatentReasoner:
        """The student, once it is built."""
        if self.reasoner is None:
            raise RuntimeError("the student is built by configure_model(), which the Trainer calls")
        return self.reasoner

    def configure_model(self) -> None:
        """Builds the student, once; from ``folder`` if one is set."""
        if self.reasoner is not None:
            return
        if self.folder is not None:
            with self.loading():
                dtype, trust = self.backbone.dtype or "float32", self.backbone.trust_remote_code
                self.reasoner = LatentReasoner.from_pretrained(self.folder, dtype=dtype, trust_remote_code=trust)
            self.check_reasoning(self.reasoner.reasoning, self.folder)
            trained_with = asdict(self.reasoner.template)
            further = ", and further data sets to test on as data.test_sources"
            check_template(trained_with, self.template, self.folder, self.reasoning == "words", further)
            return
        chosen = self.tokenizer_backbone
        tokenizer = load_tokenizer(chosen.tokenizer_name, self.uses_markers(), chosen.revision)
        with self.loading():
            lm = prepare_training(self.load_backbone(tokenizer), self.backbone)
        if self.trains and self.backbone.lora is None and lm.dtype in (torch.bfloat16, torch.float16):
            log.warning(
                "model.backbone.dtype is %s and all weights train: updates smaller than its resolution are lost; use "
                "float32 with trainer.precision bf16-mixed, or backbone.lora",
                str(lm.dtype).removeprefix("torch."),
            )
        self.reasoner = LatentReasoner(lm, tokenizer, self.template, self.thought)

    def loading(self) -> AbstractContextManager[Any]:
        """Where this process is to load language models; see `lori_pl.sharding.loading`."""
        return loading(self._trainer.strategy if self._trainer is not None else None)

    def shard(self, mesh: DeviceMesh, device: torch.device, **options: Any) -> None:
        """Shards all weights over processes, once; see `lori_pl.sharding.shard`."""
        if not is_sharded(self):
            models, frozen = self.models()
            shard(self, models, frozen, self.entries, mesh, device, **options)
            self.take_equal_passes(device)

    def take_equal_passes(self, device: torch.device) -> None:
        """Has all processes make as many passes for their answers: sharded weights are put together by all."""
        self.student.most = partial(most_anywhere, device=device)

    def models(self) -> tuple[list[PreTrainedModel], list[nn.Module]]:
        """The language models, and the parts that never train and are called by themselves."""
        return [self.student.lm], []

    def load_backbone(self, tokenizer: Any) -> Any:
        """Loads the student's language model."""
        return load_causal_lm(self.backbone, tokenizer, "model.backbone")

    def check_reasoning(self, reasoning: str, place: str) -> None:
        """Refuses a student that thinks another way.

        Raises:
            LoriError: If ``reasoning`` is not this method's.
        """
        if reasoning != self.reasoning:
            raise LoriError(
                f"{place} holds a student that reasons by '{reasoning}', but {type(self).__name__} by "
                f"'{self.reasoning}'; give the method that made it"
            )

    def configure_optimizers(self) -> Any:
        """Groups the parameters and makes the step-wise schedule.

        Raises:
            LoriError: If the optimiser does not take what trains: some take one group, or matrices alone.
        """
        groups = parameter_groups(self, self.optimizer_parts())
        try:
            optimizer = self.optimizer(groups)
        except ValueError as error:
            raise LoriError(
                f"model.optimizer: {one_line(error)}; take another, or train less: it gets {len(groups)} groups of "
                "weights, vectors among them unless adapters alone train (model.backbone.lora)"
            ) from error
        scheduler = LambdaLR(optimizer, self.schedule(self.trainer.estimated_stepping_batches))
        self.optimizer_settings = settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps, and drops the gradients at once: Lightning would keep them beside the next forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad(set_to_none=True)

    def optimizer_parts(self) -> dict[str, nn.Module]:
        """Sub-modules that get parameter groups of their own, by name."""
        return {"thought": self.student.thought}

    # ---- training -------------------------------------------------------------------------------------------------

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """What models read of a split, answers included: what it is, which model, and each problem's positions."""
        latents = self.student.thought.latents
        lengths = split.student.student_lengths(latents)
        return [(f"question, {latents} latents, answer prompt and answer", self.student.lm, lengths)]

    def on_fit_start(self) -> None:
        """Makes sure that the models that read them have positions for all sequences, and for the tests' questions."""
        check_sequences(self.data, self.sequences, "train", "validation")
        self.check_questions(self.data.tests.values())

    def on_train_start(self) -> None:
        """Lets the flags of a resumed run win, and warns of what accumulated gradients change."""
        self.take_up_flags()
        if self.trainer.accumulate_grad_batches > 1 and self.over_batch:
            log.warning(
                "trainer.accumulate_grad_batches is %d, but %s: each batch of %d has its own, so this is not the loss "
                "of one large batch",
                self.trainer.accumulate_grad_batches,
                " and ".join(self.over_batch),
                self.data.batch_size * self.trainer.world_size,
            )

    @property
    def over_batch(self) -> list[str]:
        """What of the loss is of a whole batch and not of each problem, in words."""
        return []

    def take_up_flags(self) -> None:
        """Lets the flags win over the hyper-parameters that a checkpoint brought, once."""
        if self.resumed_settings:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            scheduler: Any = self.lr_schedulers()
            apply_changes(optimizer, scheduler, self.optimizer_settings, self.resumed_settings)
            self.resumed_settings = []

    def on_train_batch_start(self, batch: PairedBatch, batch_idx: int) -> None:
        """Seeds dropout by batch and process alone, so that a resumed run draws what an uninterrupted one would."""
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seeds = np.random.SeedSequence([self.data.seed, number, self.global_rank]).generate_state(1)
        torch.manual_seed(int(seeds[0]))

    def losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives the total loss and its parts by name."""
        loss = self.task_loss(batch)
        return loss, {"task": loss}

    def task_loss(self, batch: PairedBatch) -> Tensor:
        """Mean of :meth:`task_losses` over the batch."""
        return self.task_losses(batch).mean()

    def task_losses(self, batch: PairedBatch) -> Tensor:
        """Cross-entropy on each problem's answer (B,), after the thought."""
        found = self.student.read_pair(
            batch.question, batch.question_mask, batch.answer, batch.answer_mask, batch.anchor
        )
        return answer_cross_entropy(self.student, found.hidden, batch)

    def step_losses(self, batch: PairedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """As :meth:`losses`, under autocast with one cast of each training weight for all passes of the step."""
        # what is recomputed, or put together for a layer at a time, is not to be kept
        keeps = not self.backbone.gradient_checkpointing and not is_sharded(self)
        with weights_cast_once(self.device) if keeps else nullcontext():
            return self.losses(batch)

    def training_step(self, batch: PairedBatch, batch_idx: int) -> dict[str, Any]:
        """One step; every part of the loss is logged, as the mean over the processes where the logger writes."""
        loss, parts = self.step_losses(batch)
        detached = {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}
        logged = average_across_ranks(detached) if is_written(self.trainer) else detached
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=len(batch.index))
        return {"loss": loss, "parts": detached}

    # ---- checkpoints: only what trains ----------------------------------------------------------------------------

    @property
    def strict_loading(self) -> bool:
        """Not strict: frozen weights are not in a checkpoint; `load_state_dict` checks what is missing."""
        return False

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        """Ignored; see the getter."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Gives what trains, and buffers; neither the teacher nor a frozen backbone."""
        return self.lean(super().state_dict(*args, **kwargs), kwargs.get("prefix", ""))

    def lean(self, state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """Takes what does not train, and the teacher, out of a module's whole state."""
        frozen = {
            name for name, parameter in self.named_parameters(remove_duplicate=False) if not parameter.requires_grad
        }
        for key in list(state):
            name = key.removeprefix(prefix)
            if name in frozen or name.startswith(self.not_kept):
                del state[key]
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads what trains and makes sure that nothing of it is missing.

        Raises:
            LoriError: If a trainable weight is missing, unexpected, or of another shape.
        """
        expected = set(self.state_dict())
        if wrong := sorted(expected.symmetric_difference(state_dict)):
            raise LoriError(
                f"{self.loaded_from} is of another model or method: {len(wrong)} weights do not match, e.g. "
                f"{wrong[0]}; resume with the config that made it"
            )
        try:
            return super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            detail = str(error).strip().splitlines()[-1].strip()
            raise LoriError(f"{self.loaded_from} is of another model: {detail}; resume with its own config") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which method made the checkpoint, of what student, and with which optimiser."""
        checkpoint["lori_pl"] = {
            "method": self.name,
            "reasoning": self.reasoning,
            "latents": self.latents,
            "settings": self.checkpoint_settings,
            "template": asdict(self.template),
            "optimizer": self.optimizer_settings,
            "seed": self.data.seed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another method, or of a student that thinks or reads otherwise.

        Raises:
            LoriError: If another method, or none of lori_pl, made it, or with another number of latents or template.
        """
        self.loaded_from = place_of(checkpoint)
        self.trained_seed = checkpoint.get("lori_pl", {}).get("seed")
        check_made_by(checkpoint, self.name)
        made = checkpoint["lori_pl"]
        check_student(made, self.latents, self.checkpoint_settings, self.template, self.loaded_from)
        self.resumed_settings = made.get("optimizer", [])
