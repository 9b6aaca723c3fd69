"""What an interrupted build of a cache has kept of its sums."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lori_pl.cache.measuring as measuring
from lori_pl.alignment import AnchorAlignment, Signals, TrajectoryShape
from lori_pl.cache.shards import map_shard, write_sealed
from lori_pl.errors import LoriError

SHAPE = TrajectoryShape(2, 3)
ROWS = SimpleNamespace(lengths=lambda: np.ones(9))


def measured(folder):
    term = AnchorAlignment()
    term.prepare(SHAPE, SHAPE, [])
    module = measuring.MeasureTeacher(None, {"anchor": term}, ROWS, 4, 0, rows=np.arange(9), folder=folder)
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=SimpleNamespace(barrier=list))
    return module, term


def test_sums_that_another_version_kept_under_other_names_are_refused_in_one_line(tmp_path):
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
    (path,) = tmp_path.iterdir()
    kept = {name.replace("sum_of_squares", "deviation"): tensor.clone() for name, tensor in map_shard(path).items()}
    path.unlink()
    write_sealed(tmp_path, path.name.rpartition("-")[0], kept)
    again, _ = measured(tmp_path)
    again._look_back()
    with pytest.raises(LoriError, match=r"another version .*'sum_of_squares' for 'anchor'; remove .*/sweep\*\.safete"):
        again.advance(0)
