"""Several workers on one machine: processes of the same sweep, each with a GPU or a share of the cores of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

WORKER = "LORI_PL_WORKER"
"""Environment variable that tells a worker that it is one of several, and which."""

GRACE = 150.0
"""Seconds that the workers have to end after they were asked to, before they are killed."""


def run_workers(arguments: Sequence[str], number: int) -> int:
    """Runs ``lori_pl sweep`` several times at once, until all workers end; each line is shown with its worker.

    Args:
        arguments: What each is called with.
        number: How many.

    Returns:
        The largest of their exit statuses.

    Raises:
        KeyboardInterrupt: Ctrl-C; the workers are ended first.
    """
    workers: list[subprocess.Popen[str]] = []
    threads: list[threading.Thread] = []
    try:
        for place in range(number):
            workers.append(_start(arguments, place, number))
            threads.append(threading.Thread(target=_show, args=(workers[-1].stdout, place + 1)))
            threads[-1].start()
        codes = [worker.wait() for worker in workers]
    except BaseException:
        _end(workers)
        raise
    finally:
        for thread in threads:
            thread.join()
    return max(code if code >= 0 else 128 - code for code in codes)


def environment(place: int, number: int) -> dict[str, str]:
    """What a worker finds in its environment: its number, one of the GPUs if there are any, its share of the cores.

    Args:
        place: Which of the workers, from 0.
        number: How many there are.
    """
    import torch  # a sweep itself needs nothing of it

    found = {**os.environ, WORKER: str(place + 1), "PYTHONUNBUFFERED": "1"}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(gpus)]
        found["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // number))
    return found


def _start(arguments: Sequence[str], place: int, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lori_pl", "sweep", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(place, number),
        start_new_session=True,  # a Ctrl-C reaches the parent alone, which ends them
    )


def _show(lines: IO[str] | None, worker: int) -> None:
    assert lines is not None
    for line in lines:
        print(f"worker {worker}: {line}", end="", flush=True)


def _end(workers: Sequence[subprocess.Popen[str]]) -> None:
    for worker in workers:
        with suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
    for worker in workers:
        try:
            worker.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
