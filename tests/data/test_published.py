"""Published files: fetched whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lori_pl.data.sources import GSM8K, JSONL, SOURCES, SVAMP, PublishedFile, RowSource
from lori_pl.data.sources.published import fetch_file
from lori_pl.errors import LoriError

CONTENT = b'{"question": "2 + 1?", "answer": "<<2+1=3>> #### 3"}\n' * 70_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/none":
            self.send_error(404)
            return
        content = b"" if self.path == "/empty" else CONTENT
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if self.path == "/login" else "text/plain")
        self.send_header("Content-Length", "many" if self.path == "/many" else str(len(content)))
        self.end_headers()
        with suppress(ConnectionError):  # who has seen enough has gone
            self.wfile.write(content[: len(content) // 2] if self.path == "/half" else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_file_is_fetched_as_it_was_published(origin, tmp_path, sha256):
    file = fetch_file(PublishedFile("train.jsonl", f"{origin}/train", sha256), tmp_path / "new" / "data")
    assert file == tmp_path / "new" / "data" / "train.jsonl"
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("place", "sha256", "cause"),
    [
        ("none", None, "404"),
        ("login", None, "a web page came"),
        ("empty", None, "0 of 0 bytes came"),
        ("many", None, "invalid literal"),
        ("half", None, f"{len(CONTENT) // 2} of {len(CONTENT)} bytes came"),
        ("train", "0" * 64, f"its SHA-256 is {SHA256}, not 0000"),
    ],
)
def test_nothing_is_left_of_what_is_not_whole(origin, tmp_path, place, sha256, cause):
    with pytest.raises(LoriError, match=r"train\.jsonl cannot be fetched .*put it there by hand from http") as caught:
        fetch_file(PublishedFile("train.jsonl", f"{origin}/{place}", sha256), tmp_path)
    assert cause in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_no_network_where_it_is_forbidden(origin, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(LoriError, match=f"{name} forbids"):
        fetch_file(PublishedFile("train.jsonl", f"{origin}/train"), tmp_path)


def test_a_host_that_is_not_there(tmp_path):
    with pytest.raises(LoriError, match="check network and disk"):
        fetch_file(PublishedFile("train.jsonl", "http://127.0.0.1:9/train"), tmp_path)


def test_only_what_a_folder_lacks_is_asked_for(tmp_path, real_data):
    source = GSM8K(str(tmp_path / "gsm8k"))
    assert [source.absent(split).name for split in ("train", "validation", "test")] == [
        *("train.jsonl", "train.jsonl", "test.jsonl"),
    ]
    with pytest.raises(LoriError, match=r"the command prepare fetches it"):
        source.load("test")
    source.path.mkdir()
    (source.path / "test.jsonl").symlink_to(real_data / "gsm8k" / "test.jsonl")
    assert source.absent("test") is None
    assert source.absent("train") is not None
    # an own test set, of which the published training problems may be a part
    (source.path / "test.jsonl").unlink()
    (source.path / "test.jsonl").write_text("{}")
    assert source.absent("train") is None
    svamp = SVAMP(str(tmp_path / "svamp"))
    assert svamp.absent("test") is not None
    svamp.path.mkdir()
    (svamp.path / "train.json").write_text("[]")
    assert svamp.absent("test") is None
    # a path that means a file, a source without a path, one that nobody published
    for other in (SVAMP(str(tmp_path / "SVAMP.json")), SVAMP(), JSONL(str(tmp_path))):
        assert other.absent("test") is None
    assert SVAMP(str(tmp_path)).absent("train") is None


def test_published_files_have_a_name_that_is_read_and_a_fixed_address():
    sources = [source for source in SOURCES.values() if issubclass(source, RowSource) and source.published]
    assert {source.name for source in sources} == {"gsm8k", "gsm8k_aug", "gsm_hard", "svamp", "multiarith"}
    for source in sources:
        for split, file in source.published.items():
            assert file.name in source.file_names[split]
            assert Path(file.url).name == file.name
            parts = file.url.split("/")
            assert parts[0] == "https:"
            assert any(len(part) == 40 and set(part) <= set("0123456789abcdef") for part in parts)
            assert file.sha256 is None or len(file.sha256) == 64


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_aug"])
def test_the_checksums_are_those_of_the_real_files(name, real_data):
    here = [file for file in set(SOURCES[name].published.values()) if (real_data / name / file.name).is_file()]
    assert len(here) == 2
    assert all(file.is_at(real_data / name / file.name) for file in here)
