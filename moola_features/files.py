"""Writing so that a reader sees the old or the new, never half of either."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Container, Iterator
from pathlib import Path

from moola_features.errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replaced_file(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path beside the target; on success it is flushed to disk and renamed over it.

    Parameters
    ----------
    path
        The file to make or replace.
    durable
        Whether it is flushed to the disk first; not needed where it can be had again.

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
    with _output_errors(target):
        if target.is_dir():
            raise OutputError(f"{target} is a folder; give the path of a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{target} is a device or a pipe; give the path of a file")
        place = _place_of(target)
        beside = place.with_name(f".{uuid.uuid4().hex[:8]}-{place.name}")
        try:
            yield beside
            if durable:
                _flush(beside)
            os.replace(beside, place)
            if durable:
                _flush(place.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_folder(
    path: str | Path, *, resumable: bool = False, durable: bool = True
) -> Iterator[Path]:
    """Give a folder beside the target; on success it takes the target's place.

    One process at a time may do so for one target: the folder itself is locked, so a crash leaves
    no lock behind.

    Parameters
    ----------
    path
        The folder to make or replace.
    resumable
        Whether what an earlier attempt left half-done is handed over, and what this one leaves,
        unless it is empty, is kept for the next; by default the folder is cleared before and
        removed after. What begins with a dot right in it are notes for that purpose: they are
        removed when all the rest is on the disk.
    durable
        Whether everything is flushed to the disk first. What lies below another folder that is
        replaced so is flushed with that.

    Raises
    ------
    OutputError
        Another process is at it, the parent is missing or cannot be written, a full disk. The
        target is as it was.
    """
    target = Path(path)
    with _output_errors(target), contextlib.ExitStack() as stack:
        if target.exists() and not target.is_dir():
            raise OutputError(f"{target} is a file; give the path of a folder")
        place = _place_of(target)
        beside = place.with_name(f".{place.name}.building")
        held = _Held(stack, target)
        stack.callback(held.remove, beside)
        _make(beside, held)
        if not resumable:
            clear_folder(beside)
        try:
            yield beside
            if durable:
                _flush_below(beside, held.latest)
        except BaseException as error:
            if resumable and any(beside.iterdir()):
                error.add_note(f"what is finished stays in {beside}, to be gone on from")
                held.let_go()  # so that it stays
            raise
        for note in beside.glob(".*"):
            note.unlink()
        if durable:
            _flush(beside)
        if os.path.lexists(place):
            # The old folder gets the name that others try to lock; hold it until it is gone.
            held.take(place)
            _exchange(beside, place)
        else:
            os.rename(beside, place)
        if durable:
            _flush(place.parent)


def clear_folder(folder: Path, keep: Container[str] = ()) -> None:
    """Remove whatever lies in a folder, but for some names."""
    for entry in list(os.scandir(folder)):
        if entry.name in keep:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)


def link_tree(source: str | Path, target: str | Path) -> None:
    """Give every file below a folder a second name below another, which must be empty.

    Where names cannot be given, files are copied. Whoever changes one of them must put another in
    its place, since both names are of one file.
    """
    with os.scandir(source) as entries:
        for entry in entries:
            beside = os.path.join(target, entry.name)
            if entry.is_dir():
                os.mkdir(beside)
                link_tree(entry.path, beside)
                continue
            try:
                os.link(entry.path, beside)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK):
                    raise
                shutil.copyfile(entry.path, beside)


def require_named(target: str | Path) -> None:
    """Refuse empty text, which a path would take for the current folder."""
    if not str(target).strip():
        raise OutputError("the path to write is empty text; name a file or a folder")


def steady_path(target: str | Path) -> Path:
    """Return a path that still leads to the target when the current folder has been replaced."""
    path = Path(target)
    if path.is_absolute():
        return path
    place = Path(os.path.realpath(path))
    return place if Path.cwd().is_relative_to(place) else path


def require_folder(folder: Path, target: Path) -> None:
    """Refuse to write into a folder that is not there."""
    if not folder.is_dir():
        raise OutputError(f"{target}: there is no folder {folder}; make it first")


def _place_of(target: Path) -> Path:
    """Where a path leads: a link stays, and what it points to is replaced."""
    place = Path(os.path.realpath(target))
    require_folder(place.parent, target)
    return place


class _Held:
    """Folders that this process has locked; it may remove them, and no others."""

    def __init__(self, stack: contextlib.ExitStack, target: Path) -> None:
        self._handles: list[int] = []
        self._target = target
        stack.callback(self.let_go)

    def take(self, folder: Path) -> None:
        """Lock a folder, or say who has."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(folder, flags)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise OutputError(
                f"{self._target} is being built by another process; wait for it, or stop it first"
            ) from None
        except BaseException:
            os.close(handle)
            raise
        self._handles.append(handle)

    @property
    def latest(self) -> int:
        """Handle of the folder that was locked last."""
        return self._handles[-1]

    def has(self, folder: Path) -> bool:
        """Whether the folder that now has this path is one of them."""
        try:
            status = folder.lstat()
        except FileNotFoundError:
            return False
        return any(os.path.samestat(os.fstat(handle), status) for handle in self._handles)

    def remove(self, folder: Path) -> None:
        """Remove the folder at this path if it is one of them, even if interrupted."""
        if self.has(folder):
            try:
                shutil.rmtree(folder, ignore_errors=True)
            except KeyboardInterrupt:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def let_go(self) -> None:
        """Unlock all of them."""
        while self._handles:
            os.close(self._handles.pop())


def _make(folder: Path, held: _Held) -> None:
    """Make and lock a folder, or lock what a crashed process left of it."""
    # Between making, opening and locking it, its owner may have moved it into place: once more.
    while not held.has(folder):
        held.let_go()
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            held.take(folder)
        except KeyboardInterrupt:
            # Made, perhaps, and not yet locked: lock it, so that it is removed on the way out.
            with contextlib.suppress(OSError):
                held.take(folder)
            raise
        except FileNotFoundError:
            if not folder.parent.is_dir():
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise OutputError(f"{folder} is in the way; remove it") from None


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
    shutil.rmtree(aside, ignore_errors=True)  # what a crash between these steps left
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def _flush_below(folder: Path, handle: int) -> None:
    """Flush everything below an open folder to the disk."""
    # The whole file system at once: flushing 100 files one by one took 0.3 s, this 0.004 s.
    # The handle is older than what was written, so an error in writing any of it is told.
    if _sync_file_system(handle):
        return
    for inner, _, names in os.walk(folder):
        for name in names:
            _flush(Path(inner) / name)
        _flush(Path(inner))


def _sync_file_system(handle: int) -> bool:
    """Flush the file system that an open file lies on; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        return False
    if libc.syncfs(handle) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


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
            errno.EIO: "the disk fails; choose another one",
            errno.ENAMETOOLONG: "choose a shorter name",
            errno.EBUSY: "choose a folder that is no mount point",
            errno.EXDEV: "choose a folder that is no mount point",
        }
        if error.errno not in remedies:
            raise
        what = os.strerror(error.errno).lower()
        told = "; ".join([what, remedies[error.errno], *getattr(error, "__notes__", ())])
        raise OutputError(f"{target} cannot be written: {told}") from error
