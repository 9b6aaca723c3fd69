"""`cache`: the teacher's statistics on disk, so that training never runs the teacher."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import safetensors
import torch
import transformers

from lori_pl import __version__
from lori_pl.cache.build import (
    StoreStatistics,
    entries,
    load_state,
    packed_bytes,
    rows_digest,
    save_state,
    state_file,
    write_plan,
)
from lori_pl.cache.manifest import MANIFEST, PLAN, Manifest, first_difference, read_plan
from lori_pl.cache.measuring import MeasureTeacher, drop_sums
from lori_pl.cache.shards import write_file
from lori_pl.cache.store import TeacherCache
from lori_pl.callbacks.build_progress import BuildProgress
from lori_pl.commands.lightning import PlainTrainerCLI, parse
from lori_pl.commands.own_options import OwnOptions
from lori_pl.commands.processes import ending_together
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.errors import LoriError
from lori_pl.evaluation.records import git_commit
from lori_pl.files import has_locks, lock_folder
from lori_pl.methods.cached_teacher import cache_identity
from lori_pl.methods.distillation import Distillation
from lori_pl.sharding import FSDP1Strategy, loading

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHARD_BYTES = 1 << 26


def main(arguments: list[str]) -> int:
    """Builds a cache, or goes on with one that was interrupted.

    Args:
        arguments: ``--folder``, ``--dtype``, and what ``fit`` takes.

    Raises:
        LoriError: If the method needs no teacher, the folder holds another cache or cannot be written, or another
            process builds there.
    """
    options, rest = _parser().parse_known_args(arguments)
    cli = parse(["fit", *rest], PlainTrainerCLI)
    method, data, trainer = cli.model, cli.datamodule, cli.trainer
    if not isinstance(method, Distillation) or not method.needs:
        raise LoriError(f"{type(method).__name__} has no term that needs a teacher, so there is nothing to cache")
    if method.teacher_backbone is None:
        raise LoriError("model.teacher is not set: give the folder of an explicit-CoT model as model.teacher.name")
    folder = Path(options.folder or method.cache or "")
    if not (options.folder or method.cache):
        raise LoriError("where the cache is to be is not said: give --folder, or model.cache in the config")
    method.cache = data.reader.teacher_cache = None
    method.check_terms()
    if options.shard_problems is not None and options.shard_problems < 1:
        raise LoriError(f"--shard_problems is {options.shard_problems}: give 1 or more")
    builder = Builder(method, data, trainer, folder, options.dtype, options.shard_problems)
    if trainer.global_rank:
        with ending_together(trainer):
            builder.run()
        return 0
    with lock_folder(folder, "another process builds a cache here"), ending_together(trainer):
        if has_locks(folder):  # else another process may be at work here
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)
        builder.run()
    return 0


class Builder:
    """Builds one cache.

    Args:
        method: The method, whose teacher and terms are used.
        data: The data.
        trainer: Runs both passes.
        folder: The cache's folder.
        dtype: Type of the stored statistics.
        shard_problems: Problems a shard; ``None`` makes shards of about 64 MiB.
    """

    def __init__(
        self,
        method: Distillation,
        data: PairedDataModule,
        trainer: pl.Trainer,
        folder: Path,
        dtype: str,
        shard_problems: int | None,
    ) -> None:
        self.method, self.data, self.trainer, self.folder, self.dtype = method, data, trainer, folder, dtype
        self.shard_problems = shard_problems

    def run(self) -> None:
        """Measures, stores, and writes the manifest last."""
        start = time.monotonic()
        if isinstance(self.trainer.strategy, FSDP1Strategy):
            raise LoriError("trainer.strategy fsdp1 is for training: build the cache under sharded")
        self.data.setup_train()
        measured = self.data.statistics_count(self.method.statistics_problems, self.trainer.world_size)
        split = self.data.splits["train"]
        encoded = split.teacher or split.student
        keys = encoded.keys()
        shape = self.method.teacher_shape()
        manifest = Manifest(
            identity=cache_identity(self.method, self.data, self.trainer.precision),
            rows=rows_digest(keys),
            problems=len(keys),
            shape={"layers": shape.layers, "hidden": shape.hidden},
            dtype=self.dtype,
            shard_problems=self.shard_problems or 0,
        )
        if self.is_done(manifest):
            return
        if self.trainer.global_rank == 0:
            self.check_folder(manifest)
            write_plan(self.folder, manifest)
        self.method.prepare_terms(self.method.student_shape(), shape)
        terms = self.method.named_terms
        for term in terms.values():
            term.measure_teacher_alone()
        with loading(self.trainer.strategy):
            teacher = self.method.load_teacher()
        common = (teacher, terms, encoded, self.data.eval_batch_size, self.data.num_workers)
        state = state_file(self.folder)
        if state is not None:
            load_state(state, terms)
        else:
            self.predict(MeasureTeacher(*common, rows=np.arange(measured), folder=self.folder))
            if self.trainer.is_global_zero:
                save_state(self.folder, terms)
            self.trainer.strategy.barrier()
            state = state_file(self.folder)
            if state is None:
                raise LoriError(
                    f"{self.folder}: this process does not see the measured terms that the first one wrote (a network "
                    "file system may be behind); start `cache` again, which goes on from there"
                )
        if self.trainer.is_global_zero:
            drop_sums(self.folder)
        dtype = DTYPES[self.dtype]
        each = packed_bytes(terms, shape.layers, shape.hidden, dtype)
        manifest.shard_problems = self.shard_problems or max(1, min(_SHARD_BYTES // each, len(keys)))
        log.info("%d problems, %d bytes each: %.2f GB", len(keys), each, each * len(keys) / 1e9)
        ids = [problem.id for problem in split.problems]
        store = StoreStatistics(
            *common,
            folder=self.folder,
            state=state,
            shard_problems=manifest.shard_problems,
            dtype=dtype,
            keys=keys,
            ids=ids,
        )
        self.predict(store)
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            manifest.state, manifest.shards = entries(self.folder, state, manifest)
            manifest.versions = {
                "lori_pl": f"{__version__} ({git_commit()})",
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "safetensors": safetensors.__version__,
            }
            manifest.made = {
                "teacher": self.method.teacher_backbone.name if self.method.teacher_backbone else None,
                "seconds": round(time.monotonic() - start, 1),
                "bytes_a_problem": each,
                "processes": self.trainer.world_size,
            }
            write_file(self.folder / MANIFEST, manifest.as_json())
            total = sum(entry.bytes for entry in manifest.shards)
            print(f"cache: {self.folder} ({len(keys)} problems, {total / 1e6:.1f} MB, {each} bytes a problem)")

    def is_done(self, manifest: Manifest) -> bool:
        """Whether the folder holds this very cache, finished and sound.

        Raises:
            LoriError: If it holds another one, finished.
        """
        if not (self.folder / MANIFEST).is_file():
            return False
        try:
            cache = TeacherCache(self.folder)
        except LoriError as error:
            log.warning("%s", error)  # made anew of what is there
            return False
        wanted = manifest.plan
        if self.shard_problems is None:
            wanted["shard_problems"] = cache.manifest.shard_problems
        self._compare(cache.manifest.plan, wanted)
        # files that were lost or altered are made anew among those that are there
        self.shard_problems = cache.manifest.shard_problems
        try:
            cache.verify()
        except LoriError as error:
            log.warning("%s", error)
            return False
        if self.trainer.is_global_zero:
            print(f"cache: {self.folder} is finished already")
        return True

    def check_folder(self, manifest: Manifest) -> None:
        """Makes sure that what the folder holds is the beginning of this cache.

        Raises:
            LoriError: If it is that of another, or something else.
        """
        if (self.folder / PLAN).is_file():
            self._compare(read_plan(self.folder), manifest.plan)
        elif self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise LoriError(f"{self.folder} is not empty and holds no cache; give another --folder")

    def _compare(self, found: dict[str, Any], plan: dict[str, Any]) -> None:
        if difference := first_difference(found, plan):
            field, held, value = difference
            raise LoriError(
                f"{self.folder} holds a cache with {field} {held}, and this one would have {value}; give another "
                "--folder, or remove it"
            )

    def predict(self, module: Any) -> None:
        """Runs one pass."""
        self.trainer.callbacks = [c for c in self.trainer.callbacks if not isinstance(c, BuildProgress)]
        self.trainer.callbacks.append(BuildProgress())
        self.trainer.predict(module, return_predictions=False)


def _parser() -> OwnOptions:
    parser = OwnOptions(
        "cache",
        "Run the frozen teacher once over the training problems and keep what the terms of the loss need of it, so "
        "that `fit` with --model.cache never loads it. Started again, it goes on where it stopped.",
    )
    parser.add_argument("--folder", metavar="DIR", help="the cache's folder (default: model.cache of the config)")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float16", help="type of the stored numbers (default: float16)"
    )
    parser.add_argument(
        "--shard_problems", type=int, metavar="N", help="problems a file (default: as many as fill 64 MiB)"
    )
    return parser
