"""The synthetic market: its calendar, its realism, its determinism, and the truth of its labels."""

from __future__ import annotations

import doctest
import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import moola_features as mf
from moola_features import synth
from moola_features.errors import ConfigError, OutputError
from moola_features.kernels import market as market_kernel
from moola_features.synth import SyntheticMarket, planting, synthesise, write_market
from tests.markets import walk

DATA = Path(__file__).parents[1] / "data"
MINUTE = 60_000_000_000
SESSION = 1_380
NUM_SESSIONS = 100


@pytest.fixture(scope="module")
def market() -> SyntheticMarket:
    return synthesise(NUM_SESSIONS * SESSION, seed=5)


@pytest.fixture(scope="module")
def windows(market: SyntheticMarket) -> list[tuple[int, int, int, str]]:
    """First bar of each window, first and last bar of its expansion, and its label."""
    first = first_bars(market)
    rows = market.labels.select("expansion_start", "expansion_end", "label").rows()
    return [
        (bar, bar + start, bar + end, label)
        for bar, (start, end, label) in zip(first, rows, strict=True)
    ]


def first_bars(market: SyntheticMarket) -> list[int]:
    times = market.labels["start_time"].dt.epoch("ns").to_numpy()
    first = np.searchsorted(market.bars.time, times)
    np.testing.assert_array_equal(market.bars.time[first], times)
    return [int(bar) for bar in first]


def same_bars(actual: mf.Bars, expected: mf.Bars) -> bool:
    names = ("time", "open", "high", "low", "close")
    return all(np.array_equal(getattr(actual, name), getattr(expected, name)) for name in names)


# Calendar and grid


def test_sessions_of_23_hours_five_a_week(market: SyntheticMarket) -> None:
    time = market.bars.time.reshape(NUM_SESSIONS, SESSION)
    assert (np.diff(time, axis=1) == MINUTE).all()
    opens = pl.Series(time[:, 0]).cast(pl.Datetime("ns", "UTC"))
    assert set(opens.dt.strftime("%H:%M")) == {"23:00"}
    # Sunday to Thursday, five in a row each week.
    assert opens.dt.weekday().to_list() == [7, 1, 2, 3, 4] * (NUM_SESSIONS // 5)
    assert opens.dt.date().n_unique() == NUM_SESSIONS


def test_no_bars_in_the_break_and_on_weekends(market: SyntheticMarket) -> None:
    time = pl.Series(market.bars.time).cast(pl.Datetime("ns", "UTC"))
    assert not (time.dt.hour() == 22).any()
    weekday, hour = time.dt.weekday().to_numpy(), time.dt.hour().to_numpy()
    assert not (weekday == 6).any()
    assert not ((weekday == 5) & (hour >= 22)).any()
    assert not ((weekday == 7) & (hour < 23)).any()


@pytest.mark.parametrize(
    ("tick", "start_price"), [(0.25, 15_000.0), (0.01, 90.0), (1e-5, 1.1), (1.0, 100.0), (5, 3_000)]
)
def test_prices_lie_on_the_grid(tick: float, start_price: float) -> None:
    bars = synthesise(5_000, seed=2, tick=tick, start_price=start_price).bars
    for price in (bars.open, bars.high, bars.low, bars.close):
        np.testing.assert_array_equal(price, np.round(price / tick) * tick)
        assert (price > 0.0).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()


def test_prices_stay_positive_and_near_home_over_years() -> None:
    bars = synthesise(100_000, seed=8, start_price=60.0, tick=0.25).bars
    assert bars.low.min() > 20.0
    assert bars.high.max() < 180.0


# Realism


def test_volatility_clusters_and_tails_are_fat(market: SyntheticMarket) -> None:
    change = np.diff(np.log(market.bars.close))
    size = np.abs(change)
    for lag in (1, 10, 60):
        assert np.corrcoef(size[lag:], size[:-lag])[0, 1] > 0.1
    assert abs(np.corrcoef(change[1:], change[:-1])[0, 1]) < 0.05
    inside = (market.bars.close - market.bars.open) / market.bars.open
    kurtosis = np.mean((inside - inside.mean()) ** 4) / inside.var() ** 2
    assert 6.0 < kurtosis < 500.0
    yearly = inside.std() * np.sqrt(252 * SESSION)
    assert 0.1 < yearly < 0.4


def test_clusters_are_more_than_the_time_of_day(market: SyntheticMarket) -> None:
    size = (market.bars.high - market.bars.low).reshape(NUM_SESSIONS, SESSION)
    rest = (size / size.mean(axis=0)).reshape(-1)
    assert np.corrcoef(rest[20:], rest[:-20])[0, 1] > 0.2


def test_volatility_is_u_shaped_between_open_and_close(market: SyntheticMarket) -> None:
    ranges = (market.bars.high - market.bars.low).reshape(NUM_SESSIONS, SESSION).mean(axis=0)
    night, before_open = ranges[:540].mean(), ranges[900:930].mean()
    at_open, noon, at_close = (ranges[part].mean() for part in (
        slice(930, 945), slice(1_080, 1_140), slice(1_310, 1_320),
    ))  # fmt: skip
    assert at_open > 1.2 * at_close
    assert at_close > 1.1 * noon
    assert noon > 1.3 * before_open
    assert before_open > 1.2 * night


def test_flat_bars_belong_to_the_quiet_hours(market: SyntheticMarket) -> None:
    flat = (market.bars.high == market.bars.low).reshape(NUM_SESSIONS, SESSION)
    assert 0.02 < flat.mean() < 0.08
    assert 0.05 < flat[:, :540].mean() < 0.2
    assert flat[:, 930:1_320].mean() < 0.002


def test_bars_mostly_open_where_the_last_closed(market: SyntheticMarket) -> None:
    step = market.bars.open[1:] - market.bars.close[:-1]
    inside = np.arange(1, len(market.bars)) % SESSION != 0
    assert 0.7 < np.mean(step[inside] == 0.0) < 0.85
    assert np.abs(step[inside]).max() <= 0.5  # a tick, and the rounding of both ends
    assert np.median(np.abs(step[~inside])) > 2.0


@pytest.mark.kernels
def test_extremes_follow_the_law_of_the_brownian_bridge() -> None:
    num_bars, volatility, price = 100_000, 3e-4, 1_000.0
    random = np.random.default_rng(1)
    normals = random.standard_normal((num_bars, 4))
    normals[:, 0] = 0.0  # no clusters
    normals[:, 1] = market_kernel.BAR_SPREAD  # and no factor of the bar's own
    nothing = np.zeros(num_bars)
    start, high, low, close = (np.empty(num_bars) for _ in range(4))
    market_kernel.walk.load()(
        normals,
        random.standard_exponential((num_bars, 4)),
        random.random((num_bars, 2)),
        np.full(num_bars, volatility),
        nothing,
        nothing,
        np.zeros((num_bars, 3)),
        SESSION,
        1e-9,
        price,
        np.array([price, 0.0, 0.0, 0.0]),
        start,
        high,
        low,
        close,
    )
    deviation = volatility * np.append(price, close[:-1])
    body = (close - start) / deviation
    assert body.std() == pytest.approx(1.0, abs=0.01)
    assert np.mean(np.abs(body) < 1.0) == pytest.approx(0.6827, abs=0.01)
    # P(max >= h) = exp(-2 (h - start)(h - close) / variance), whatever the body is.
    for extreme in (high, low):
        exponential = 2.0 * (extreme - start) * (extreme - close) / deviation**2
        for part in (np.abs(body) < 0.5, np.abs(body) > 1.0):
            for x in (0.1, 0.5, 1.0, 2.0, 4.0):
                assert np.mean(exponential[part] > x) == pytest.approx(np.exp(-x), abs=0.01)
    # Both extremes together: Parkinson (1980) for the mean square, Feller (1951) for the mean.
    span = (high - low) / deviation
    assert np.mean(span**2) == pytest.approx(4.0 * np.log(2.0), rel=0.012)
    assert span.mean() == pytest.approx(np.sqrt(8.0 / np.pi), rel=0.006)


# Determinism


def test_same_seed_same_bits(market: SyntheticMarket) -> None:
    again = synthesise(NUM_SESSIONS * SESSION, seed=5)
    assert same_bars(again.bars, market.bars)
    assert again.labels.equals(market.labels)
    other = synthesise(NUM_SESSIONS * SESSION, seed=6)
    assert not np.array_equal(other.bars.close, market.bars.close)


@pytest.mark.kernels
@pytest.mark.parametrize("num_bars", [105, SESSION, 5_000, 21_003])
def test_a_longer_market_begins_with_the_shorter(market: SyntheticMarket, num_bars: int) -> None:
    short = synthesise(num_bars, seed=5)
    assert len(short.bars) == num_bars
    assert same_bars(short.bars, market.bars[:num_bars])
    assert short.labels.equals(market.labels[: len(short.labels)])
    assert short.labels.schema == planting.LABELS_SCHEMA


def test_blocks_change_no_bit(market: SyntheticMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "BLOCK_SESSIONS", 3)
    assert same_bars(synthesise(14_000, seed=5).bars, market.bars[:14_000])


def test_prices_and_grid_scale_together(market: SyntheticMarket) -> None:
    doubled = synthesise(14_000, seed=5, tick=0.5, start_price=30_000.0)
    np.testing.assert_array_equal(doubled.bars.high, 2.0 * market.bars.high[:14_000])
    assert doubled.labels.equals(market.labels[: len(doubled.labels)])


# Planted truth


def test_labels_have_the_columns_of_labelled_windows(market: SyntheticMarket) -> None:
    labels = market.labels
    assert dict(labels.schema) == {
        "window_id": pl.String,
        "label": pl.String,
        "expansion_start": pl.Int64,
        "expansion_end": pl.Int64,
        "start_time": pl.Datetime("ns", "UTC"),
    }
    assert labels.null_count().sum_horizontal()[0] == 0
    assert labels["window_id"].n_unique() == len(labels)
    start, end = labels["expansion_start"].to_numpy(), labels["expansion_end"].to_numpy()
    assert start.min() >= 20
    assert start.max() <= 90
    assert np.ptp(start) > 50
    assert set(end - start + 1) == set(range(3, 13))


def test_windows_are_warm_whole_and_apart(market: SyntheticMarket) -> None:
    first = np.array(first_bars(market))
    place = first % SESSION
    assert place.min() >= 150
    assert (place + 105).max() <= SESSION
    assert (np.diff(first) >= 105).all()
    assert 0.7 < len(first) / NUM_SESSIONS <= 1.0


def test_kinds_and_directions_are_balanced(
    market: SyntheticMarket, windows: list[tuple[int, int, int, str]]
) -> None:
    kinds = [label for *_, label in windows]
    assert set(kinds) == {"consolidation", "retracement"}
    assert 0.35 < kinds.count("retracement") / len(kinds) < 0.65
    close = market.bars.close
    rising = [bool(close[end] > close[start - 1]) for _, start, end, _ in windows]
    assert 0.35 < np.mean(rising) < 0.65


def true_range(bars: mf.Bars, t: int) -> float:
    last = bars.close[t - 1]
    return float(max(bars.high[t], last) - min(bars.low[t], last))


def unit_of(bars: mf.Bars, first: int, start: int) -> float:
    """A_s: half the mean true range of the 20 bars before, half that of the window."""
    before = np.mean([true_range(bars, t) for t in range(start - 20, start)])
    window = np.mean([true_range(bars, t) for t in range(first, first + 105)])
    return float(before + window) / 2.0


def faults(bars: mf.Bars, first: int, start: int, end: int, label: str) -> list[str]:
    """What the labeller's definition finds wrong with a planted window, bar by bar."""
    found = []
    unit = unit_of(bars, first, start)
    base = bars.close[start - 1]
    move = bars.close[end] - base
    sign = 1.0 if move > 0.0 else -1.0
    path = sum(true_range(bars, t) for t in range(start, end + 1))
    slack = 1e-9 * abs(move)
    if abs(move) < 5.0 * unit - slack:
        found.append("small")
    if abs(move) < 0.5 * path - slack:
        found.append("inefficient")
    for t in range(end + 1, end + 11):
        if sign * (bars.close[t] - base) < 0.25 * abs(move) - slack:
            found.append(f"given back at {t}")
    high, low = (bars.high, bars.low) if sign > 0.0 else (-bars.low, -bars.high)
    before = range(start - 15, start)
    top = max(high[t] for t in before)
    box = top - min(low[t] for t in before)
    peak = max(t for t in before if high[t] == top)
    leg = top - min(low[t] for t in range(peak - 39, peak + 1))
    depth = top - sign * base
    if box <= 4.0 * unit * (1.0 + 1e-9):
        prelude = "consolidation"
    elif 1.5 * unit - slack <= depth <= leg + slack:
        prelude = "retracement"
    else:
        prelude = "other"
    if prelude != label:
        found.append(f"{prelude} before it")
    return found


def test_every_label_meets_the_definition(
    market: SyntheticMarket, windows: list[tuple[int, int, int, str]]
) -> None:
    assert len(windows) > 70
    for window in windows:
        assert faults(market.bars, *window) == [], window


def test_the_definition_refuses_what_was_not_planted(market: SyntheticMarket) -> None:
    refused = [
        faults(market.bars, first, first + 40, first + 46, "consolidation") != []
        for first in range(200, 130_000, 1_301)
    ]
    assert np.mean(refused) > 0.95


@pytest.mark.parametrize("tick", [2.0, 20.0])
def test_labels_hold_on_a_coarse_grid(tick: float) -> None:
    market = synthesise(40 * SESSION, seed=4, tick=tick)
    assert len(market.labels) > 5
    for first, row in zip(first_bars(market), market.labels.rows(), strict=True):
        assert faults(market.bars, first, first + row[2], first + row[3], row[1]) == []


def test_the_planted_expansion_stands_out(
    market: SyntheticMarket, windows: list[tuple[int, int, int, str]]
) -> None:
    found = 0
    for first, start, end, _ in windows:
        ranges = np.array([true_range(market.bars, t) for t in range(first, first + 105)])
        best, best_span = -1.0, (0, 0)
        for s in range(20, 96):
            unit = (ranges[s - 20 : s].mean() + ranges.mean()) / 2.0
            for e in range(s + 2, min(s + 12, 105)):
                move = abs(market.bars.close[first + e] - market.bars.close[first + s - 1])
                path = ranges[s : e + 1].sum()
                score = move / unit * move / path if path > 0.0 else 0.0
                if score > best:
                    best, best_span = score, (first + s, first + e)
        found += abs(best_span[0] - start) <= 3 and abs(best_span[1] - end) <= 3
    assert found / len(windows) > 0.9


def test_features_of_planted_windows_are_warm(market: SyntheticMarket) -> None:
    # Each session its own segment, and the columns that look back furthest.
    features = mf.compute(market.bars, mf.FeatureConfig(max_gap="30min", context=True))
    assert len(features.segments) == NUM_SESSIONS
    for first in first_bars(market):
        assert features.valid[first : first + 105].all()


# Files


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_read_back_alike(tmp_path: Path, suffix: str) -> None:
    path, labels_path = tmp_path / f"bars.{suffix}", tmp_path / f"labels.{suffix}"
    written = write_market(path, labels_path=labels_path, num_bars=5_000, seed=3)
    assert same_bars(mf.read_bars(path), written.bars)
    if suffix == "parquet":
        assert pl.read_parquet(labels_path).equals(written.labels)
        assert pl.read_parquet_schema(path)["timestamp"] == pl.Datetime("ns", "UTC")
    else:
        labels = pl.read_csv(labels_path)
        assert labels["expansion_end"].equals(written.labels["expansion_end"])
        assert path.read_text().splitlines()[1].startswith("2020-01-05T23:00:00Z,")
    assert sorted(tmp_path.iterdir()) == sorted([path, labels_path])


@pytest.mark.kernels
def test_the_sample_is_what_its_command_makes(tmp_path: Path) -> None:
    path, labels_path = tmp_path / "sample.parquet", tmp_path / "labels.parquet"
    write_market(path, labels_path=labels_path, num_bars=20_000, seed=17)
    assert pl.read_parquet(DATA / "sample.parquet").equals(pl.read_parquet(path))
    labels = pl.read_parquet(DATA / "sample_labels.parquet")
    assert labels.equals(pl.read_parquet(labels_path))
    assert f"| `sample_labels.parquet` | {len(labels)} |" in (DATA / "README.md").read_text()
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 1_000_000


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"bars.{suffix}"
    path.write_text("as it was")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    monkeypatch.setattr(pl.DataFrame, "write_csv", full)
    with pytest.raises(
        OutputError, match=r"bars\.\w+ cannot be written: .*No space left"
    ) as caught:
        write_market(path, num_bars=1_000)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        write_market(tmp_path / "nowhere" / "bars.parquet", num_bars=1_000)
    labels_path = tmp_path / "nowhere" / "labels.parquet"
    with pytest.raises(OutputError, match="nowhere"):
        write_market(tmp_path / "bars.parquet", labels_path=labels_path, num_bars=1_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_bars": 104}, "num_bars is 104; .* from 105 to"),
        ({"num_bars": 50_000_001}, "num_bars is 50000001"),
        ({"num_bars": 1e4}, "num_bars is 10000.0"),
        ({"num_bars": True}, "num_bars is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"tick": 0.0}, "tick is 0.0"),
        ({"tick": float("nan")}, "tick is nan"),
        ({"tick": "a"}, "tick is 'a'"),
        ({"start_price": float("inf")}, "start_price is inf"),
        ({"start_price": 10.0}, "start_price is 10.0, 40 ticks of 0.25"),
        ({"tick": 1e-12}, "start_price is 15000.0, 1.5e"),
    ],
)
def test_parameters_out_of_bounds_are_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        synthesise(**{"num_bars": 2_000, **wrong})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_paths_that_cannot_work_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bars\.txt: suffix is '\.txt'; give \.parquet or \.csv"):
        write_market(tmp_path / "bars.txt", num_bars=1_000)
    with pytest.raises(ConfigError, match="one path"):
        write_market(tmp_path / "a.csv", labels_path=f"{tmp_path}/./a.csv", num_bars=1_000)
    assert list(tmp_path.iterdir()) == []
    store = mf.build(walk(200), tmp_path / "x.zarr").path
    for bars, labels in ((store / "a.csv", None), (tmp_path / "a.csv", store / "b.csv")):
        with pytest.raises(OutputError, match=r"\.csv is inside the store"):
            write_market(bars, labels_path=labels, num_bars=1_000)
    assert list(tmp_path.iterdir()) == [store]
    assert not list(store.glob("*.csv"))


# The module itself


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(synth)
    assert outcome.attempted >= 4
    assert outcome.failed == 0


def test_importing_loads_no_compiler() -> None:
    code = "import sys, moola_features.synth; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
