"""Chunks of remote stores, kept on the local disk: bounded, checked, and never half written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path

from moola_features.building.memory import parse_size
from moola_features.errors import ConfigError, StoreError
from moola_features.files import replaced_file
from moola_features.remote.objects import Objects
from moola_features.store.checksums import as_text, checksum

_DEFAULT_BYTES = 10 * 10**9
_KEPT_SHARE = 0.9  # of the bound, when room is made: not a file for every file


class ChunkCache:
    """Files of chunks by where they come from and what they hold.

    Any number of processes may use one folder. Where nothing can be written, nothing is kept.

    Parameters
    ----------
    folder
        Where they lie; ``$MOOLA_CACHE``, or ``moola`` in the user's cache folder, when None.
    max_bytes
        Most that they may take; ``$MOOLA_CACHE_SIZE`` or 10 GB when None.

    Raises
    ------
    ConfigError
        A ``$MOOLA_CACHE_SIZE`` that is no size.

    Attributes
    ----------
    num_fetched
        Chunks that had to be fetched.
    """

    def __init__(self, folder: str | Path | None = None, max_bytes: int | None = None) -> None:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moola"
        self.folder = Path(folder or os.environ.get("MOOLA_CACHE") or usual)
        self.max_bytes = max_bytes or _told_bytes() or _DEFAULT_BYTES
        self.num_fetched = 0
        self._guard = threading.Lock()
        self._num_bytes: int | None = None  # as far as this process knows

    def get(self, objects: Objects, name: str, expected: int, num_bytes: int) -> bytes:
        """Return what a chunk holds, from the disk if it is there.

        Parameters
        ----------
        objects
            The store.
        name
            The chunk's name in it.
        expected
            Its CRC-32.
        num_bytes
            Its size.

        Raises
        ------
        StoreError
            A chunk that is missing, or is not what the store tells.
        RemoteError
            A store that cannot be reached.
        """
        path = self._path(f"{objects.address}/{name}", expected)
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if len(data) == num_bytes and checksum(data) == expected:
                with contextlib.suppress(OSError):  # a cache that others wrote
                    os.utime(path)  # the least recently used go first
                return data
        found = objects.read(name)
        self.num_fetched += 1
        if found is None or len(found) != num_bytes or checksum(found) != expected:
            what = "is missing" if found is None else f"has CRC-32 {as_text([checksum(found)])}"
            raise StoreError(
                f"{objects.address}/{name} {what}, not {as_text([expected])}; if the store was "
                "rebuilt, open it again, else rebuild it with --force"
            )
        with contextlib.suppress(OSError):  # a full disk, no permission: it is fetched again
            self._keep(path, found)
        return found

    def _path(self, address: str, expected: int) -> Path:
        digest = hashlib.sha256(address.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}-{as_text([expected])}"

    def _keep(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path, durable=False) as beside:
            beside.write_bytes(data)
        with self._guard:
            if self._num_bytes is None:
                self._num_bytes = sum(size for _, size, _ in self._files())
            else:
                self._num_bytes += len(data)
            if self._num_bytes > self.max_bytes:
                self._make_room(path)

    def _make_room(self, newest: Path) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= _KEPT_SHARE * self.max_bytes:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size
        self._num_bytes = total

    def _files(self) -> list[tuple[int, int, Path]]:
        """When each was used last, its size, and where it is."""
        found = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return found


def _told_bytes() -> int | None:
    told = os.environ.get("MOOLA_CACHE_SIZE")
    try:
        return parse_size(told) if told else None
    except ConfigError:
        raise ConfigError(
            f"MOOLA_CACHE_SIZE is {told!r}; give a size such as '500MB' or '2GiB'"
        ) from None
