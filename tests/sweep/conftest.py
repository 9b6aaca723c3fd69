"""The bench of fake runs."""

import pytest
from sweep_bench import Bench


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)
