"""Evaluation, one for all methods: by real generation, with the same extraction, metrics and records."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lori_pl.data.answers import same_answer
from lori_pl.data.datamodule import PairedDataModule, PreparedSplit
from lori_pl.data.pairing import PairedBatch
from lori_pl.errors import LoriError
from lori_pl.evaluation.metrics import AnswerAccuracy, MeanByProblem, TestSetMetrics
from lori_pl.methods.positions import check_questions, check_sequences
from lori_pl.models.reasoner import Answer, LatentReasoner


class AnsweringModule(pl.LightningModule):
    """A student that answers questions in validation, test and prediction; how it trains is its methods' affair.

    Args:
        max_new_tokens: Most tokens generated for an answer.

    Raises:
        LoriError: If it is less than 1.
    """

    def __init__(self, max_new_tokens: int) -> None:
        super().__init__()
        if max_new_tokens < 1:
            raise LoriError(f"model.max_new_tokens is {max_new_tokens}: give 1 or more")
        self.max_new_tokens = max_new_tokens
        self.latents_at_run: int | None = None
        self.trains = True
        self.has_validation_loss = True
        self.val_accuracy = AnswerAccuracy()
        self.val_loss = MeanByProblem()
        self.test_metrics: dict[str, TestSetMetrics] = {}

    @property
    def student(self) -> LatentReasoner:
        """The student, once it is built."""
        raise NotImplementedError

    def sequences(self, split: PreparedSplit) -> list[tuple[str, PreTrainedModel, np.ndarray]]:
        """What models read of a split, answers included: what it is, which model, and each problem's positions."""
        raise NotImplementedError

    def task_losses(self, batch: PairedBatch) -> Tensor:
        """Loss of each problem's answer (B,)."""
        raise NotImplementedError

    @property
    def data(self) -> PairedDataModule:
        """The data module of the running trainer."""
        module: PairedDataModule = self.trainer.datamodule
        return module

    def answer_batch(self, batch: PairedBatch) -> tuple[list[Answer], float]:
        """Answers a batch by generation.

        Returns:
            The answers and the milliseconds a problem.
        """
        cuda = batch.question.is_cuda
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        generation = self.student.generate(batch.question, batch.question_mask, max_new_tokens=self.max_new_tokens)
        if cuda:
            torch.cuda.synchronize()
        milliseconds = 1000 * (time.perf_counter() - start) / len(batch.index)
        return self.student.texts(generation), milliseconds

    @staticmethod
    def judge(answers: list[Answer], batch: PairedBatch, split: PreparedSplit) -> Tensor:
        """Compares answers with the gold ones: (B,) bool, on the batch's device."""
        gold = [split.problems[i].answer for i in batch.index.tolist()]
        right = [same_answer(answer.text, expected) for answer, expected in zip(answers, gold, strict=True)]
        return torch.tensor(right, device=batch.index.device)

    def set_latents(self) -> None:
        """Sets the number of latents that this run asks for, once the student is loaded.

        Raises:
            LoriError: If it is negative, or more than the student can take.
        """
        if self.latents_at_run is not None:
            self.student.thought.latents = self.student.thought.count(self.latents_at_run)

    def on_validation_start(self) -> None:
        """Sets the number of latents, and makes sure that all sequences fit."""
        self.set_latents()
        if not self.trains:
            check_sequences(self.data, self.sequences, "validation")

    def on_predict_start(self) -> None:
        """Sets the number of latents, and makes sure that each question leaves a position for an answer."""
        self.set_latents()
        self.check_questions([self.data.splits["predict"]])

    def check_questions(self, splits: Iterable[PreparedSplit]) -> None:
        """Makes sure that each question leaves a position for an answer, before any is answered.

        Args:
            splits: The questions.

        Raises:
            LoriError: If one does not.
        """
        for split in splits:
            check_questions(split, self.student.lm, self.positions_before_answer)

    @property
    def positions_before_answer(self) -> int:
        """Positions between a question and the first token that the student writes."""
        return len(self.student.encoder.bot) + self.student.thought.latents + len(self.student.given)

    def validation_step(self, batch: PairedBatch, batch_idx: int) -> None:
        """Generates answers; accuracy is that of real generation, the loss that of teacher forcing."""
        answers, _ = self.answer_batch(batch)
        self.val_accuracy.update(self.judge(answers, batch, self.data.splits["validation"]), batch.steps, batch.index)
        if self.has_validation_loss:
            self.val_loss.update(self.task_losses(batch), batch.index)

    def on_validation_epoch_end(self) -> None:
        """Logs the loss, and accuracy overall and by number of steps."""
        if self.has_validation_loss:
            self.log("val/loss", self.val_loss.compute())
            self.val_loss.reset()
        values = self.val_accuracy.compute()
        self.val_accuracy.reset()
        self.log("val/accuracy", values.pop("accuracy"), prog_bar=True)
        values.pop("n")
        self.log_dict({f"val/{name}": value for name, value in values.items()})

    def on_test_start(self) -> None:
        """Sets the number of latents, makes sure that questions fit, and makes one set of metrics a test set."""
        self.set_latents()
        self.check_questions(self.data.tests.values())
        self.test_metrics = {name: TestSetMetrics().to(self.device) for name in self.data.tests}

    def test_step(self, batch: PairedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Generates answers to a batch of one test set."""
        name = list(self.data.tests)[dataloader_idx]
        split, metrics = self.data.tests[name], self.test_metrics[name]
        answers, milliseconds = self.answer_batch(batch)
        correct = self.judge(answers, batch, split)
        passes = torch.tensor([answer.passes for answer in answers], device=self.device, dtype=torch.float)
        metrics.accuracy.update(correct, batch.steps, batch.index)
        metrics.passes.update(passes, batch.index)
        metrics.milliseconds.update(torch.full_like(passes, milliseconds), batch.index)
        ids = [split.problems[i].id for i in batch.index.tolist()]
        metrics.rows |= dict(zip(batch.index.tolist(), zip(ids, correct.tolist(), strict=True), strict=True))

    def on_test_epoch_end(self) -> None:
        """Logs each test set's accuracy, passes and milliseconds a question."""
        for name, metrics in self.test_metrics.items():
            metrics.gather_rows()
            self.log_dict({f"{name}/{key}": value.float() for key, value in metrics.compute().items()})

    def predict_step(self, batch: PairedBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Answers a batch: one record a problem."""
        answers, milliseconds = self.answer_batch(batch)
        problems = [self.data.splits["predict"].problems[i] for i in batch.index.tolist()]
        return [
            {
                "id": problem.id,
                "question": problem.question,
                "prediction": answer.text,
                "gold": problem.answer or None,
                "correct": same_answer(answer.text, problem.answer) if problem.answer else None,
                "passes": answer.passes,
                "milliseconds": round(milliseconds, 3),
            }
            for problem, answer in zip(problems, answers, strict=True)
        ]
