"""Learning curves from TensorBoard's logs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lori_pl.errors import one_line

TAGS = {"validation": "val/accuracy", "loss": "train/loss"}
"""The curves that a report draws, with their tags."""
_MOST = 600


def read_curves(folder: Path, notes: list[str]) -> dict[str, np.ndarray]:
    """Reads a run's learning curves.

    Args:
        folder: TensorBoard's folder of the run.
        notes: Takes a line where it cannot be read.

    Returns:
        For each of `TAGS` that is there its steps and values, shape (2, n), thinned out to what a picture can show.
    """
    if not folder.is_dir():
        return {}
    # it tells of every file that a process which was killed left behind
    logger = logging.getLogger("tensorboard")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        events.Reload()
        present = events.Tags()["scalars"]
        curves = {}
        for name, tag in TAGS.items():
            if tag in present:
                points = np.array([(event.step, event.value) for event in events.Scalars(tag)], dtype=float).T
                points = points[:, np.isfinite(points).all(0)]
                if points.shape[1]:
                    curves[name] = _thinned(points)
        return curves
    except Exception as error:  # whatever a damaged log makes the library raise
        notes.append(f"{folder}: the logs cannot be read ({one_line(error, 120)}).")
        return {}
    finally:
        logger.setLevel(before)


def _thinned(points: np.ndarray) -> np.ndarray:
    """At most `_MOST` points: means of neighbours, the last one kept as it is."""
    count = points.shape[1]
    if count <= _MOST:
        return points
    edges = np.linspace(0, count - 1, _MOST).astype(int)
    means = np.add.reduceat(points[:, :-1], edges[:-1], axis=1) / np.diff(edges)
    return np.concatenate([means, points[:, -1:]], axis=1)
