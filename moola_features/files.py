"""Writing so that a reader sees the old or the new, never half of either."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from moola_features.errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Give a path beside the target; on success it is flushed to disk and renamed over it.

    Parameters
    ----------
    path
        The file to make or replace.

    Yields
    ------
    Path
        A file of the same suffix in the same folder, to be written by the caller.

    Raises
    ------
    OutputError
        A folder that is missing or cannot be written, a full disk. Nothing is left behind.
    """
    target = Path(path)
    beside = target.with_name(f".{uuid.uuid4().hex[:8]}-{target.name}")
    with _output_errors(target):
        require_folder(target.parent, target)
        if target.is_dir():
            raise OutputError(f"{target} is a folder; give the path of a file")
        try:
            yield beside
            _flush(beside)
            os.replace(beside, target)
            _flush(target.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder beside the target; on success it takes the target's place.

    One process at a time may do so for one target: the folder itself is locked, so a crash leaves
    no lock behind, and what it left half-done is cleared by the next one.

    Parameters
    ----------
    path
        The folder to make or replace.

    Raises
    ------
    OutputError
        Another process is at it, the parent is missing or cannot be written, a full disk. The
        target is as it was.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.building")
    with _output_errors(target), contextlib.ExitStack() as stack:
        require_folder(target.parent, target)
        stack.enter_context(_own(beside, target))
        try:
            yield beside
            for folder, _, names in os.walk(beside):
                for name in names:
                    _flush(Path(folder) / name)
                _flush(Path(folder))
            _put_in_place(beside, target, stack)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def require_folder(folder: Path, target: Path) -> None:
    """Refuse to write into a folder that is not there."""
    if not folder.is_dir():
        raise OutputError(f"{target}: there is no folder {folder}; make it first")


@contextlib.contextmanager
def _own(folder: Path, target: Path) -> Iterator[None]:
    """Make and lock a folder, clearing what a crashed process left in it."""
    while True:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(handle, target)
            # Between opening and locking, its owner may have moved it into place.
            same = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
            if not same:
                continue
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            yield
            return
        finally:
            os.close(handle)


def _lock(handle: int, target: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"{target} is being built by another process; wait for it, or stop it first"
        ) from None


def _put_in_place(beside: Path, target: Path, stack: contextlib.ExitStack) -> None:
    if not target.exists():
        os.rename(beside, target)
    else:
        # The old folder gets the name that others try to lock; hold it until it is gone.
        handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        _lock(handle, target)
        _exchange(beside, target)
    _flush(target.parent)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step, or in three where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(first), os.fsencode(second)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(second))
    aside = second.with_name(f".{second.name}.replaced")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _output_errors(target: Path) -> Iterator[None]:
    """Say in one line what the system refused, and what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        remedies = {
            errno.ENOSPC: "free some space or choose another disk",
            errno.EDQUOT: "free some space or choose another disk",
            errno.EACCES: "choose a folder that you may write to",
            errno.EPERM: "choose a folder that you may write to",
            errno.EROFS: "choose a folder that you may write to",
        }
        if error.errno not in remedies:
            raise
        what = os.strerror(error.errno).lower()
        raise OutputError(f"{target} cannot be written: {what}; {remedies[error.errno]}") from error
