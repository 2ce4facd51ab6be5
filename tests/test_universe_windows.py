"""Windows of many instruments as one index: the windows of each, and none across two."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moola_features as mf
from moola_features.errors import StoreError, WindowError, WindowIndexError
from moola_features.universe import windows as universe_windows
from tests.markets import CHUNK, as_bits, walk, write

LENGTHS = {"AAA": CHUNK + 700, "BBB": 300, "CCC": 120, "DDD": 2_000}


@pytest.fixture(scope="module")
def universe(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("universe")
    (folder / "data").mkdir()
    for seed, (symbol, num_bars) in enumerate(LENGTHS.items()):
        gaps = [num_bars // 3, num_bars // 2]
        write(walk(num_bars, seed=seed, gaps=gaps), folder / "data" / f"{symbol}.parquet")
    mf.build(folder / "data", folder / "u.zarr")
    return mf.open_store(folder / "u.zarr")


@pytest.fixture(params=["mapped", "read", "both"])
def windows(request, universe, monkeypatch) -> Any:
    limit = {"mapped": 1_000, "read": 0, "both": 2}[request.param]
    monkeypatch.setattr(universe_windows, "MAX_MAPPED_FILES", limit)
    found = universe.windows()
    kept = [isinstance(table, np.ndarray) for table in found._tables]
    assert (
        kept
        == {"mapped": [True] * 4, "read": [False] * 4, "both": [True, False, False, False]}[
            request.param
        ]
    )
    return found


def expected(universe: Any, **options: Any) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Instrument and start of every window, and all windows, by each store for itself."""
    places, parts = [], []
    for position, symbol in enumerate(universe):
        own = universe[symbol].windows(**options)
        places += [(position, int(start)) for start in own.starts]
        parts.append(own[:])
    return places, np.concatenate(parts)


def test_the_windows_of_each_in_turn(universe, windows):
    places, values = expected(universe)
    assert len(windows) == len(places) == len(values)
    instrument, start = windows.locate(np.arange(len(windows)))
    assert list(zip(instrument.tolist(), start.tolist(), strict=True)) == places
    assert windows.symbols == tuple(LENGTHS)
    # Those across the seam of two chunk files, and some of all instruments in any order.
    seam = np.flatnonzero((instrument == 0) & (start > CHUNK - 110) & (start < CHUNK + 5))
    assert len(seam) == 114
    rows = np.random.default_rng(3).permutation(np.append(seam, np.arange(0, len(windows), 37)))
    np.testing.assert_array_equal(as_bits(windows.gather(rows)), as_bits(values[rows]))
    out = np.full((len(rows), 105, 11), np.nan, np.float32)
    assert windows.gather(rows, out=out) is out
    np.testing.assert_array_equal(as_bits(out), as_bits(values[rows]))
    for row in (0, -1, len(windows) // 2):
        np.testing.assert_array_equal(as_bits(windows[row]), as_bits(values[row]))
    np.testing.assert_array_equal(as_bits(windows[-7::3]), as_bits(values[-7::3]))
    assert windows.gather([]).shape == (0, 105, 11)


@pytest.mark.parametrize(
    "options",
    [
        {"length": 60, "stride": 7},
        {"stride": 1_000},
        {"length": 105, "stride": 3, "start": "2020-09-13T14:00", "stop": "2020-09-14"},
    ],
)
def test_lengths_strides_and_times(options, universe):
    found = universe.windows(**options)
    places, values = expected(universe, **options)
    assert len(found) == len(places)
    instrument, start = found.locate(np.arange(len(found)))
    assert list(zip(instrument.tolist(), start.tolist(), strict=True)) == places
    np.testing.assert_array_equal(as_bits(found[:]), as_bits(values))


def test_only_some_instruments(universe):
    found = universe.windows(symbols=["DDD", "BBB"])
    parts = [universe[symbol].windows()[:] for symbol in ("DDD", "BBB")]
    np.testing.assert_array_equal(as_bits(found[:]), as_bits(np.concatenate(parts)))
    assert found.symbols == ("DDD", "BBB")
    assert repr(found) == (
        f"<UniverseWindows: {len(found):,} of 105 bars, 11 features, 2 instruments>"
    )


def test_what_cannot_be(universe):
    for symbols, told in ((["AAA", "XXX"], "'XXX'"), ([], "no symbol")):
        with pytest.raises(WindowError) as caught:
            universe.windows(symbols=symbols)
        assert str(caught.value) == f"symbols has {told}; choose among AAA, BBB, CCC, DDD"
    for name in ("length", "stride"):
        with pytest.raises(WindowError, match=f"{name} is 0; it must be a whole number"):
            universe.windows(**{name: 0})
    found = universe.windows()
    with pytest.raises(WindowIndexError, match="is outside the"):
        found[len(found)]
    with pytest.raises(WindowIndexError, match="whole numbers and slices, not float; use gather"):
        found[1.0]
    with pytest.raises(WindowError, match="out is float32"):
        found.gather([0], out=np.empty((1, 105, 10), np.float32))
    assert len(universe.windows(length=100_000)) == 0


def test_a_universe_that_is_replaced(tmp_path: Path, monkeypatch):
    (tmp_path / "data").mkdir()
    for seed, symbol in enumerate(("A", "B")):
        write(walk(300, seed=seed), tmp_path / "data" / f"{symbol}.parquet")
    mf.build(tmp_path / "data", tmp_path / "u.zarr")
    monkeypatch.setattr(universe_windows, "MAX_MAPPED_FILES", 1)
    found = mf.open_store(tmp_path / "u.zarr").windows()
    before = found[:]
    mf.build(tmp_path / "data", tmp_path / "u.zarr", mf.FeatureConfig(k=3), force=True)
    # What is mapped stays; of the rest, nothing new is taken for it.
    half = len(found) // 2
    np.testing.assert_array_equal(as_bits(found[:half]), as_bits(before[:half]))
    with pytest.raises(StoreError) as caught:
        found[-1]
    assert str(caught.value).endswith(
        "u.zarr/B/features/c/0/0 cannot be read any more: No such file or directory; if the "
        "universe was rebuilt, open it and index its windows again"
    )
    handle = found._tables[1]._root.handle
    os.fstat(handle)
    del found, caught
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
