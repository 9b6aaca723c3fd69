"""The first passes of a cache's building: the teacher's side of every term, sweep by sweep, kept as it goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lori_pl.alignment import Term
from lori_pl.alignment.packing import prefixed
from lori_pl.cache.build import RowBatch, TeacherPass, row_loader
from lori_pl.cache.shards import is_sound, map_shard, sealed_paths, write_sealed
from lori_pl.data.moving import pins

SAVE_EVERY = 60.0
"""Seconds after which the sums are written again."""

_LAYOUT = 2
"""Number of what is kept: sums of another are not there."""
_ROWS = "rows"


class MeasureTeacher(TeacherPass):
    """Fits the teacher's side of every term, sweep by sweep, as training without a cache does.

    Each process keeps its sums in a file, so that an interrupted build goes on from them with as many processes.

    Args:
        rows: The rows to measure.
        folder: The cache's folder.
        others: As in `TeacherPass`.
    """

    label = "measuring"

    def __init__(self, *others: Any, rows: np.ndarray, folder: Path) -> None:
        super().__init__(*others)
        self.rows = rows
        self.folder = folder
        self.sweep = -1
        self.mine = rows
        self.done = 0
        self.kept: dict[str, Tensor] | None = None
        self._first = 0
        self._saved = time.monotonic()

    @property
    def measured(self) -> dict[str, Term]:
        """The terms that take sweeps."""
        return {name: term for name, term in self.named().items() if term.sweeps}

    @property
    def sweeps(self) -> int:
        """Number of passes over the rows."""
        return max((term.sweeps for term in self.measured.values()), default=0)

    def predict_dataloader(self) -> list[DataLoader[RowBatch]]:
        """The process's part of the rows, once a sweep; what an interrupted build has seen is passed over."""
        rows = self.rows[np.argsort(self.lengths[self.rows], kind="stable")]
        self.mine = rows[self.trainer.global_rank :: self.trainer.world_size]
        self._look_back()
        self.to_do = len(self.mine) * (self.sweeps - self._first) - self.done
        parts = [self.mine[self.done :], *([self.mine] * (self.sweeps - self._first - 1))]
        pin = pins(self.trainer)
        return [row_loader(self.as_many(self.batches(part)), self.encoded, self.workers, pin) for part in parts]

    def predict_step(self, batch: RowBatch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Shows a batch to the terms that are at work in this sweep."""
        self.advance(self._first + dataloader_idx)
        signals = self.signals(batch)
        for term in self.measured.values():
            if self.sweep < term.sweeps and len(batch.index):
                term.observe(self.sweep, signals, None)
        self.done += len(batch.index)
        if time.monotonic() - self._saved >= SAVE_EVERY and self.done < len(self.mine):
            self.save()
        return len(batch.index)

    def on_predict_epoch_end(self) -> None:
        """Ends the last sweep."""
        self.advance(self.sweeps)

    def advance(self, sweep: int) -> None:
        """Ends sweeps and begins others until ``sweep`` is the one at work."""
        if self.kept is not None:
            self._resume(self.kept)
            self.kept = None
        while self.sweep < sweep:
            for term in self.measured.values():
                if 0 <= self.sweep < term.sweeps:
                    term.end_sweep(self.sweep)
            self.sweep += 1
            for term in self.measured.values():
                if self.sweep < term.sweeps:
                    term.begin_sweep(self.sweep)
            if 0 < self.sweep < self.sweeps:
                self.done = 0
                self.save()
                # all processes have this sweep's file before one drops its last of the sweep before
                self.trainer.strategy.barrier()
                self._drop(self.sweep - 1)

    # ---- what is kept -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the terms and their sums, in place of those of this sweep that are there."""
        tensors: dict[str, Tensor] = {_ROWS: torch.tensor(self.done)}
        for name, term in self.measured.items():
            sums = term.sweep_state()
            if sums is None:
                return
            parts = {"state": term.state_dict(), "sums": sums}
            tensors |= {f"{name}/{part}/{key}": value for part, held in parts.items() for key, value in held.items()}
        copies = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        written = write_sealed(self.folder, self._name(self.sweep, self.trainer.global_rank), copies)
        self._drop(self.sweep, written)
        self._saved = time.monotonic()

    def _drop(self, sweep: int, but: Path | None = None) -> None:
        for path in sealed_paths(self.folder, self._name(sweep, self.trainer.global_rank)):
            if path != but:
                path.unlink(missing_ok=True)

    def _name(self, sweep: int, process: int) -> str:
        return f"sums{_LAYOUT}-sweep{sweep}-process{process}of{self.trainer.world_size}"

    def _look_back(self) -> None:
        """Finds the last sweep of which every process has kept its sums."""
        for sweep in reversed(range(self.sweeps)):
            found = [self._sound(sweep, process) for process in range(self.trainer.world_size)]
            mine = found[self.trainer.global_rank]
            if mine is not None and None not in found:
                self.kept, self._first = map_shard(mine), sweep
                self.done = int(self.kept.pop(_ROWS))
                break
        self.trainer.strategy.barrier()  # nobody writes before all have looked

    def _sound(self, sweep: int, process: int) -> Path | None:
        paths = sealed_paths(self.folder, self._name(sweep, process))
        # of two, where a build was killed between them, either will do: each says which rows it has seen
        return next((path for path in paths if is_sound(path)), None)

    def _resume(self, kept: dict[str, Tensor]) -> None:
        self.sweep = self._first
        for name, term in self.measured.items():
            term.load_state_dict(prefixed(kept, f"{name}/state/"))
            if self.sweep < term.sweeps:
                term.resume_sweep(self.sweep, prefixed(kept, f"{name}/sums/"))


def drop_sums(folder: Path) -> None:
    """Removes what interrupted builds have kept of their sums: the terms are measured."""
    for path in folder.glob("*sweep*-process*of*-*.safetensors"):
        path.unlink(missing_ok=True)
