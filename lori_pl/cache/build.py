"""Building a cache with the Trainer's predict loop: what its passes share, and the one that stores all rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from lori_pl.alignment import Signals, Term
from lori_pl.cache.manifest import PLAN, Manifest, ShardEntry
from lori_pl.cache.shards import (
    is_sound,
    map_shard,
    packed_with,
    seal,
    sealed_paths,
    shard_name,
    write_file,
    write_sealed,
)
from lori_pl.cache.store import KEY, of_term
from lori_pl.data.moving import TensorFields, pins
from lori_pl.data.pairing import EncodedProblems, ExplicitBatch, explicit_batch
from lori_pl.errors import LoriError
from lori_pl.files import checksum, file_checksum
from lori_pl.models.teacher import FrozenTeacher
from lori_pl.sharding import most_anywhere, shard

log = logging.getLogger(__name__)

STATE = "terms"


@dataclass
class RowBatch(TensorFields):
    """Rows of a data set as the teacher reads them: their numbers (B,), and the sequences.

    Without numbers the sequence stands for none: the process goes through the teacher because others do.
    """

    index: Tensor
    explicit: ExplicitBatch


def row_loader(
    batches: Sequence[np.ndarray], encoded: EncodedProblems, workers: int, pin: bool
) -> DataLoader[RowBatch]:
    """Gives the rows of each batch, collated, in order."""
    # an item is a batch: Lightning replaces a batch sampler of one's own in its predict loop
    return DataLoader(
        list(batches),  # type: ignore[arg-type]
        batch_size=1,
        collate_fn=partial(_collate, encoded=encoded),
        num_workers=workers,
        pin_memory=pin,
    )


def _collate(items: list[np.ndarray], encoded: EncodedProblems) -> RowBatch:
    rows = items[0].tolist()
    # without rows it is a pass that others need
    return RowBatch(torch.as_tensor(rows, dtype=torch.long), explicit_batch(rows or [0], encoded))


class TeacherPass(pl.LightningModule):
    """What both passes share: the frozen teacher, and the terms that take in what it gives.

    Args:
        teacher: The teacher.
        terms: The terms by name, prepared.
        encoded: The rows in the teacher's tokens.
        batch_size: Rows a batch.
        workers: Worker processes of a loader.
    """

    label = ""

    def __init__(
        self, teacher: FrozenTeacher, terms: Mapping[str, Term], encoded: EncodedProblems, batch_size: int, workers: int
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.terms = nn.ModuleDict(terms)
        self.encoded = encoded
        self.lengths = encoded.lengths()
        self.batch_size = batch_size
        self.workers = workers
        self.to_do = 0
        self.written = 0

    def configure_model(self) -> None:
        """Nothing: the teacher is built already."""

    def shard(self, mesh: DeviceMesh, device: torch.device, **options: Any) -> None:
        """Shards the teacher over processes, once; see `lori_pl.sharding.shard`."""
        if not isinstance(self.teacher, FSDPModule):
            shard(self.teacher, [self.teacher.lm], [self.teacher], (), mesh, device, **options)

    def signals(self, batch: RowBatch) -> Signals:
        """The teacher's trajectory and anchor states."""
        trajectory, anchor = self.teacher(batch.explicit)
        return Signals(trajectory, batch.explicit.rationale_mask, anchor)

    def named(self) -> dict[str, Term]:
        """The terms, typed."""
        return {name: term for name, term in self.terms.items() if isinstance(term, Term)}

    def batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cuts rows into batches of like length."""
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def as_many(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Where the teacher is sharded, as many batches as any process has: its weights are put together by all."""
        if not isinstance(self.teacher, FSDPModule):
            return batches
        none = np.empty(0, dtype=np.int64)
        return batches + [none] * (most_anywhere(len(batches), self.device) - len(batches))


class StoreStatistics(TeacherPass):
    """Writes the packed statistics of all rows, shard by shard; shards that are there are passed over.

    Args:
        folder: The cache's folder.
        state: The file of the terms' state: a shard that was packed with another is made anew.
        shard_problems: Rows a shard.
        dtype: Type of the stored numbers.
        keys: (n, 16) uint8, the rows' keys.
        ids: The rows' ids, for messages.
        others: As in `TeacherPass`.
    """

    label = "storing"

    def __init__(
        self,
        *others: Any,
        folder: Path,
        state: Path,
        shard_problems: int,
        dtype: torch.dtype,
        keys: np.ndarray,
        ids: Sequence[str],
    ) -> None:
        super().__init__(*others)
        self.folder = folder
        self.state = seal(state)
        self.shard_problems = shard_problems
        self.store_dtype = dtype
        self.keys = keys
        self.ids = ids
        self.buffer: dict[str, Tensor] = {}
        self.filled = 0

    @property
    def shards(self) -> int:
        """Number of shards of the whole cache."""
        return -(-len(self.keys) // self.shard_problems)

    def rows_of(self, shard: int) -> np.ndarray:
        """The rows of a shard."""
        return np.arange(shard * self.shard_problems, min((shard + 1) * self.shard_problems, len(self.keys)))

    def predict_dataloader(self) -> DataLoader[RowBatch]:
        """The process's part of the shards that are not there yet."""
        mine = range(self.trainer.global_rank, self.shards, self.trainer.world_size)
        waiting = [shard for shard in mine if not self.is_there(shard)]
        self.to_do = sum(len(self.rows_of(shard)) for shard in waiting)
        batches = [batch for shard in waiting for batch in self.batches(self.rows_of(shard))]
        return row_loader(self.as_many(batches), self.encoded, self.workers, pins(self.trainer))

    def is_there(self, shard: int) -> bool:
        """Whether a sound file of the shard, packed with these terms, is there; any other is removed."""
        found = False
        for path in sealed_paths(self.folder, shard_name(shard)):
            if not is_sound(path):
                log.warning("%s was altered or cut off; it is made anew", path)
            elif packed_with(path) != self.state:
                log.warning("%s was packed with other factors; it is made anew", path)
            else:
                found = True
                continue
            path.unlink()
        return found

    def predict_step(self, batch: RowBatch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Adds a batch to the shard at work, and writes that once it is full."""
        signals = self.signals(batch)
        rows = batch.index.cpu().numpy()
        if not len(rows):
            return 0
        number = int(rows[0]) // self.shard_problems
        members = self.rows_of(number)
        for name, term in self.named().items():
            for key, value in term.pack(term.teacher_statistics(signals)).items():
                self._put(f"{name}/{key}", value, rows, members)
        self.filled += len(rows)
        if self.filled == len(members):
            tensors = {KEY: torch.from_numpy(self.keys[members]), **self.buffer}
            path = write_sealed(self.folder, shard_name(number), tensors, self.state)
            self.written += path.stat().st_size
            self.buffer, self.filled = {}, 0
        return len(rows)

    def _put(self, name: str, value: Tensor, rows: np.ndarray, members: np.ndarray) -> None:
        stored = value.to(self.store_dtype)
        if not stored.isfinite().all():
            wrong = ~stored.isfinite().flatten(1).all(1)
            row = int(rows[int(wrong.nonzero()[0])])
            if value[wrong].isfinite().all():
                raise LoriError(
                    f"problem {self.ids[row]}: {name} reaches {float(value[wrong].abs().max()):.3g}, more than "
                    f"{str(self.store_dtype).removeprefix('torch.')} holds; use --dtype bfloat16 or float32"
                )
            raise LoriError(
                f"problem {self.ids[row]}: the teacher's {name} is not finite; load it in bfloat16 or float32"
            )
        if name not in self.buffer:
            self.buffer[name] = torch.empty(len(members), *value.shape[1:], dtype=self.store_dtype)
        self.buffer[name][torch.from_numpy(rows - members[0])] = stored.cpu()


def rows_digest(keys: np.ndarray) -> str:
    """Digest of the keys of all rows, in order."""
    return checksum(keys.tobytes())


def packed_bytes(terms: Mapping[str, Term], layers: int, hidden: int, dtype: torch.dtype) -> int:
    """Bytes a problem in a cache: the packed statistics of fitted terms, and the key."""
    device = next((term.fitted.device for term in terms.values()), torch.device("cpu"))
    zeros = torch.zeros(1, layers, 1, hidden, device=device)
    signals = Signals(zeros, torch.ones(1, 1, dtype=torch.bool, device=device), zeros[:, :, 0])
    packed = [value for term in terms.values() for value in term.pack(term.teacher_statistics(signals)).values()]
    return sum(value.numel() for value in packed) * dtype.itemsize + 16


def save_state(folder: Path, terms: Mapping[str, Term]) -> None:
    """Writes the teacher's side of the terms, in place of any other."""
    state = {f"{name}/{key}": value for name, term in terms.items() for key, value in term.teacher_state().items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    written = write_sealed(folder, STATE, tensors)
    for path in sealed_paths(folder, STATE):
        if path != written:
            path.unlink()


def state_file(folder: Path) -> Path | None:
    """The file of the terms' state, if there is a sound one."""
    for path in sealed_paths(folder, STATE):
        if is_sound(path):
            return path
        log.warning("%s was altered or cut off; it is measured anew", path)
    return None


def load_state(path: Path, terms: Mapping[str, Term]) -> None:
    """Takes the teacher's side of the terms from an earlier, interrupted build."""
    tensors = map_shard(path)
    for name, term in terms.items():
        term.load_teacher_state(of_term(tensors, name))


def entries(folder: Path, state: Path, manifest: Manifest) -> tuple[ShardEntry, list[ShardEntry]]:
    """What the manifest says of the files: the terms' state, and every shard.

    Raises:
        LoriError: If one is missing.
    """

    def entry(path: Path, problems: int) -> ShardEntry:
        return ShardEntry(path.name, problems, path.stat().st_size, file_checksum(path))

    shards = []
    for number in range(-(-manifest.problems // manifest.shard_problems)):
        paths = [path for path in sealed_paths(folder, shard_name(number)) if packed_with(path) == seal(state)]
        if not paths:
            raise LoriError(f"{folder}: shard {number} is missing; start `cache` again")
        path = paths[0]
        first = number * manifest.shard_problems
        shards.append(entry(path, min(manifest.shard_problems, manifest.problems - first)))
    return entry(state, 0), shards


def write_plan(folder: Path, manifest: Manifest) -> None:
    """Notes what is being built, so that a later start can tell whether it may go on."""
    write_file(folder / PLAN, (json.dumps(manifest.plan, indent=2, sort_keys=True) + "\n").encode())
