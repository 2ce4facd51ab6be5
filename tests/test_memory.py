"""What a build foretells of its memory, and what it does about a limit."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

import moola_features as mf
from moola_features.building import memory
from moola_features.errors import ConfigError
from tests.markets import frame, names_in, refused, run_python, tree, walk

MB = 10**6
WORKER = 65_536 * (44 + 8 + 1 + 32) + 65_536 * 40  # bytes: a chunk computed, and one waiting for it


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> int:
    """A process of a known size."""
    monkeypatch.setattr(memory, "resident_bytes", lambda: 200 * MB)
    return 200 * MB


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (500, 500), ("500", 500), ("500MB", 500 * MB), (" 1.5 gb ", 1_500 * MB),
        ("64KiB", 65_536), ("2GiB", 2**31), ("0.001 MB", 1_000),
    ],
)  # fmt: skip
def test_sizes(value, expected):
    assert memory.parse_size(value) == expected


@pytest.mark.parametrize("value", [0, -5, "", "much", "5 apples", "MB", True, None, 1.5e300, "0MB"])
def test_sizes_that_are_none(value):
    with pytest.raises(ConfigError) as caught:
        memory.parse_size(value)
    assert str(caught.value) == (f"max_memory is {value!r}; give a size such as '500MB' or '2GiB'")


def sizes(**others: int) -> dict[str, int]:
    usual = {"num_columns": 11, "batch_bars": 1_000, "decoding_bytes": MB}
    return {**usual, **others}


def test_every_worker_takes_as_much(resident):
    one, two, nine = (memory.predicted_bytes(n, **sizes()) for n in (1, 2, 9))
    assert two - one == WORKER
    assert nine - one == 8 * WORKER
    assert one > resident
    assert memory.predicted_bytes(1, **sizes(decoding_bytes=5 * MB)) == one + 4 * MB
    wider = memory.predicted_bytes(1, **sizes(num_columns=19))
    assert wider - one == 65_536 * 8 * 4
    assert memory.predicted_bytes(1, **sizes(at_once=11)) == one
    assert memory.predicted_bytes(1, **sizes(num_bars=10**6)) == one
    few = [memory.predicted_bytes(n, **sizes(at_once=9, num_bars=100)) for n in (1, 9)]
    assert few[0] < one
    assert few[1] - few[0] < 8 * 17 * MB
    several = memory.predicted_bytes(2, **sizes(at_once=11))
    assert several - two == (2 + 1) * 65_536 * 40 + 3 * 1_000 * 40 + MB + 48 * MB


def test_fewer_workers(resident):
    one, _, three = (memory.predicted_bytes(n, **sizes()) for n in (1, 2, 3))
    assert memory.fitting_workers(8, None, **sizes())[0] == 8
    assert memory.fitting_workers(8, three, **sizes()) == (3, three)
    assert memory.fitting_workers(8, three - 1, **sizes())[0] == 2
    assert memory.fitting_workers(2, three, **sizes())[0] == 2
    assert memory.fitting_workers(8, one, **sizes()) == (1, one)
    with pytest.raises(ConfigError) as caught:
        memory.fitting_workers(8, one - 1, **sizes())
    told = f"max_memory is {(one - 1) / 1e6:,.0f} MB, but with one worker this build takes about "
    assert str(caught.value) == f"{told}{one / 1e6:,.0f} MB; allow as much"


class TestBuild:
    def test_refused_before_anything_is_done(self, tmp_path, resident):
        mf.build(walk(200), tmp_path / "x.zarr")
        before = tree(tmp_path)
        message = refused(ConfigError, walk(300), tmp_path / "x.zarr", force=True, max_memory="9MB")
        assert message.startswith(
            "max_memory is 9 MB, but with one worker this build takes about 3"
        )
        assert tree(tmp_path) == before
        assert names_in(tmp_path) == ["x.zarr"]

    def test_lowered(self, tmp_path, resident):
        told: list[str] = []
        report = mf.build(walk(300), tmp_path / "x.zarr", workers=8, tell=told.append)
        limit = report.predicted_bytes - 5 * WORKER
        report = mf.build(
            walk(300), tmp_path / "x.zarr", workers=8, max_memory=limit, force=True,
            tell=told.append,
        )  # fmt: skip
        assert (report.workers, report.predicted_bytes) == (3, limit)
        assert told[0].endswith(" MB with 8 workers, no limit")
        bound = f"{limit / 1e6:,.0f} MB"
        assert told[1] == f"memory: about {bound} with 3 workers, limit {bound}"


MEASURED = """
import sys
import moola_features as mf
report = mf.build(sys.argv[1], sys.argv[2], workers=2)
print(report.predicted_bytes / 1e6, report.peak_bytes / 1e6)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["csv", "parquet", "ipc"])
def test_what_is_foretold_is_enough(kind, tmp_path):
    source = tmp_path / f"bars.{kind}"
    # Text is decoded ahead of what is read: a short file has no time to pile up.
    table = frame(walk(2_000_000 if kind == "csv" else 400_000))
    if kind == "csv":
        table.write_csv(source)
    elif kind == "ipc":
        table.rechunk().write_ipc(source, compression="lz4", record_batch_size=400_000)
    else:
        table.write_parquet(source, row_group_size=400_000)
    foretold, peak = map(float, run_python(MEASURED, source, tmp_path / "x.zarr").stdout.split())
    assert peak < foretold < 1.6 * peak


IN_A_UNIVERSE = MEASURED.replace("sys.argv[1],", "[sys.argv[1]],")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_is_foretold_of_a_universe_is_enough(kind, tmp_path):
    source = tmp_path / f"bars.{kind}"
    table = frame(walk(1_000_000))
    table.write_csv(source) if kind == "csv" else table.write_parquet(source)
    done = run_python(IN_A_UNIVERSE, source, tmp_path / "x.zarr").stdout.split()
    foretold, peak = map(float, done)
    assert peak < foretold < 1.6 * peak


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("num_bars", [200, 5_000])
@pytest.mark.parametrize("kind", ["csv", "parquet", "symbols"])
def test_what_is_foretold_of_small_instruments(kind, num_bars, tmp_path):
    source = tmp_path / "data"
    source.mkdir()
    tables = [frame(walk(num_bars), name if kind == "symbols" else None) for name in "ABCDEF"]
    if kind == "symbols":
        source = tmp_path / "all.parquet"
        pl.concat(tables).write_parquet(source)
    for name, table in zip("ABCDEF", tables, strict=True):
        if kind == "csv":
            table.write_csv(source / f"{name}.csv")
        elif kind == "parquet":
            table.write_parquet(source / f"{name}.parquet")
    script = MEASURED.replace("workers=2", "workers=6")
    foretold, peak = map(float, run_python(script, source, tmp_path / "x.zarr").stdout.split())
    assert peak < foretold < 2 * peak


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak(monkeypatch):
    assert memory.peak_bytes() >= memory.resident_bytes() > 10 * MB
    peak = memory.peak_bytes()
    monkeypatch.setattr(memory, "Path", lambda _: Path("/nowhere/at/all"))
    assert memory.peak_bytes() >= peak - 1024
    assert memory.resident_bytes() == memory.peak_bytes()
    in_bytes = memory.peak_bytes()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak_bytes() * 1024 == in_bytes
