"""A process of a test that hangs fails the test, and says where it hung."""

from __future__ import annotations

import threading

import forked
import pytest
from torch.multiprocessing.spawn import ProcessExitedException

pytestmark = pytest.mark.distributed


def waits_in_vain(rank: int) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=-1 if rank else 0)


def test_a_process_that_hangs_is_ended_and_says_where(monkeypatch, capfd):
    monkeypatch.setattr(forked, "LIMIT", 1)
    with pytest.raises(ProcessExitedException, match="process 1 terminated with signal SIGALRM"):
        forked.forked(waits_in_vain)
    assert "in waits_in_vain" in capfd.readouterr().err


def rank_and(rank: int, word: str) -> str:
    return f"{word} {rank}"


def test_a_group_gives_back_what_each_process_found(tmp_path):
    assert forked.in_group(rank_and, tmp_path, "process", count=3) == ["process 0", "process 1", "process 2"]
