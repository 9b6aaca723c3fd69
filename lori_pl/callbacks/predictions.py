"""Predictions as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lori_pl.files import replace_file


class PredictionWriter(pl.Callback):
    """Writes what `predict` answers, one JSON object a line, in the order of the data.

    The file appears under its name only when whole; with several processes each writes a part and the first joins them.

    Args:
        path: Where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the rows of a batch."""
        self.rows += list(zip(batch.index.tolist(), outputs, strict=True))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self._part(trainer.global_rank)
        part.write_text(json.dumps(self.rows), encoding="utf-8")
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        merged: dict[int, dict[str, Any]] = {}
        for rank in range(trainer.world_size):
            merged |= dict(json.loads(self._part(rank).read_text(encoding="utf-8")))
            self._part(rank).unlink()
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for _, row in sorted(merged.items())]
        replace_file(self.path, lambda file: file.writelines(line.encode() for line in lines))
        print(f"predictions: {self.path} ({len(lines)} lines)")

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.part{rank}")
