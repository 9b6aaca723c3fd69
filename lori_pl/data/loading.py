"""Training order: bucketed by length, fixed by seed and epoch, and resumable in mid-epoch."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from lori_pl.data.moving import pins
from lori_pl.data.pairing import PairedBatch, paired_batch
from lori_pl.errors import LoriError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lori_pl.data.datamodule import PreparedSplit

BATCHES_A_WINDOW = 32


def ignore_signals(worker: int) -> None:
    """Leaves signals that tell a run to stop to the process that trains, which ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def collate_pairs(split: PreparedSplit) -> Callable[[Sequence[int]], PairedBatch]:
    """Gives the function that turns row numbers of ``split`` into a batch."""
    return partial(
        paired_batch,
        steps=split.steps,
        student=split.student,
        teacher=split.teacher,
        cached=split.cached,
        pieces=split.student.step_starts is not None,
    )


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """Draws the batches of one epoch.

    Rows are shuffled; with ``lengths``, each window of 32 batches is sorted by length before it is cut into batches,
    and the batches are shuffled again: like lengths meet, yet every batch is a random one of its window.

    Args:
        count: Number of rows; those beyond the last full batch are left out of this epoch.
        batch_size: Rows a batch.
        seed: Seed.
        epoch: Epoch number; each has its own order.
        lengths: (count,) tokens a row.

    Returns:
        Arrays of ``batch_size`` row numbers.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = rng.permutation(count)[: count // batch_size * batch_size]
    if lengths is not None:
        window = batch_size * BATCHES_A_WINDOW
        parts = [rows[i : i + window] for i in range(0, len(rows), window)]
        rows = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = rows.reshape(-1, batch_size)
    return list(batches[rng.permutation(len(batches))] if lengths is not None else batches)


class EpochSampler(Sampler[list[int]]):
    """Yields the batches of an epoch from a given one on, the part of this process.

    Args:
        count: Number of rows.
        batch_size: Rows a batch and process.
        seed: Seed.
        lengths: (count,) tokens a row, to batch like lengths together.
        processes: Number of data-parallel processes; together they take one global batch after another.
        process: Number of this process.
        accumulated: Number of batches whose gradients are accumulated: a global batch is as many from each process, so
            that the same problems make a step however they are divided.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        lengths: np.ndarray | None,
        processes: int = 1,
        process: int = 0,
        accumulated: int = 1,
    ) -> None:
        self.count, self.batch_size, self.seed, self.lengths = count, batch_size, seed, lengths
        self.processes, self.process, self.accumulated = processes, process, accumulated
        self.epoch = 0
        self.first = 0

    @property
    def global_size(self) -> int:
        """Rows an optimiser step, over all processes."""
        return self.batch_size * self.processes * self.accumulated

    def __len__(self) -> int:
        return self.count // self.global_size * self.accumulated

    def __iter__(self) -> Iterator[list[int]]:
        everything = epoch_batches(self.count, self.global_size, self.seed, self.epoch, self.lengths)
        begin, skip = divmod(self.first, self.accumulated)
        for batch in everything[begin:]:
            for part in range(skip, self.accumulated):
                yield batch[part * self.processes + self.process :: self.processes * self.accumulated].tolist()
            skip = 0


class ResumableLoader(DataLoader[PairedBatch]):
    """A loader that knows where it is: Lightning saves and restores its state with a checkpoint.

    Args:
        split: The training split.
        lengths: (count,) tokens a row, to batch like lengths together.
        batch_size: Rows a batch and process.
        seed: Seed of the order.
        num_workers: Worker processes.
        trainer: The trainer, for the number of processes and of batches that are accumulated.
    """

    def __init__(
        self,
        split: PreparedSplit,
        lengths: np.ndarray | None,
        batch_size: int,
        seed: int,
        num_workers: int,
        trainer: Trainer | None,
    ) -> None:
        self.trainer = trainer
        parts = (trainer.world_size, trainer.global_rank, trainer.accumulate_grad_batches) if trainer else (1, 0, 1)
        self.order = EpochSampler(len(split.problems), batch_size, seed, lengths, *parts)
        self.epoch = 0
        self.taken = 0
        super().__init__(
            range(len(split.problems)),  # type: ignore[arg-type]
            batch_sampler=self.order,
            collate_fn=collate_pairs(split),
            num_workers=num_workers,
            worker_init_fn=ignore_signals,
            pin_memory=pins(trainer),
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[PairedBatch]:  # type: ignore[override]
        if self.trainer is not None and self.trainer.current_epoch != self.epoch:
            # a checkpoint between two epochs: Lightning restores its epoch but not this loader
            self.epoch, self.taken = self.trainer.current_epoch, 0
        self.order.epoch, self.order.first = self.epoch, self.taken
        for batch in super().__iter__():
            self.taken += 1
            if self.taken == len(self.order):
                # before the last batch is given: nobody asks for one more
                self.epoch, self.taken = self.epoch + 1, 0
            yield batch

    @property
    def _sizes(self) -> dict[str, int]:
        order = self.order
        return {"problems_a_batch": order.batch_size * order.processes, "accumulated_batches": order.accumulated}

    def state_dict(self) -> dict[str, Any]:
        """Gives the epoch, the number of its batches that were taken, and of what sizes they were."""
        return {"epoch": self.epoch, "taken": self.taken, **self._sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on behind the batches that were taken.

        Raises:
            LoriError: If they were of other sizes, so that their number means another place.
        """
        for name, size in self._sizes.items():
            if state.get(name, size) != size:
                what = name.replace("_", " ")
                raise LoriError(
                    f"the checkpoint was made with {what} {state[name]}, and this run has {size}: keep "
                    "data.batch_size x processes, and trainer.accumulate_grad_batches"
                )
        self.epoch, self.taken = int(state["epoch"]), int(state["taken"])
