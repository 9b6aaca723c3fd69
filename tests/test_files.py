import errno
import multiprocessing
import os
import signal
import time

import pytest

from lori_pl.commands.run_folder import held
from lori_pl.errors import LoriError
from lori_pl.files import check_place, clear_halves, lock_folder, make_file, replace_file, replace_folder

pytestmark = pytest.mark.faults


def test_replace_file_makes_a_readable_file_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b.bin"
    replace_file(path, lambda file: file.write(b"x"))
    assert path.read_bytes() == b"x"
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_who_may_read_a_file_is_for_the_umask_to_say(tmp_path, umask):
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "file", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_is_written_under_its_own_name(tmp_path):
    for content in ("old", "new"):

        def write(part, content=content):
            assert part.name == "student"
            part.mkdir()
            (part / "file").write_text(content)

        replace_folder(tmp_path / "student", write)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "file").read_text() == "new"


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch, fails_at):
    """In writing it, in moving the old one away, in moving the new one there."""
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "file").write_text("old")
    moves = []
    original = os.replace

    def move(source, target):
        moves.append(source)
        if len(moves) == fails_at:
            raise OSError(errno.EIO, "no")
        original(source, target)

    def write(part):
        part.mkdir()
        if fails_at == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", move)
    with pytest.raises((OSError, KeyboardInterrupt)):
        replace_folder(folder, write)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (folder / "file").read_text() == "old"


def killed_at(number, monkeypatch, action) -> None:
    """Carries out an action in a process that is killed in place of a move, counted from 1."""
    moves = []
    original = os.replace

    def move(source, target):
        moves.append(source)
        if len(moves) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(os, "replace", move)
        action()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("move", [1, 2])
def test_a_run_that_was_killed_while_it_replaced_its_student_has_one(tmp_path, monkeypatch, caplog, move):
    student = tmp_path / "student"

    def write(content):
        def into(part):
            part.mkdir()
            (part / "file").write_text(content)

        return into

    replace_folder(student, write("old"))
    killed_at(move, monkeypatch, lambda: replace_folder(student, write("new")))
    assert student.exists() == (move == 1)
    with held(tmp_path, {}):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "student"]
        assert (student / "file").read_text() == "old"
    assert ("the one before is back" in caplog.text) == (move == 2)


def test_a_folder_that_was_removed_is_not_put_back(tmp_path):
    (tmp_path / ".student.x" / "old").mkdir(parents=True)  # killed before it went
    (tmp_path / ".student.x" / "new").mkdir()
    with held(tmp_path, {}):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_old_folder_that_cannot_be_put_back_is_not_removed(tmp_path, monkeypatch):
    folder = tmp_path / "student"
    folder.mkdir()
    original = os.replace

    def move(source, target):
        if target == folder:
            raise OSError(errno.EIO, "no")
        original(source, target)

    monkeypatch.setattr(os, "replace", move)
    with pytest.raises(OSError, match="no"):
        replace_folder(folder, lambda part: part.mkdir())
    monkeypatch.setattr(os, "replace", original)
    clear_halves(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_folder_is_on_the_disk_before_it_is_moved(tmp_path, monkeypatch):
    events = []
    sync, move = os.fsync, os.replace

    def synced(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def moved(source, target):
        events.append("move")
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)

    def write(part):
        (part / "inner").mkdir(parents=True)
        (part / "inner" / "file").write_text("new")

    replace_folder(tmp_path / "student", write)
    at = events.index("move")
    before = {os.path.basename(path) for path in events[:at]}
    assert before >= {"file", "inner", "student", "new", tmp_path.name}
    assert str(tmp_path) in events[at:]


def test_a_place_where_nothing_can_be_made_is_told(tmp_path):
    check_place(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(LoriError, match="file/x cannot be made"):
        check_place(tmp_path / "file" / "x")


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoriError, match="is the folder that the command runs in"):
        replace_folder(".", lambda part: part.mkdir())


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("has_links", [True, False])
def test_make_file_leaves_a_file_that_is_there(tmp_path, monkeypatch, has_links):
    if not has_links:

        def refuse(source, target):
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "new" / "a"
    assert make_file(path, lambda file: file.write(b"first"))
    assert not make_file(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o444 == 0o444
    assert [file.name for file in path.parent.iterdir()] == ["a"]


def test_a_forked_process_does_not_hold_the_folder_of_its_killed_parent(tmp_path):
    """A data worker lives on for some seconds."""
    context = multiprocessing.get_context("fork")
    forked = context.Queue()

    def training():
        with lock_folder(tmp_path, "taken"):
            if (worker := os.fork()) == 0:
                time.sleep(60)
                os._exit(0)
            forked.put(worker)
            time.sleep(60)

    parent = context.Process(target=training)
    parent.start()
    worker = forked.get(timeout=30)
    try:
        with pytest.raises(LoriError, match="taken"), lock_folder(tmp_path, "taken"):
            pass
        os.kill(parent.pid, signal.SIGKILL)
        parent.join()
        os.kill(worker, 0)  # it lives
        with lock_folder(tmp_path, "taken"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_folder_is_held_by_one_and_free_again(tmp_path):
    held = r"new: taken: wait for it or end it"
    with (
        lock_folder(tmp_path / "new", "taken"),
        pytest.raises(LoriError, match=held),
        lock_folder(tmp_path / "new", "taken"),
    ):
        pass
    with lock_folder(tmp_path / "new", "taken"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(LoriError, match="cannot be written"), lock_folder(tmp_path / "file" / "x", "taken"):
        pass
