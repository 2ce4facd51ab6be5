"""Files and folders that take the place of others: the old or the new, and nothing besides."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from moola_features import files
from moola_features.errors import OutputError
from moola_features.files import replaced_file, replaced_folder
from tests.markets import names_in, run_python, tree


class Interrupted(BaseException):
    """Stands for Ctrl-C: no error that anyone would catch."""


def make(target: Path, content: str, *, error: BaseException | None = None) -> None:
    """Replace a folder by one of two files and a folder."""
    with replaced_folder(target) as folder:
        (folder / "a").write_text(content)
        (folder / "below").mkdir()
        (folder / "below" / "b").write_text(content)
        if error is not None:
            raise error


def made(content: str) -> dict[str, bytes]:
    return {"a": content.encode(), "below/b": content.encode()}


class Nth:
    """Raises at its n-th call, and before and after passes calls on."""

    def __init__(self, function: Callable[..., object], n: int, error: BaseException) -> None:
        self.function, self.left, self.error = function, n, error

    def __call__(self, *arguments: object, **options: object) -> object:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*arguments, **options)

    @property
    def was_reached(self) -> bool:
        return self.left <= 0


class TestFile:
    def write(self, target: Path, content: str, error: BaseException | None = None) -> None:
        with replaced_file(target) as beside:
            assert beside.parent == target.parent
            assert beside.suffix == target.suffix
            beside.write_text(content)
            if error is not None:
                raise error

    def test_made_and_replaced(self, tmp_path):
        for content in ("first", "second"):
            self.write(tmp_path / "x.html", content)
            assert tree(tmp_path) == {"x.html": content.encode()}

    @pytest.mark.parametrize("error", [ValueError("no"), Interrupted()])
    @pytest.mark.parametrize("standing", [False, True])
    def test_nothing_is_left_of_a_failure(self, tmp_path, error, standing):
        if standing:
            (tmp_path / "x.html").write_text("old")
        before = tree(tmp_path)
        with pytest.raises(type(error)):
            self.write(tmp_path / "x.html", "new", error)
        assert tree(tmp_path) == before

    def test_the_old_stands_until_the_end(self, tmp_path):
        target = tmp_path / "x.html"
        target.write_text("old")
        with replaced_file(target) as beside:
            beside.write_text("new")
            assert target.read_text() == "old"
        assert target.read_text() == "new"

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "real.html").write_text("old")
        (tmp_path / "x.html").symlink_to("real.html")
        self.write(tmp_path / "x.html", "new")
        assert (tmp_path / "x.html").is_symlink()
        assert (tmp_path / "real.html").read_text() == "new"

    def test_no_file_to_replace(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        for target, message in (
            (Path("/dev/null"), "/dev/null is a device or a pipe; give the path of a file"),
            (tmp_path / "pipe", "is a device or a pipe"),
            (tmp_path / "folder", "is a folder; give the path of a file"),
            (tmp_path / "no" / "x.html", "/no; make it first"),
            (tmp_path / ("n" * 250), "cannot be written: file name too long; choose a shorter"),
        ):
            with pytest.raises(OutputError, match=message):
                self.write(target, "new")
        assert Path("/dev/null").is_char_device()
        assert names_in(tmp_path) == ["folder", "pipe"]


class TestFolder:
    def test_made_and_replaced(self, tmp_path):
        for content in ("first", "second", "third"):
            make(tmp_path / "x", content)
            assert tree(tmp_path / "x") == made(content)
            assert names_in(tmp_path) == ["x"]

    @pytest.mark.parametrize("error", [ValueError("no"), Interrupted(), KeyboardInterrupt()])
    @pytest.mark.parametrize("standing", [False, True])
    def test_nothing_is_left_of_a_failure(self, tmp_path, error, standing):
        if standing:
            make(tmp_path / "x", "old")
        before = tree(tmp_path)
        with pytest.raises(type(error)):
            make(tmp_path / "x", "new", error=error)
        assert tree(tmp_path) == before
        assert names_in(tmp_path) == (["x"] if standing else [])

    @pytest.mark.parametrize("standing", [False, True])
    @pytest.mark.parametrize(
        ("name", "error"),
        [(name, OSError(errno.ENOSPC, "full")) for name in ("fsync", "rename", "mkdir", "open")]
        + [(name, Interrupted()) for name in ("fsync", "rename", "mkdir", "open", "lstat", "walk")],
    )
    def test_whatever_call_fails(self, tmp_path, monkeypatch, name, error, standing):
        target = tmp_path / "x"
        for n in range(1, 50):
            if standing:
                make(target, "old")
            with monkeypatch.context() as patch:
                patch.setattr(files, "_sync_file_system", lambda _: False)  # flush one by one
                failing = Nth(getattr(os, name), n, error)
                patch.setattr(os, name, failing)
                with contextlib.suppress(OutputError, Interrupted):
                    make(target, "new")
            if not failing.was_reached:
                assert tree(target) == made("new")
                break
            # The parent's flush comes last: then the new one has its place already.
            found = tree(target) if target.exists() else None
            assert found in (made("old") if standing else None, made("new"))
            if name not in ("open", "lstat"):  # which removing needs as well
                assert ".x.building" not in names_in(tmp_path)
            make(target, "next")
            assert tree(target) == made("next")
            assert names_in(tmp_path) == ["x"]
            shutil.rmtree(target)
        else:
            raise AssertionError("it never got through")
        assert n > 1 or (name == "rename" and standing)  # folders are swapped by another call

    @pytest.mark.parametrize("standing", [False, True])
    @pytest.mark.parametrize(
        ("module", "name"),
        [(os, "mkdir"), (os, "open"), (fcntl, "flock")],
        ids=["mkdir", "open", "flock"],
    )
    def test_interrupted_as_it_begins(self, tmp_path, monkeypatch, module, name, standing):
        """The call succeeds, and Ctrl-C comes before anything else."""
        if standing:
            make(tmp_path / "x", "old")
        before = tree(tmp_path)
        function, calls = getattr(module, name), []

        def interrupted(*arguments: object, **options: object) -> object:
            result = function(*arguments, **options)
            calls.append(name)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "x", "new")
        monkeypatch.undo()
        assert tree(tmp_path) == before
        assert ".x.building" not in names_in(tmp_path)

    def test_interrupted_while_the_old_one_is_removed(self, tmp_path, monkeypatch):
        make(tmp_path / "x", "old")
        removing = Nth(shutil.rmtree, 1, KeyboardInterrupt())
        monkeypatch.setattr(files.shutil, "rmtree", removing)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "x", "new")
        assert removing.was_reached
        assert names_in(tmp_path) == ["x"]
        assert tree(tmp_path / "x") == made("new")

    def test_one_process_at_a_time(self, tmp_path):
        make(tmp_path / "x", "old")
        with replaced_folder(tmp_path / "x") as folder:
            (folder / "mine").write_text("mine")
            with pytest.raises(OutputError, match="is being built by another process; wait for it"):
                make(tmp_path / "x", "other")
            make(tmp_path / "y", "another target")
            assert tree(tmp_path / "x") == made("old")
        assert tree(tmp_path / "x") == {"mine": b"mine"}

    def test_what_a_crash_left_is_cleared(self, tmp_path):
        kept = tmp_path / "kept"
        make(kept, "kept")
        leftover = tmp_path / ".x.building"
        make(leftover, "half")
        (leftover / "link").symlink_to(kept)
        make(tmp_path / "x", "new")
        assert tree(tmp_path / "x") == made("new")
        assert names_in(tmp_path) == ["kept", "x"]
        assert tree(kept) == made("kept")

    def test_nobody_is_led_elsewhere(self, tmp_path):
        make(tmp_path / "kept", "kept")
        (tmp_path / ".x.building").symlink_to(tmp_path / "kept")
        with pytest.raises(OutputError, match=r"\.x\.building is in the way; remove it"):
            make(tmp_path / "x", "new")
        assert tree(tmp_path / "kept") == made("kept")
        (tmp_path / ".x.building").unlink()
        (tmp_path / ".x.building").write_text("a file")
        with pytest.raises(OutputError, match=r"\.x\.building is in the way; remove it"):
            make(tmp_path / "x", "new")

    def test_the_next_one_may_begin_at_once(self, tmp_path, monkeypatch):
        """One that begins when the other has just taken its place is not cleared by it."""
        target = tmp_path / "x"
        flush = files._flush
        nested = []

        def flush_and_begin(path: Path) -> None:
            flush(path)
            if path == tmp_path and not nested:
                nested.append(replaced_folder(target))
                (nested[0].__enter__() / "a").write_text("second")

        monkeypatch.setattr(files, "_flush", flush_and_begin)
        make(target, "first")
        assert tree(target) == made("first")
        assert tree(tmp_path / ".x.building") == {"a": b"second"}

    def test_its_owner_moves_it_between_making_and_locking(self, tmp_path, monkeypatch):
        target = tmp_path / "x"
        lock = fcntl.flock
        moved = []

        def move_then_lock(handle: int, how: int) -> None:
            if not moved:
                moved.append(os.rename(tmp_path / ".x.building", target))
            lock(handle, how)

        monkeypatch.setattr(files.fcntl, "flock", move_then_lock)
        make(target, "new")
        assert tree(target) == made("new")
        assert names_in(tmp_path) == ["x"]

    @pytest.mark.parametrize("crash", [None, 1, 2, 3])
    def test_where_folders_cannot_be_swapped(self, tmp_path, monkeypatch, crash):
        """Three renames instead; a crash between them loses neither the old nor the new."""
        target = tmp_path / "x"
        make(target, "old")
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
        if crash:
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", Nth(os.rename, crash, Interrupted()))
                with pytest.raises(Interrupted):
                    make(target, "new")
            aside = tmp_path / ".x.replaced"
            assert tree(target if target.exists() else aside) in (made("old"), made("new"))
        for content in ("second", "third"):
            make(target, content)
            assert tree(target) == made(content)
        assert ".x.building" not in names_in(tmp_path)
        if crash is None:
            assert names_in(tmp_path) == ["x"]

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
    def test_writing_that_failed_late(self, tmp_path, monkeypatch, code):
        """The disk may refuse what the system had taken long before."""
        make(tmp_path / "x", "old")
        library = SimpleNamespace(syncfs=lambda _: ctypes.set_errno(code) or -1)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
        with pytest.raises(OSError, match=os.strerror(code).lower()) as caught:
            make(tmp_path / "x", "new")
        assert isinstance(caught.value, OutputError)
        monkeypatch.undo()
        assert tree(tmp_path) == {f"x/{name}": data for name, data in made("old").items()}

    def test_a_system_without_syncfs(self, tmp_path, monkeypatch):
        library = SimpleNamespace(syncfs=lambda _: ctypes.set_errno(errno.ENOSYS) or -1)
        flushed = []
        flush = files._flush
        monkeypatch.setattr(files, "_flush", lambda path: flushed.append(path.name) or flush(path))
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
        make(tmp_path / "x", "new")
        assert {"a", "b", "below"} <= set(flushed)

    def test_resumable(self, tmp_path):
        """What is finished stays for the next attempt; notes about it do not outlast them."""
        target, beside = tmp_path / "x", tmp_path / ".x.building"

        def attempt(error: BaseException | None, **contents: str) -> dict[str, bytes]:
            with replaced_folder(target, resumable=True) as folder:
                found = tree(folder)
                for name, content in contents.items():
                    (folder / name.replace("_", ".")).write_text(content)
                if error is not None:
                    raise error
            return found

        with pytest.raises(OutputError) as caught:
            attempt(OSError(errno.ENOSPC, "full"), a="half", _note="half of a")
        kept = f"what is finished stays in {beside}, to be gone on from"
        assert str(caught.value).endswith(f"choose another disk; {kept}")
        left = {"a": b"half", ".note": b"half of a"}
        assert tree(tmp_path) == {f".x.building/{name}": data for name, data in left.items()}
        assert attempt(None, b="more") == left
        assert tree(tmp_path) == {"x/a": b"half", "x/b": b"more"}
        with pytest.raises(ValueError, match="no"):
            attempt(ValueError("no"))
        assert names_in(tmp_path) == ["x"]

    def test_no_folder_to_replace(self, tmp_path):
        (tmp_path / "file").write_text("file")
        for target, message in (
            (tmp_path / "file", "is a file; give the path of a folder"),
            (tmp_path / "no" / "x", "there is no folder .*/no; make it first"),
            (tmp_path / ("n" * 250), "cannot be written: file name too long; choose a shorter"),
        ):
            with pytest.raises(OutputError, match=message):
                make(target, "new")
        assert names_in(tmp_path) == ["file"]

    def test_handles_are_closed(self, tmp_path):
        make(tmp_path / "x", "old")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            make(tmp_path / "x", "new")
            with pytest.raises(ValueError, match="no"):
                make(tmp_path / "x", "new", error=ValueError("no"))
        assert len(os.listdir("/proc/self/fd")) == before


PERMISSION = """
import os, sys
from moola_features.errors import OutputError
from moola_features.files import replaced_file, replaced_folder

if os.geteuid() == 0:  # whom permissions do not stop
    os.setgid(65534)
    os.setuid(65534)
for way in (replaced_file, replaced_folder):
    try:
        with way(sys.argv[1]) as beside:
            (beside / "a" if way is replaced_folder else beside).write_text("new")
    except OutputError as error:
        print(error)
"""


def test_no_permission():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        lines = run_python(PERMISSION, f"{folder}/x").stdout.splitlines()
        remedy = "permission denied; choose a folder that you may write to"
        assert lines == [f"{folder}/x cannot be written: {remedy}"] * 2
        assert names_in(Path(folder)) == []
