"""Fixtures of all tests: no network, few threads, tiny models from a config."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    # tensors are tiny: threads would only wait for each other
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _interrupts_are_heard():
    """A shell starts background jobs with SIGINT ignored; tests that send it must not depend on that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _nothing_leaks():
    """A test that changes the environment or leaves a thread running fails."""
    before = dict(os.environ)
    threads = {thread.ident for thread in threading.enumerate()}
    yield
    changed = {k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k)}
    changed -= {
        "PYTEST_CURRENT_TEST",
        "PL_GLOBAL_SEED",
        "PL_SEED_WORKERS",
        "POSSIBLE_USER_WARNINGS",
        "KMP_INIT_AT_FORK",
        "PYTORCH_NVML_BASED_CUDA_CHECK",
        "LORI_PL_STARTED",
        "TORCHINDUCTOR_CACHE_DIR",
        "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
        "TRITON_CACHE_DIR",
    }
    os.environ.clear()
    os.environ.update(before)
    assert not changed, f"the test changed the environment: {sorted(changed)}"
    left = [t.name for t in threading.enumerate() if t.ident not in threads and not t.daemon and t.is_alive()]
    # transformers' weight loader lives as long as the traceback of a failed load refers to it
    left = [name for name in left if not name.startswith("ThreadPoolExecutor")]
    assert not left, f"the test left threads running: {left}"


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; set LORI_PL_DATA to use another."""
    folder = Path(os.environ.get("LORI_PL_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LORI_PL_DATA to a folder that holds them")
    return folder
