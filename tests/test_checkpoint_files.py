"""Checkpoints on disk: whole or not at all, and the newest sound one is found."""

from __future__ import annotations

import errno
import os
import resource
import signal
import zipfile

import pytest
import torch

from lori_pl import files
from lori_pl.checkpoint_files import CheckpointFiles, damage, newest_sound, read_checkpoint
from lori_pl.errors import LoriError

pytestmark = pytest.mark.faults


def save(folder, name, step, size=1000):
    CheckpointFiles().save_checkpoint({"global_step": step, "weights": torch.full((size,), float(step))}, folder / name)
    return folder / name


def test_what_is_written_is_read_and_a_new_one_takes_the_place_of_the_old(tmp_path):
    save(tmp_path, "last.ckpt", 1)
    path = save(tmp_path, "last.ckpt", 2)
    saved = read_checkpoint(path)
    assert saved["global_step"] == 2
    assert torch.equal(saved["weights"], torch.full((1000,), 2.0))
    assert damage(path) == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_is_wrong_is_one_line_whatever_a_damaged_part_is_called(tmp_path):
    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a\n\x1b[31mb", b"what was written")
    path.write_bytes(path.read_bytes().replace(b"what was written", b"what was altered"))
    reason = damage(path)
    assert reason.endswith(" has another checksum")
    assert "\n" not in reason
    assert "\x1b" not in reason


def test_the_newest_is_that_of_the_most_steps(tmp_path):
    assert newest_sound(tmp_path) is None
    save(tmp_path, "last.ckpt", 3)
    best = save(tmp_path, "best.ckpt", 5)  # a run was killed between the two
    os.utime(best, (0, 0))
    assert newest_sound(tmp_path) == best
    last = save(tmp_path, "last.ckpt", 5)
    assert newest_sound(tmp_path) == last
    (tmp_path / ".last.ckpt.abc").write_bytes(b"half")
    assert newest_sound(tmp_path) == last


def test_a_flipped_byte_is_found_and_the_one_before_taken(tmp_path, caplog):
    """Also where torch would read on without a word: it looks at no checksum."""
    best, last = save(tmp_path, "best.ckpt", 3), save(tmp_path, "last.ckpt", 5)
    content = last.read_bytes()
    missed = []
    for place in range(0, len(content), 53):
        last.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        found = newest_sound(tmp_path)
        if found == last:  # a byte that nobody reads, such as those that pad
            missed.append(place)
            assert torch.equal(read_checkpoint(last)["weights"], torch.full((1000,), 5.0))
        else:
            assert found == best
            assert f"{last} is damaged" in caplog.messages[-1]
            assert "passed over for best.ckpt of step 3" in caplog.messages[-1]
    assert len(missed) < len(content) / 53 / 4


@pytest.mark.parametrize("kept", [0, 1, 100, 3000])
def test_a_file_that_was_cut_is_passed_over(tmp_path, kept):
    best, last = save(tmp_path, "best.ckpt", 3), save(tmp_path, "last.ckpt", 5)
    last.write_bytes(last.read_bytes()[:kept])
    assert newest_sound(tmp_path) == best


def test_a_checkpoint_of_something_else_is_passed_over(tmp_path):
    best = save(tmp_path, "best.ckpt", 3)
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"weights": 1}, tmp_path / "stepless.ckpt")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a", "b")
    assert newest_sound(tmp_path) == best


def test_none_that_is_sound_is_an_error(tmp_path):
    save(tmp_path, "last.ckpt", 5).write_bytes(b"PK")
    with pytest.raises(LoriError, match=r"no checkpoint in .* is sound \(last\.ckpt: .*\): put one back"):
        newest_sound(tmp_path)


class Calls:
    """What a malicious checkpoint would run."""

    def __reduce__(self):
        return os.system, ("exit 3",)


def test_no_code_runs_from_a_checkpoint(tmp_path, monkeypatch):
    torch.save({"global_step": 1, "bad": Calls()}, tmp_path / "last.ckpt")
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("code from the file ran"))
    with pytest.raises(LoriError, match="no readable checkpoint"):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(LoriError, match=r"is sound \(last\.ckpt"):
        newest_sound(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ESTALE])
def test_what_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, code):
    path = save(tmp_path, "last.ckpt", 1)
    before = path.read_bytes()

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(LoriError, match=rf"last\.ckpt cannot be written \(.*{os.strerror(code)}.*--ckpt_path last"):
        save(tmp_path, "last.ckpt", 2)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_one(tmp_path):
    path = save(tmp_path, "last.ckpt", 1)
    before = path.read_bytes()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(LoriError, match=r"last\.ckpt cannot be written \(.*File too large.*--ckpt_path last"):
            save(tmp_path, "last.ckpt", 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
