"""The LightningDataModule of paired CoT / no-CoT batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

from lori_pl.cache.store import CachedRows, TeacherCache
from lori_pl.data.doubts import warn_of_seen, warn_of_unknown
from lori_pl.data.loading import ResumableLoader, collate_pairs, ignore_signals
from lori_pl.data.moving import pins
from lori_pl.data.pairing import EncodedProblems, PairedBatch
from lori_pl.data.problem import Problem
from lori_pl.data.questions import read_questions
from lori_pl.data.sources import RowSource, Source, Split
from lori_pl.data.sources.base import LoadedSplit, OnBadRow
from lori_pl.data.template import Encoder, RationaleTokens, Template
from lori_pl.data.tokenizer import SYNTHETIC, load_tokenizer, same_tokens
from lori_pl.errors import LoriError

log = logging.getLogger(__name__)

NO_SOURCE = "data.source is not set: add --config configs/data/NAME.yaml, or give --data.source a class"


@dataclass
class PreparedSplit:
    """One split, ready to be batched.

    Args:
        name: What the split is called in logs.
        problems: The problems that are kept.
        student: They in the student's tokenizer.
        teacher: They in the teacher's tokenizer, where that is another or is asked for; ``None`` is the student's.
        counts: What was left out, by reason.
        cached: The teacher's statistics of the problems, where a cache gives them.
    """

    name: str
    problems: list[Problem]
    student: EncodedProblems
    teacher: EncodedProblems | None
    counts: dict[str, int] = field(default_factory=dict)
    cached: CachedRows | None = None

    @property
    def steps(self) -> np.ndarray:
        """Number of rationale steps of each problem."""
        return np.array([len(problem.steps) for problem in self.problems], dtype=np.int64)


@dataclass
class Reader:
    """The model that reads the batches, as far as they depend on it; the command line takes it from ``model``.

    Args:
        tokenizer: The student's tokenizer: ``synthetic``, a folder or a name on the hub.
        revision: Its revision on the hub.
        teacher_tokenizer: The teacher's, where there is one.
        teacher_revision: Its revision on the hub.
        teacher_cache: Folder of the teacher's statistics, where they are read instead of measured.
        markers: Whether ``<bot>`` and ``<eot>`` surround the student's thought.
        needs_rationale: Whether training needs rationales; problems without one are then left out.
        pieces: Whether training and validation sequences are read in pieces as well.
    """

    tokenizer: str = SYNTHETIC
    revision: str | None = None
    teacher_tokenizer: str | None = None
    teacher_revision: str | None = None
    teacher_cache: str | None = None
    markers: bool = True
    needs_rationale: bool = True
    pieces: bool = False


class PairedDataModule(pl.LightningDataModule):
    """Builds, for each problem, a teacher sequence and a student sequence with masks and the anchor's index.

    Args:
        source: Where training and validation problems come from, and the test problems unless ``test_sources`` is set;
            only a test of ``test_sources``, or answers to a ``predict_file``, do without.
        test_sources: Test sets by name; each is reported by one ``test``.
        template: How problems become text.
        rationale_tokens: Tokens that make the teacher's trajectory: ``all`` of the rationale, ``no_delimiters`` (those
            with a letter or digit), ``step_results`` (the result of each step) or ``before_results`` (the tokens that
            predict those results).
        batch_size: Problems a training batch, on each device.
        eval_batch_size: Problems an evaluation batch.
        max_length: Most tokens of question, rationale and answer together.
        on_bad_row: What every source does with a malformed row: ``error``, or ``skip`` it and count it; ``None`` leaves
            it to each source's own setting.
        on_too_long: A longer training problem is left out and counted, or an error. In evaluation only a question
            beyond the limit counts as too long. Nothing is ever cut.
        train_problems: Use only the first of the training problems; ``None`` for all.
        val_problems: Most validation problems; ``None`` for all.
        test_problems: Most test problems of each set; ``None`` for all.
        bucket_by_length: Batch problems of like length together (less padding), in an order fixed by the seed.
        seed: Seed of the training order.
        num_workers: Worker processes of a loader.
        predict_file: Questions for ``predict``, all of which are answered: JSON, lines or a list (``question``,
            optional ``id`` and ``answer``), or plain text, one a line; without it ``predict`` answers the first test
            set.
        reader: The model that the batches are for; the command line takes it from ``model``.
    """

    def __init__(
        self,
        source: Source | None = None,
        test_sources: dict[str, Source] | None = None,
        template: Template | None = None,
        rationale_tokens: RationaleTokens = "all",
        batch_size: int = 64,
        eval_batch_size: int = 256,
        max_length: int = 512,
        on_bad_row: OnBadRow | None = None,
        on_too_long: Literal["drop", "error"] = "drop",
        train_problems: int | None = None,
        val_problems: int | None = 1024,
        test_problems: int | None = None,
        bucket_by_length: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        predict_file: str | None = None,
        reader: Reader | None = None,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_length": max_length}
        limits = {"train_problems": train_problems, "val_problems": val_problems, "test_problems": test_problems}
        for name, value in (sizes | limits).items():
            if value is not None and value < 1:
                whole = ", or null for all" if name in limits else ""
                raise LoriError(f"data.{name} is {value}: give 1 or more{whole}")
        if num_workers < 0:
            raise LoriError(f"data.num_workers is {num_workers}: give 0 or more")
        if source is None and not test_sources and predict_file is None:
            raise LoriError(NO_SOURCE)
        self._source = source
        self.test_sources = test_sources
        self.template = template or Template()
        self.rationale_tokens: RationaleTokens = rationale_tokens
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_length = max_length
        self.on_too_long = on_too_long
        self.limits = {"train": train_problems, "validation": val_problems, "test": test_problems}
        self.bucket_by_length = bucket_by_length
        self.seed = seed
        self.num_workers = num_workers
        self.predict_file = predict_file
        self.reader = reader = reader or Reader()
        if source is not None:
            source.needs_rationale = reader.needs_rationale
        for each in (source, *(test_sources or {}).values()):
            if on_bad_row is not None and isinstance(each, RowSource):
                each.on_bad_row = on_bad_row
        tokenizer = load_tokenizer(reader.tokenizer, reader.markers, reader.revision)
        self.encoder = Encoder(tokenizer, self.template, reader.markers)
        self.teacher_encoder = None
        named = (reader.teacher_tokenizer, reader.teacher_revision)
        if reader.teacher_tokenizer is not None and named != (reader.tokenizer, reader.revision):
            theirs = load_tokenizer(reader.teacher_tokenizer, False, reader.teacher_revision)
            if not same_tokens(theirs, self.encoder.tokenizer, self.template.chat):
                self.teacher_encoder = Encoder(theirs, self.template, False)
        self.tests_after_fit = True  # so that a fault in a test set is found before the training
        self._read: dict[tuple[int, Split], LoadedSplit] = {}
        self.splits: dict[str, PreparedSplit] = {}
        self.tests: dict[str, PreparedSplit] = {}

    @property
    def source(self) -> Source:
        """Where training and validation problems come from.

        Raises:
            LoriError: If no source was given.
        """
        if self._source is None:
            raise LoriError(NO_SOURCE)
        return self._source

    def setup(self, stage: str) -> None:
        """Loads, encodes and counts the splits of a stage, once."""
        before = len(self.splits) + len(self.tests)
        if stage == "fit" and "train" not in self.splits:
            self._read_all()
            self.setup_train()
        if stage in ("fit", "validate") and "validation" not in self.splits:
            self.splits["validation"] = self.prepare(self.source, "validation")
        if (stage == "test" or (stage == "fit" and self.tests_after_fit)) and not self.tests:
            self.setup_tests()
        if stage == "fit" and len(self.splits) + len(self.tests) > before:
            warn_of_seen(self.splits["train"], [self.splits["validation"], *self.tests.values()])
        if stage == "predict" and "predict" not in self.splits:
            if self.predict_file is None:
                name, source = next(iter(self.tested.items()))
                self.splits["predict"] = self.tests.get(name) or self.prepare(source, "test", name)
            else:
                questions = read_questions(Path(self.predict_file))
                # whoever asks wants an answer to every question, so no limit of training or evaluation counts
                encoded = EncodedProblems(questions, self.encoder)
                self.splits["predict"] = PreparedSplit("predict", questions, encoded, None)

    def _read_all(self) -> None:
        """Reads all files of a training before anything is encoded, which takes longer: a fault comes first."""
        wanted: list[tuple[Source, Split]] = [(self.source, "train"), (self.source, "validation")]
        wanted += [(source, "test") for source in self.tested.values()] if self.tests_after_fit else []
        self._read = {(id(source), split): source.load(split) for source, split in wanted}

    def setup_train(self) -> None:
        """Prepares the training problems, once."""
        if "train" not in self.splits:
            self.splits["train"] = self.prepare(self.source, "train")
            if self.reader.teacher_cache is not None:
                self._open_cache(self.reader.teacher_cache, self.splits["train"])

    def _open_cache(self, folder: str, split: PreparedSplit) -> None:
        cache = TeacherCache(folder)
        # one process of a machine is enough
        if self.trainer is None or self.trainer.local_rank == 0:
            cache.verify()
        encoded = split.teacher or split.student
        split.cached = CachedRows(cache, cache.locate(encoded.keys(), [problem.id for problem in split.problems]))
        log.info("the teacher's statistics: %s", folder)

    @property
    def tested(self) -> dict[str, Source]:
        """Where the problems of each test set come from, by its name."""
        return self.test_sources or {"test": self.source}

    def setup_tests(self) -> None:
        """Prepares every test set."""
        self.tests = {name: self.prepare(source, "test", name) for name, source in self.tested.items()}

    def prepare(self, source: Source, split: Split, name: str | None = None) -> PreparedSplit:
        """Loads and encodes one split and says what was left out.

        Raises:
            LoriError: If no problem remains, or one is too long and ``on_too_long`` is ``error``.
        """
        loaded = self._read.pop((id(source), split), None) or source.load(split)
        counts = {"malformed rows": loaded.bad_rows, "without rationale": loaded.dropped}
        return self._prepare(loaded.problems, split, name or split, counts)

    def _prepare(self, problems: list[Problem], split: Split, label: str, counts: dict[str, int]) -> PreparedSplit:
        if split == "train" and self.reader.needs_rationale:
            kept = [problem for problem in problems if self.template.kept(problem.steps)]
            if len(kept) < len(problems) and getattr(self.source, "on_missing_rationale", "drop") == "error":
                bare = next(problem for problem in problems if not self.template.kept(problem.steps))
                raise LoriError(
                    f"data: problem {bare.id} has no rationale without its last step (template.drop_last_step), and "
                    "training needs one; set on_missing_rationale to drop"
                )
            counts["without rationale"] += len(problems) - len(kept)
            problems = kept
        limit = self.limits[split]
        wanted = len(problems) if limit is None else limit
        # with a limit only a part is encoded, so that a small run of a large set is fast; more where many are too long
        part = wanted + wanted // 4 + 16
        while True:
            chosen = problems[:part]
            in_pieces = self.reader.pieces and split != "test"
            student = EncodedProblems(chosen, self.encoder, self.rationale_tokens, in_pieces)
            teacher = (
                EncodedProblems(chosen, self.teacher_encoder, self.rationale_tokens) if self.teacher_encoder else None
            )
            lengths = self._lengths(split, student, teacher)
            short = lengths <= self.max_length
            if part >= len(problems) or short.sum() >= wanted:
                break
            part *= 2
        problems = chosen
        rows = np.flatnonzero(short)[:wanted].tolist()
        # not those behind the last one that is taken
        looked_at = rows[-1] + 1 if len(rows) == wanted and rows else len(problems)
        long = np.flatnonzero(~short[:looked_at])
        if self.on_too_long == "error" and long.size:
            first = int(long[0])
            raise LoriError(
                f"data: problem {problems[first].id} has {lengths[first]} tokens, more than data.max_length "
                f"{self.max_length} ({long.size} such); raise it or set data.on_too_long to drop"
            )
        counts["too long"] = int(long.size)
        if not rows:
            raise LoriError(
                f"data: the {label} split has no problem left ({_counted(counts)}); raise data.max_length or check "
                "the source"
            )
        log.info("%s: %d problems%s", label, len(rows), f" ({_counted(counts)})" if any(counts.values()) else "")
        if len(rows) < len(problems):
            problems, student = [problems[i] for i in rows], student.select(rows)
            teacher = teacher.select(rows) if teacher is not None else None
        warn_of_unknown(label, student, self.encoder)
        if teacher is not None and self.teacher_encoder is not None:
            warn_of_unknown(label, teacher, self.teacher_encoder)
        return PreparedSplit(label, problems, student, teacher, counts)

    @staticmethod
    def _lengths(split: Split, student: EncodedProblems, teacher: EncodedProblems | None) -> np.ndarray:
        """Tokens of each problem that count against the limit, of both sides the more."""
        found = [
            encoded.lengths() if split == "train" else encoded.questions.lengths
            for encoded in (student, teacher)
            if encoded is not None
        ]
        return np.maximum.reduce(found)

    def train_dataloader(self) -> DataLoader[PairedBatch]:
        """Gives the training batches; complete ones only, order fixed by seed and epoch, resumable in mid-epoch."""
        split = self.splits["train"]
        lengths = split.student.lengths() if self.bucket_by_length else None
        loader = ResumableLoader(split, lengths, self.batch_size, self.seed, self.num_workers, self.trainer)
        if not len(loader):
            raise LoriError(
                f"data: {len(split.problems)} training problems do not fill one step of {loader.order.global_size} "
                "(data.batch_size x processes x trainer.accumulate_grad_batches); lower one of them"
            )
        return loader

    def statistics_dataloader(self, problems: int | None) -> DataLoader[PairedBatch]:
        """Gives training problems in order of length, for the sweeps that fit the alignment.

        Each problem goes to one process, so that what they measure together is what one would: the processes may have
        numbers of batches that differ by one.

        Args:
            problems: Use the first so many; ``None`` for all.

        Raises:
            LoriError: If there is not one for each process.
        """
        split = self.splits["train"]
        count = self.statistics_count(problems, 1 if self.trainer is None else self.trainer.world_size)
        order = np.argsort(split.student.lengths()[:count], kind="stable")
        return self._loader(split, order, repeat=False)

    def statistics_count(self, problems: int | None, processes: int) -> int:
        """Number of training problems that the alignment is measured on.

        Args:
            problems: As in `statistics_dataloader`.
            processes: Among how many they are divided, each once.

        Raises:
            LoriError: If there is not one for each process.
        """
        split = self.splits["train"]
        count = min(problems or len(split.problems), len(split.problems))
        if count < processes:
            raise LoriError(
                f"model.statistics_problems is {problems}, of {len(split.problems)} training problems: give at least "
                f"one for each of the {processes} processes, or start fewer"
            )
        return count

    def val_dataloader(self) -> DataLoader[PairedBatch]:
        """Gives the validation batches: problems of like length together, the batches in an order fixed by the seed."""
        return self._loader(self.splits["validation"])

    def test_dataloader(self) -> list[DataLoader[PairedBatch]]:
        """Gives the batches of every test set, in the order of ``tests``, each as validation's."""
        return [self._loader(split) for split in self.tests.values()]

    def predict_dataloader(self) -> DataLoader[PairedBatch]:
        """Gives the batches to answer, as validation's."""
        return self._loader(self.splits["predict"])

    def _loader(
        self, split: PreparedSplit, order: np.ndarray | None = None, repeat: bool = True
    ) -> DataLoader[PairedBatch]:
        rows = np.argsort(split.student.questions.lengths, kind="stable") if order is None else order
        if self.trainer is not None and (world := self.trainer.world_size) > 1:
            if repeat:
                # every process takes as many rows; repeated ones are told apart by their index
                rows = np.resize(rows, -(-len(rows) // world) * world)
            rows = rows[self.trainer.global_rank :: world]
        if order is None:
            rows = self._mixed(rows)
        return DataLoader(
            rows.tolist(),
            batch_size=self.eval_batch_size,
            collate_fn=collate_pairs(split),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=ignore_signals,
            pin_memory=pins(self.trainer),
        )

    def _mixed(self, rows: np.ndarray) -> np.ndarray:
        """Rows in order of length with their whole batches in another order, so that the first few are no short ones.

        A limit of batches then takes problems of all lengths. All processes mix alike.
        """
        whole = len(rows) // self.eval_batch_size
        batches, rest = np.split(rows, [whole * self.eval_batch_size])
        batches = np.random.default_rng(self.seed).permutation(batches.reshape(whole, -1)) if whole else batches
        return np.concatenate([batches.reshape(-1), rest])


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none left out"
