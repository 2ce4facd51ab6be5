"""What is counted of an instrument's bars, and goes on being counted when bars are appended."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moola_features.building.chunks import ChunkDone
from moola_features.errors import StoreError
from moola_features.feature_pass import FeaturePass
from moola_features.gaps import GapCensus
from moola_features.store import Store
from moola_features.store.checksums import file_checksum, from_text, has_checksums
from moola_features.store.layout import CHUNK_BARS, bar_arrays, chunk_path
from moola_features.store.writer import Rows


@dataclass
class Tally:
    """Counts of a series so far.

    Attributes
    ----------
    num_bars, num_valid, num_flat
        Counts.
    first_time, last_time
        Of the first bar and of the last one; None where there is none.
    last_valid
        Whether the last bar is valid.
    segment_start
        Where the last segment begins.
    state
        The state after the last bar, frozen.
    starts
        Where segments begin, in pieces.
    gaps
        The steps between bars.
    checksums
        Of the chunk files, by array; of full chunks only, as others will be written again.
    standing
        Rows of the last chunk, if it is not full.
    """

    num_bars: int = 0
    num_valid: int = 0
    num_flat: int = 0
    first_time: int | None = None
    last_time: int | None = None
    last_valid: bool = False
    segment_start: int = 0
    state: bytes = b""  # what is before the first bar matters to none
    starts: list[NDArray[np.int64]] = field(default_factory=list)
    gaps: GapCensus = field(default_factory=GapCensus)
    checksums: dict[str, list[int]] = field(default_factory=dict)
    standing: Rows | None = None

    def add(self, done: ChunkDone) -> None:
        """Count a chunk that is done."""
        self.gaps.merge(done.gaps)
        self.num_valid += done.num_valid
        self.num_flat += done.num_flat
        self.last_valid = done.last_valid
        for name, value in done.checksums.items():
            self.checksums.setdefault(name, []).append(value)


def tally_of(store: Store) -> Tally:
    """Count a store's bars by what it tells of them.

    The store must have passed :func:`require_last_chunk`.
    """
    told = store.attributes
    num_full, num_standing = divmod(len(store), CHUNK_BARS)
    checksums = {name: from_text(told["checksums"][name]) for name in bar_arrays(0)}
    standing = None
    if num_standing:
        standing = Rows(store.features, store.time, store.valid, store.ohlc)
        standing = standing[slice(num_full * CHUNK_BARS, None)]
    carried = FeaturePass.from_state(store.config, told["state"]["pass"])
    return Tally(
        num_bars=len(store),
        num_valid=told["num_valid"],
        num_flat=told["num_flat"],
        first_time=told["first_time"],
        last_time=told["last_time"],
        last_valid=told["state"]["valid"],
        segment_start=int(store.segments[-1, 0]),
        state=carried.freeze(),
        starts=[store.segments[:, 0]],
        gaps=GapCensus.from_dict(told["gaps"], store.time),
        checksums={name: values[:num_full] for name, values in checksums.items()},
        standing=standing,
    )


def require_last_chunk(store: Store) -> None:
    """Refuse to go on from rows that are not what was written: they would be written again.

    Raises
    ------
    StoreError
        A store without checksums, or whose last chunk has others.
    """
    if not has_checksums(store.attributes):
        raise StoreError(
            f"{store.path} has no checksums, as an older moola made it; rebuild it with --force"
        )
    index = (len(store) - 1) // CHUNK_BARS
    for name, array in bar_arrays(len(store.names)).items():
        path = chunk_path(store.path, name, index, array)
        if file_checksum(path) != from_text(store.attributes["checksums"][name])[index]:
            raise StoreError(
                f"file {path} is not what was written: its checksum is another; restore it from "
                "a copy, or rebuild the store with --force"
            )
