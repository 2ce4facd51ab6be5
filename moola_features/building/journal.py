"""What is finished of a build, so that the next one goes on where this one was cut off.

A line is believed only if it is whole, and a chunk only if its files still have the checksums that
the line tells: nothing here needs to reach the disk in any order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from moola_features.store.checksums import as_text, checksum


@dataclass(frozen=True)
class Finished:
    """One chunk whose files are written.

    Attributes
    ----------
    index
        Number of the chunk.
    origin
        Digest of what its features depend on besides its bars, see :func:`origin_of`.
    end
        The state after it, as hexadecimal text.
    checksums
        Of its files, by array.
    """

    index: int
    origin: str
    end: str
    checksums: dict[str, int]


def origin_of(state: bytes, starts: bytes) -> str:
    """Digest of the state before a chunk and of the segments that begin in it."""
    return hashlib.sha256(state + b"|" + starts).hexdigest()


class Journal:
    """The finished chunks of one instrument, one line each, behind a line that says what of.

    Parameters
    ----------
    path
        The file.
    subject
        What decides the features but the bars: settings and versions. Lines of another subject
        are forgotten.

    Attributes
    ----------
    num_known
        Chunks that an earlier build finished.
    is_empty
        Whether no chunk is finished, neither by an earlier build nor by this one.
    """

    def __init__(self, path: Path, subject: dict[str, Any]) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._known: dict[int, Finished] = {}
        head = _line(subject)
        length = self._read(head)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._handle = os.open(path, flags, 0o644)
        try:
            # Behind a line that was cut off, the next one would be lost too.
            os.ftruncate(self._handle, length)
            if not length:
                _write(self._handle, head)
        except BaseException:
            self.close()
            raise
        self.num_known = len(self._known)
        self.is_empty = not self._known

    def find(self, index: int) -> Finished | None:
        """Return what an earlier build told of a chunk."""
        return self._known.get(index)

    def add(self, finished: Finished) -> None:
        """Write down a chunk whose files are written."""
        with self._guard:
            _write(self._handle, _line(asdict(finished)))
            self.is_empty = False  # nothing more is kept: 2.5 kB a chunk add up in a long build

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, head: bytes) -> int:
        """Take the lines that can be believed; return where they end."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return 0
        if not lines or lines[0] != head:
            return 0
        length = len(head)
        for line in lines[1:]:
            told, _, digits = line.rpartition(b" ")
            if digits != f"{as_text([checksum(told)])}\n".encode():
                break
            with contextlib.suppress(ValueError, TypeError):
                found = Finished(**json.loads(told))
                self._known[found.index] = found
            length += len(line)
        return length


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return text + f" {as_text([checksum(text)])}\n".encode()


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
