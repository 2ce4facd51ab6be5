"""A checksum for every file of values, so that a bit that flips on the disk is told from a bar.

They are attributes of the group: chunk files stay the plain values that map. CRC-32 is the one of
zlib, gzip and PNG, so any program can check them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moola_features.errors import StoreError
from moola_features.store.layout import SEGMENTS, bar_arrays, chunk_path, num_chunks

ALGORITHM = "crc32"
_DIGITS = 8  # hexadecimal, of one checksum
_READ_BYTES = 1 << 20
_REBUILD = "restore it from a copy, or rebuild the store with --force"


def checksum(data: memoryview | bytes, value: int = 0) -> int:
    """CRC-32 of some bytes, or of what goes on behind those of ``value``."""
    return zlib.crc32(data, value)


def as_text(values: list[int]) -> str:
    """Write checksums behind each other, eight hexadecimal digits each.

    Examples
    --------
    >>> as_text([1, 2**32 - 1])
    '00000001ffffffff'
    """
    return "".join(f"{value:0{_DIGITS}x}" for value in values)


def from_text(text: str) -> list[int]:
    """Read what :func:`as_text` wrote.

    Examples
    --------
    >>> from_text("00000001ffffffff")
    [1, 4294967295]
    """
    return [int(text[i : i + _DIGITS], 16) for i in range(0, len(text), _DIGITS)]


def of_attributes(attributes: Mapping[str, Any]) -> str:
    """Checksum of a group's attributes, whatever their order, without the checksums themselves."""
    told = {name: value for name, value in attributes.items() if name != "checksums"}
    plain = json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return as_text([checksum(plain.encode())])


def require_intact(folder: Path, attributes: Mapping[str, Any], num_columns: int) -> int:
    """Read every file of values of a store and compare its checksum.

    Parameters
    ----------
    folder
        The store.
    attributes
        Its attributes.
    num_columns
        Number of features.

    Returns
    -------
    int
        Number of files that were compared.

    Raises
    ------
    StoreError
        A file, or the attributes, that are not what was written; or a store without checksums,
        as an older moola made it.
    """
    if not has_checksums(attributes):
        raise StoreError(
            f"{folder} has no {ALGORITHM} checksums, so it cannot be checked; "
            "rebuild it with --force"
        )
    known: Mapping[str, Any] = attributes["checksums"]
    require_attributes(folder, attributes)
    files = list(_expected(folder, known, num_columns, num_chunks(int(attributes["num_bars"]))))
    with ThreadPoolExecutor(thread_name_prefix="moola-check") as threads:
        for fault in threads.map(_fault, files):
            if fault:
                raise StoreError(fault)
    return len(files)


def require_attributes(folder: Path | str, attributes: Mapping[str, Any]) -> None:
    """Compare the checksum of a group's attributes, which must have one.

    Raises
    ------
    StoreError
        Attributes that are not what was written.
    """
    known, found = attributes["checksums"].get("attributes"), of_attributes(attributes)
    if known != found:
        raise StoreError(
            f"{folder}: attributes are not what was written: CRC-32 is {found}, not {known}; "
            f"{_REBUILD}"
        )


def has_checksums(attributes: Mapping[str, Any]) -> bool:
    """Whether a store tells checksums of a kind that is known here."""
    known = attributes.get("checksums")
    return isinstance(known, dict) and known.get("algorithm") == ALGORITHM


def file_checksum(path: Path) -> int:
    """CRC-32 of a file, read as a file: a mapped one that is cut short kills the process."""
    value = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            value = checksum(block, value)
    return value


def _expected(
    folder: Path, known: Mapping[str, Any], num_columns: int, num_chunk_files: int
) -> Iterator[tuple[Path, int]]:
    """Every file of values with its checksum."""
    for name, array in {**bar_arrays(num_columns), "segments": SEGMENTS}.items():
        num_files = 1 if array is SEGMENTS else num_chunk_files
        try:
            values = from_text(known[name])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{folder}: checksums of {name} cannot be read: {error!r}; {_REBUILD}"
            ) from error
        if len(values) != num_files:
            raise StoreError(
                f"{folder}: checksums of {name} are of {len(values)} files, not {num_files}; "
                f"{_REBUILD}"
            )
        for index, value in enumerate(values):
            yield chunk_path(folder, name, index, array), value


def _fault(expected: tuple[Path, int]) -> str:
    """What is wrong with a file, "" where nothing is."""
    path, value = expected
    try:
        found = file_checksum(path)
    except OSError as error:
        what = os.strerror(error.errno).lower() if error.errno else str(error)
        return f"file {path} cannot be read: {what}; {_REBUILD}"
    if found == value:
        return ""
    return (
        f"file {path} is not what was written: its CRC-32 is {as_text([found])}, "
        f"not {as_text([value])}; {_REBUILD}"
    )
