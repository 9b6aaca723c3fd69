"""What the alignment's subspace holds, as numbers and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lori_pl.data.loading import collate_pairs
from lori_pl.files import replace_file
from lori_pl.methods.latent import LatentMethod


def spectrum_figure(spectra: dict[str, Tensor]) -> Figure:
    """Draws spectra as cumulative energy by rank.

    Args:
        spectra: Name to (n,) shares of energy, in descending order.
    """
    figure = Figure(figsize=(4.5 * len(spectra), 3.2), layout="constrained")
    axes = figure.subplots(1, len(spectra), squeeze=False)[0]
    for axis, (name, spectrum) in zip(axes, spectra.items(), strict=True):
        shares = spectrum.detach().float().cpu()
        rank = range(1, len(shares) + 1)
        axis.plot(rank, (shares.cumsum(0) / shares.sum()).numpy(), color="#2458a6", label="cumulative")
        axis.bar(rank, (shares / shares.sum()).numpy(), color="#9bb8e0", label="each", width=0.9)
        axis.set(title=name.replace("_", " "), xlabel="rank", ylabel="share of energy", ylim=(0, 1.03))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(loc="center right")
    return figure


class AlignmentMonitor(pl.Callback):
    """Logs the alignment's diagnostics at each validation, and the teacher's spectrum once, as a picture.

    The picture goes to TensorBoard (or any logger that takes figures) and to ``spectrum.png`` in the run's folder.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._trained: Any = None
        self._resumed_rows: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the spectrum."""
        if not isinstance(pl_module, LatentMethod):
            return
        # all ask, for sharded weights are put together by all
        spectra = {k: v for k, v in pl_module.alignment_diagnostics(None).items() if v.ndim == 1 and len(v) > 1}
        if not spectra or not trainer.is_global_zero:
            return
        figure = spectrum_figure(spectra)
        place = Path(trainer.default_root_dir) / "spectrum.png"
        replace_file(place, lambda file: figure.savefig(file, dpi=120, format="png"))
        writer = getattr(trainer.logger, "experiment", None)
        if writer is not None and hasattr(writer, "add_figure"):
            writer.add_figure("alignment/spectrum", figure, global_step=trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch where the teacher's statistics come from a cache, which has none of validation problems."""
        if batch.statistics is not None:
            self._trained = batch

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the first batch for the diagnostics."""
        if batch_idx == 0:
            self._batch = batch

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the diagnostics of the first validation batch; with a cache, of the last training batch."""
        if not isinstance(pl_module, LatentMethod) or trainer.sanity_checking or self._batch is None:
            return
        if self._trained is None:
            self._trained = self._taken_up(trainer)
        values = pl_module.alignment_diagnostics(self._batch if self._trained is None else self._trained)
        self._batch = self._trained = None
        scalars = {f"alignment/{name}": value.float() for name, value in values.items() if value.ndim == 0}
        pl_module.log_dict(scalars, rank_zero_only=True)

    def _taken_up(self, trainer: pl.Trainer) -> Any:
        """The training batch that a resumed run's validation had before it was broken off; ``None`` without one."""
        rows, self._resumed_rows = self._resumed_rows, []
        data: Any = trainer.datamodule
        split = data.splits.get("train")
        if not rows or split is None or split.cached is None or max(rows) >= len(split.problems):
            return None
        return trainer.strategy.batch_to_device(collate_pairs(split)(rows))

    def state_dict(self) -> dict[str, Any]:
        """Keeps the rows of a training batch whose diagnostics are still to be logged."""
        return {"rows": [] if self._trained is None else self._trained.index.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up."""
        self._resumed_rows = list(state_dict["rows"])
