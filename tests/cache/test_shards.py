"""The files of a cache, and how large they are."""

from __future__ import annotations

import errno
import os
import pickle
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, TrajectoryShape
from lori_pl.cache.build import StoreStatistics, packed_bytes
from lori_pl.cache.manifest import Manifest, ShardEntry, first_difference, read_manifest
from lori_pl.cache.shards import (
    is_sound,
    map_shard,
    packed_with,
    sealed_paths,
    write_file,
    write_sealed,
)
from lori_pl.cache.store import CachedRows, TeacherCache, of_term
from lori_pl.errors import LoriError
from lori_pl.files import checksum, file_checksum
from lori_pl.methods.terms import named_terms

DOCS = (Path(__file__).parents[2] / "docs" / "cache.md").read_text(encoding="utf-8")
LLAMA_1B = TrajectoryShape(16, 2048)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_shard_is_mapped_as_it_was_written(tmp_path, dtype):
    tensors = {"T/mean": torch.randn(5, 2, 3).to(dtype), "key": torch.arange(80, dtype=torch.uint8).view(5, 16)}
    path = write_sealed(tmp_path, "shard-00003", tensors, "abc")
    assert sealed_paths(tmp_path, "shard-00003") == [path]
    assert sealed_paths(tmp_path, "shard-00002") == []
    assert is_sound(path)
    assert packed_with(path) == "abc"
    mapped = map_shard(path)
    assert mapped.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(mapped[name], tensor)
        assert mapped[name].dtype == tensor.dtype
    mapped["key"][0] = 7  # of this process alone
    assert is_sound(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_that_the_disk_gives_back_otherwise_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("lori_pl.cache.shards.file_checksum", lambda path: "0")
    with pytest.raises(LoriError, match="something else than was written"):
        write_file(tmp_path / "a", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 4, 12, 60, -1])
def test_a_cut_file_is_no_shard(tmp_path, length):
    path = write_sealed(tmp_path, "shard-00000", {"key": torch.zeros(4, 16, dtype=torch.uint8)})
    content = path.read_bytes()
    path.write_bytes(content[:length])
    assert not is_sound(path)
    with pytest.raises(LoriError, match="no whole shard"):
        map_shard(path)


def stored(folder, rows=7, each=3):
    """A cache of one term, whose mean of row i is i."""
    entries = []
    for number, first in enumerate(range(0, rows, each)):
        mine = torch.arange(first, min(first + each, rows))
        keys = torch.zeros(len(mine), 16, dtype=torch.uint8)
        keys[:, 0] = mine.to(torch.uint8)
        tensors = {"key": keys, "T/mean": mine.float()[:, None].expand(-1, 2).contiguous()}
        path = write_sealed(folder, f"shard-{number:05d}", tensors)
        entries.append(ShardEntry(path.name, len(mine), path.stat().st_size, file_checksum(path)))
    write_file(folder / "terms.safetensors", b"state")
    state = ShardEntry("terms.safetensors", 0, 5, checksum(b"state"))
    manifest = Manifest({"terms": {"T": {}}}, "", rows, {"layers": 1, "hidden": 2}, "float32", each, entries, state)
    write_file(folder / "manifest.json", manifest.as_json())
    return TeacherCache(folder)


def keys_of(*rows):
    keys = np.zeros((len(rows), 16), dtype=np.uint8)
    keys[:, 0] = rows
    return keys


def test_rows_are_found_in_any_order_and_number(tmp_path):
    cache = stored(tmp_path)
    cache.verify()
    rows = CachedRows(cache, cache.locate(keys_of(6, 0, 4, 4), ["a", "b", "c", "d"]))
    read = rows.read([0, 3, 1])
    assert read.keys() == {"T/mean"}
    assert of_term(read, "T")["mean"].tolist() == [[6, 6], [4, 4], [0, 0]]
    assert of_term(read, "U") == {}
    with pytest.raises(LoriError, match=r"lacks problem b \(1 of 2"):
        cache.locate(keys_of(1, 9), ["a", "b"])


def test_a_cache_of_more_files_than_a_process_may_open_by_default(tmp_path):
    cache = stored(tmp_path, rows=60, each=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [int(number) for number in os.listdir("/dev/fd")]
    few = next(limit for limit in range(soft) if limit - sum(number < limit for number in opened) == 20)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))  # 20 more than there are
        rows = CachedRows(cache, cache.locate(keys_of(*range(60)), [str(i) for i in range(60)]))
        assert of_term(rows.read([59]), "T")["mean"].tolist() == [[59, 59]]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_was_cut_off_while_it_was_mapped_is_named(tmp_path):
    """To read on would end the process by SIGBUS, or give zeros within the last page."""
    cache = stored(tmp_path)
    assert len(cache.read(np.array([0, 6]))["T/mean"]) == 2
    os.truncate(tmp_path / cache.manifest.shards[2].file, 100)
    with pytest.raises(LoriError, match=r"shard-00002-\w+\.safetensors was cut off while it was in use, to 100 of"):
        cache.read(np.array([6]))
    assert cache.read(np.array([0]))["T/mean"].tolist() == [[0, 0]]


def test_a_file_that_the_network_file_system_lost_is_named(tmp_path):
    class Lost:
        def size(self):
            raise OSError(errno.ESTALE, "Stale file handle")

    cache = stored(tmp_path)
    cache.read(np.array([0]))
    cache._shards[0]._map = Lost()
    with pytest.raises(LoriError, match=r"shard-00000-.* cannot be read \(.*Stale file handle\); mend the disk or the"):
        cache.read(np.array([0]))


@pytest.mark.parametrize("name", ["shard-00001", "manifest", "terms"])
def test_a_disk_that_does_not_read_is_no_damaged_file(tmp_path, monkeypatch, name):
    stored(tmp_path)
    original = Path.open

    def fails(path, *arguments, **keywords):
        if path.name.startswith(name):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return original(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(LoriError, match=rf"{name}.* cannot be read \(.*Stale file handle"):
        TeacherCache(tmp_path).verify()
    if name == "shard-00001":
        with pytest.raises(LoriError, match=rf"{name}.* cannot be read \(.*Stale file handle"):
            TeacherCache(tmp_path).read(np.array([0]))


def test_a_file_of_another_size_than_the_manifest_says_is_not_mapped(tmp_path):
    cache = stored(tmp_path)
    with (tmp_path / cache.manifest.shards[1].file).open("ab") as file:
        file.write(b"more")
    with pytest.raises(LoriError, match=r"shard-00001-.* bytes, and the manifest says"):
        cache.read(np.array([0]))


def test_a_files_name_is_on_the_disk_too(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync

    def note(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "a").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_file(tmp_path / "a", b"content")
    assert (str(tmp_path), True) in synced


def test_where_a_row_is_the_shards_say_and_not_the_manifest(tmp_path):
    stored(tmp_path)
    file = tmp_path / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"shard_problems": 3', '"shard_problems": 2'))
    assert TeacherCache(tmp_path).read(np.array([6, 2, 3]))["T/mean"][:, 0].tolist() == [6, 2, 3]
    file.write_text(text.replace('"problems": 7', '"problems": 8'))
    with pytest.raises(LoriError, match=r"damaged .*they have not as many problems as the cache"):
        TeacherCache(tmp_path)


def test_a_shard_of_other_factors_is_made_anew(tmp_path, caplog):
    one = write_sealed(tmp_path, "shard-00000", {"key": torch.zeros(2, 16, dtype=torch.uint8)}, "these")
    other = write_sealed(tmp_path, "shard-00001", {"key": torch.ones(2, 16, dtype=torch.uint8)}, "others")
    store = SimpleNamespace(folder=tmp_path, state="these")
    assert [StoreStatistics.is_there(store, number) for number in range(3)] == [True, False, False]
    assert one.exists()
    assert not other.exists()
    assert "packed with other factors" in caplog.text


def test_a_worker_maps_the_files_itself(tmp_path):
    cache = stored(tmp_path)
    cache.read(np.array([1]))
    content = pickle.dumps(cache)
    assert len(content) < 5000
    assert pickle.loads(content).read(np.array([5]))["T/mean"].tolist() == [[5, 5]]


def test_the_manifest_is_read_as_written_and_another_format_refused(tmp_path):
    cache = stored(tmp_path)
    assert read_manifest(tmp_path) == cache.manifest
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(LoriError, match="has format 2, this version reads 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("stored_values", "wanted", "difference"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ("a.b", 1, 2)),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, ("a.c", None, 2)),
        ({"a": [1, 2]}, {"a": (1, 2)}, None),
        ({"a": {"b": 1}}, {"a": {}}, ("a", {"b": 1}, {})),
        ({"a": None}, {"a": {"b": 1}}, ("a.b", None, 1)),
    ],
)
def test_the_first_difference(stored_values, wanted, difference):
    assert first_difference(stored_values, wanted) == difference


@pytest.mark.parametrize(
    ("core", "anchor_space", "each"),
    [
        ("per_layer_mode", "low_rank", 18_962),
        ("per_layer_mode", "full", 83_474),
        ("joint", "low_rank", 264_722),
        ("joint", "full", 329_234),
    ],
)
def test_the_sizes_that_the_docs_give(core, anchor_space, each):
    terms = named_terms([LowRankAlignment(core=core), AnchorAlignment(anchor_space=anchor_space)])
    for term in terms.values():
        term.prepare(LLAMA_1B, LLAMA_1B, [other for other in terms.values() if other is not term])
        term.mark_fitted()
    assert packed_bytes(terms, 16, 2048, torch.float16) == each
    assert f"{each:,}" in DOCS
