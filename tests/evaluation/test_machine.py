"""What a summary says of the machine."""

from pathlib import Path

import pytest
import torch

from lori_pl.evaluation.report import machine
from lori_pl.machine import processor


def test_a_gpu_tells_its_name_and_the_most_memory_that_was_held_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30 + 2**19)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert machine(torch.device("cuda", 1)) == {"machine": "GPU 1", "peak_gpu_memory_mib": 3072.5}
    assert machine(torch.device("cpu")).keys() == {"machine"}


@pytest.mark.parametrize(
    ("system", "told", "named"),
    [
        ("processor\t: 0\nmodel name\t: A  CPU @ 2 GHz \nmodel name\t: other\n", "", "A  CPU @ 2 GHz, riscv"),
        ("no name\n", "arm", "arm, riscv"),
        (None, "riscv", "riscv"),
        (None, "", "riscv"),
    ],
)
def test_a_processor_tells_its_name(system, told, named, monkeypatch):
    def read(path, encoding):
        if system is None:
            raise FileNotFoundError(path)
        return system

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("platform.processor", lambda: told)
    monkeypatch.setattr("platform.machine", lambda: "riscv")
    assert processor.__wrapped__() == named
