import math
import os
from types import SimpleNamespace

import pytest
import torch

from lori_pl.callbacks.progress import ProgressFile
from lori_pl.evaluation.report import machine
from lori_pl.machine import processor
from lori_pl.sweep.progress import read_machine, read_progress


def trainer(step, total=1400, first=True):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_step=step, estimated_stepping_batches=total, is_global_zero=first, strategy=strategy)


def end_batch(callback, step):
    callback.on_train_batch_end(trainer(step), None, None, None, 0)


def test_what_a_run_says_is_what_is_read(tmp_path):
    path = tmp_path / "progress.txt"
    callback = ProgressFile(path, seconds=0)
    callback.on_train_start(trainer(0), None)
    assert read_progress(path) == (0, 1400)
    end_batch(callback, 7)
    assert read_progress(path) == (7, 1400)
    callback.on_train_end(trainer(8, math.inf), None)
    assert read_progress(path) == (8, None)
    assert os.listdir(tmp_path) == ["progress.txt"]


def test_a_run_speaks_now_and_then_and_once_for_all_processes(tmp_path):
    path = tmp_path / "progress.txt"
    callback = ProgressFile(path, seconds=60)
    callback.on_train_start(trainer(0, first=False), None)
    assert not path.exists()
    callback.on_train_start(trainer(0), None)
    end_batch(callback, 7)
    assert read_progress(path) == (0, 1400)
    callback.on_train_end(trainer(8), None)
    assert read_progress(path) == (8, 1400)


def test_a_run_says_what_it_runs_on_before_anything_else(tmp_path):
    assert read_machine(tmp_path) == f"{processor()}, no device taken yet"
    callback = ProgressFile(tmp_path / "progress.txt")
    callback.setup(trainer(0, first=False), None, "fit")
    assert os.listdir(tmp_path) == []
    callback.setup(trainer(0), None, "test")
    assert read_machine(tmp_path) == machine(torch.device("cpu"))["machine"]


def test_a_file_that_cannot_be_written_does_no_harm(tmp_path):
    callback = ProgressFile(tmp_path / "none" / "progress.txt")
    callback.setup(trainer(0), None, "fit")
    callback.on_train_start(trainer(0), None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"120/1400\n", (120, 1400)),
        (b"7/inf\n", (7, None)),
        *[(text, None) for text in (b"", b"12", b"12/", b"/9", b"a/b", b"1/2/3", b"1/nan", b"\xff\xfe/1")],
    ],
)
def test_a_file_that_says_no_step_says_nothing(tmp_path, text, found):
    (tmp_path / "progress.txt").write_bytes(text)
    assert read_progress(tmp_path / "progress.txt") == found
    assert read_progress(tmp_path / "none.txt") is None
    assert read_progress(tmp_path) is None
