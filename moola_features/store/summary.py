"""What a store says of itself, without opening its arrays."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moola_features.errors import StoreError
from moola_features.remote.objects import is_remote, local_path
from moola_features.store import checksums, read_attributes, undisturbed
from moola_features.store.layout import bar_arrays, chunk_bytes, num_chunks

_AT_ONCE = 16  # requests
_BLOCK_BYTES = 512  # of what the system calls a block of a file, whatever the disk's own are


@dataclass(frozen=True)
class Summary:
    """One instrument's store in numbers.

    Attributes
    ----------
    path
        Folder of the store.
    symbol
        The instrument, None where the source named none.
    num_bars, num_segments, num_valid, num_flat, num_features
        Counts; a flat bar has its high at its low.
    first_time, last_time
        ns since 1970 UTC.
    gaps
        ``histogram`` of the steps between bars, and the ``longest`` of them.
    dropped
        What ``on_bad_bars="drop"`` left out: total, counts by reason, examples.
    num_bytes
        What its files take on the disk, without the holes in them; in an object store, which has
        no holes, the size of its values.
    config, input, versions
        The configuration, the input's name and SHA-256, the versions it was built with.
    """

    path: Path | str
    symbol: str | None
    num_bars: int
    num_segments: int
    num_valid: int
    num_flat: int
    num_features: int
    first_time: int
    last_time: int
    gaps: dict[str, Any]
    dropped: dict[str, Any]
    num_bytes: int
    config: dict[str, Any]
    input: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON types."""
        return {**asdict(self), "path": str(self.path)}


def summarise(path: str | Path) -> tuple[Summary, ...]:
    """Summarise a store, or every store of a universe.

    Parameters
    ----------
    path
        Folder that ``build`` made, or an address.

    Returns
    -------
    tuple of Summary
        One for each instrument.

    Raises
    ------
    StoreNotFoundError, StoreError
        As for :func:`open_store`.
    """
    place = local_path(path)
    if is_remote(place):
        return _remote_summaries(str(place))
    folder = Path(place)
    return undisturbed(folder, lambda: _summaries(folder))


def _summaries(folder: Path) -> tuple[Summary, ...]:
    attributes = read_attributes(folder)
    if attributes.get("kind") == "universe":
        groups = attributes["instruments"].values()
        return tuple(_summary(folder / group, read_attributes(folder / group)) for group in groups)
    return (_summary(folder, attributes),)


def _remote_summaries(address: str) -> tuple[Summary, ...]:
    from moola_features.remote.objects import Objects
    from moola_features.remote.store import remote_attributes

    objects = Objects(address)
    attributes = remote_attributes(objects)
    if attributes.get("kind") != "universe":
        return (_summary(address, attributes),)
    places = [objects.below(group) for group in attributes["instruments"].values()]
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # each waits for the network
        return tuple(
            threads.map(lambda place: _summary(place.address, remote_attributes(place)), places)
        )


def _summary(folder: Path | str, attributes: dict[str, Any]) -> Summary:
    if checksums.has_checksums(attributes):
        checksums.require_attributes(folder, attributes)
    kept = (
        "symbol", "num_bars", "num_segments", "num_valid", "num_flat", "first_time", "last_time",
        "gaps", "dropped", "config", "input", "versions",
    )  # fmt: skip
    missing = [name for name in (*kept, "features") if name not in attributes]
    if missing:
        raise StoreError(f"{folder}: attribute {missing[0]!r} is missing; rebuild with --force")
    return Summary(
        path=folder,
        num_features=len(attributes["features"]),
        num_bytes=_bytes_below(folder) if isinstance(folder, Path) else _bytes_of(attributes),
        **{name: attributes[name] for name in kept},
    )


def _bytes_of(attributes: dict[str, Any]) -> int:
    """Size of a store's values, of which an object store is not asked file by file."""
    arrays = bar_arrays(len(attributes["features"])).values()
    per_chunk = sum(chunk_bytes(array) for array in arrays)
    return num_chunks(attributes["num_bars"]) * per_chunk


def _bytes_below(folder: str | Path) -> int:
    """What all files below a folder take on the disk."""
    with os.scandir(folder) as entries:
        return sum(
            _bytes_below(entry.path) if entry.is_dir() else entry.stat().st_blocks * _BLOCK_BYTES
            for entry in entries
        )
