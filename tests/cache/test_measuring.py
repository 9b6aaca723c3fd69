"""What an interrupted build of a cache has kept of its sums."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

import lori_pl.cache.measuring as measuring
from lori_pl.alignment import AnchorAlignment, Signals, TrajectoryShape

SHAPE = TrajectoryShape(2, 3)
ROWS = SimpleNamespace(lengths=lambda: np.ones(9))


def measured(folder):
    term = AnchorAlignment()
    term.prepare(SHAPE, SHAPE, [])
    module = measuring.MeasureTeacher(None, {"anchor": term}, ROWS, 4, 0, rows=np.arange(9), folder=folder)
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=SimpleNamespace(barrier=list))
    return module, term


def test_sums_are_taken_up_but_those_of_another_layout(tmp_path, monkeypatch):
    """What another version kept under other names is not there, and is dropped with the rest."""
    module, term = measured(tmp_path)
    module.advance(0)
    hidden = torch.randn(5, 2, 1, 3)
    term.observe(0, Signals(hidden, torch.ones(5, 1, dtype=torch.bool), hidden[:, :, 0]), None)
    module.done = 5
    module.save()
    again, other = measured(tmp_path)
    again._look_back()
    again.advance(0)
    assert again.done == 5
    assert all(torch.equal(sums, term.sweep_state()[name]) for name, sums in other.sweep_state().items())
    monkeypatch.setattr(measuring, "_LAYOUT", 0)
    older, _ = measured(tmp_path)
    older._look_back()
    assert (older.done, older.kept) == (0, None)
    measuring.drop_sums(tmp_path)
    assert not list(tmp_path.iterdir())
