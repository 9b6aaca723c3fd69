"""What a summary says of the machine."""

import torch

from lori_pl.evaluation.report import machine


def test_a_gpu_tells_its_name_and_the_most_memory_that_was_held_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30 + 2**19)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert machine(torch.device("cuda", 1)) == {"machine": "GPU 1", "peak_gpu_memory_mib": 3072.5}
    assert machine(torch.device("cpu")).keys() == {"machine"}
