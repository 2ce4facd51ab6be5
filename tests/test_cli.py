"""The command line as a user meets it: results on stdout, the story on stderr, exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import polars as pl
import pytest

import moola_features as mf
from moola_features import cli

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample.parquet"
COMMANDS = ("build", "completion", "export", "info", "show", "stream", "synth", "verify")


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def moola(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the command line inside this process."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["moola-features", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        return Outcome(int(caught.value.code or 0), out, err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "sample.zarr"
    mf.build(SAMPLE, path)
    return path


def one_line(outcome: Outcome, *parts: str) -> None:
    """Check that stderr ends with one line that names the thing and says what to do."""
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    for part in parts:
        assert part in last, last
    assert outcome.out == ""


class TestBuild:
    def test_summary_goes_to_stdout_and_progress_to_stderr(self, moola, tmp_path: Path) -> None:
        done = moola("build", SAMPLE, "-o", tmp_path / "a.zarr")
        assert done.code == 0
        for word in ("bars", "segments", "steps", "flat bars", "valid bars", "size", "speed"):
            assert word in done.out
        for stage in ("import", "compile", "read", "compute", "write"):
            assert f"{stage} " in done.out
        assert "20000/20000" in done.err

    def test_json_is_one_document_with_every_figure(self, moola, tmp_path: Path) -> None:
        done = moola("build", SAMPLE, "-o", tmp_path / "a.zarr", "--json")
        report = json.loads(done.out)
        assert report["num_bars"] == 20_000
        assert set(report["seconds"]) == {
            "import", "compile", "read", "compute", "write", "total"
        }  # fmt: skip
        (instrument,) = report["instruments"]
        features = mf.compute(mf.read_bars(SAMPLE))
        assert instrument["num_valid"] == features.valid.sum()
        assert sum(instrument["gaps"]["histogram"].values()) == 20_000 - 1

    def test_workers_and_memory(self, moola, tmp_path: Path) -> None:
        target = tmp_path / "a.zarr"
        done = moola("build", SAMPLE, "-o", target, "--workers", 3, "--max-memory", "4GB")
        assert done.code == 0
        assert "with 3 workers, limit 4,000 MB" in done.err
        assert "3 workers" in done.out
        assert "chunks" in done.out
        refused = moola("build", SAMPLE, "-o", target, "--force", "--max-memory", "10MB")
        assert refused.code == 2
        one_line(refused, "max_memory is 10 MB, but with one worker", "allow as much")
        assert moola("build", SAMPLE, "-o", target, "--workers", 0).code == 2

    def test_second_build_says_up_to_date_and_compiles_nothing(self, moola, store: Path) -> None:
        done = moola("build", SAMPLE, "-o", store)
        assert done.code == 0
        assert "up to date" in done.out
        again = moola("build", SAMPLE, "-o", store, "--force", "--json")
        assert json.loads(again.out)["seconds"]["compile"] == 0.0

    def test_settings_reach_the_store(self, moola, tmp_path: Path) -> None:
        toml = tmp_path / "f.toml"
        toml.write_text('profile = "wide"\natr_period = 14\n')
        done = moola(
            "build", SAMPLE, "-o", tmp_path / "a.zarr", "--config", toml,
            "--swing-rule", "early", "--context", "--max-gap", "90min",
        )  # fmt: skip
        assert done.code == 0, done.err
        config = mf.open_store(tmp_path / "a.zarr").config
        assert config == mf.FeatureConfig.profile(
            "wide", atr_period=14, swing_rule="early", context=True, max_gap="90min"
        )

    def test_a_profile_beside_a_file(self, moola, tmp_path: Path, monkeypatch) -> None:
        toml = tmp_path / "f.toml"
        toml.write_text("atr_period = 14\n")
        given = ("--config", toml, "--profile", "wide")
        done = moola("build", SAMPLE, "-o", tmp_path / "a.zarr", *given)
        assert done.code == 0, done.err
        config = mf.open_store(tmp_path / "a.zarr").config
        assert config == mf.FeatureConfig.profile("wide", atr_period=14)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        shown = moola("stream", "--store", tmp_path / "a.zarr", *given)  # its configuration fits
        one_line(shown, "stdin is empty")

    def test_columns_are_mapped(self, moola, tmp_path: Path) -> None:
        odd = pl.read_parquet(SAMPLE).rename({"open": "first price"})
        odd.write_parquet(tmp_path / "odd.parquet")
        refused = moola("build", tmp_path / "odd.parquet", "-o", tmp_path / "a.zarr")
        assert refused.code == 1
        one_line(refused, "open", "--map")
        done = moola(
            "build", tmp_path / "odd.parquet", "-o", tmp_path / "a.zarr",
            "--map", "open=first price",
        )  # fmt: skip
        assert done.code == 0

    def test_dropped_bars_are_counted(self, moola, tmp_path: Path) -> None:
        frame = pl.read_parquet(SAMPLE)
        seventh = pl.int_range(pl.len()) == 7
        bad = frame.with_columns(high=pl.when(seventh).then(0.0).otherwise("high"))
        bad.write_parquet(tmp_path / "bad.parquet")
        refused = moola("build", tmp_path / "bad.parquet", "-o", tmp_path / "a.zarr")
        assert refused.code == 1
        one_line(refused, "row 7", "high")
        assert not (tmp_path / "a.zarr").exists()
        done = moola(
            "build", tmp_path / "bad.parquet", "-o", tmp_path / "a.zarr", "--on-bad-bars", "drop"
        )
        assert done.code == 0
        assert "1 bad bars" in done.out

    def test_several_symbols_become_a_universe(self, moola, tmp_path: Path) -> None:
        frame = pl.read_parquet(SAMPLE).head(500)
        both = pl.concat([frame.with_columns(symbol=pl.lit(name)) for name in ("NQ", "ES/1")])
        both.write_parquet(tmp_path / "two.parquet")
        done = moola("build", tmp_path / "two.parquet", "-o", tmp_path / "u.zarr")
        assert done.code == 0, done.err
        assert "2/2" in done.err
        assert "bars" not in done.err  # what is counted are instruments
        assert "NQ" in done.out
        assert "ES/1" in done.out
        shown = moola("info", tmp_path / "u.zarr", "--json")
        assert [one["symbol"] for one in json.loads(shown.out)] == ["NQ", "ES/1"]
        refused = moola("show", tmp_path / "u.zarr", "-o", tmp_path / "c.png")
        assert refused.code == 2
        one_line(refused, "--symbol", "ES/1")


class TestUserErrors:
    """One line that names the thing and the remedy; the right code; nothing left behind."""

    @pytest.fixture
    def bad(self, tmp_path: Path) -> Callable[[str], Path]:
        frame = pl.read_parquet(SAMPLE)
        folder = tmp_path / "bad"
        folder.mkdir()

        def make(kind: str) -> Path:
            path = folder / f"{kind}.parquet"
            if kind == "folder":
                path.mkdir()
            elif kind == "empty":
                path.write_bytes(b"")
            elif kind == "text":
                path.write_text("this is not Parquet\n")
            elif kind == "cut":
                path.write_bytes(SAMPLE.read_bytes()[:5_000])
            elif kind.startswith("rows"):
                frame.head(int(kind[4:])).write_parquet(path)
            elif kind == "types":
                frame.with_columns(pl.col("open").cast(pl.String)).write_parquet(path)
            elif kind == "nan":
                frame.with_columns(close=pl.lit(float("nan"))).write_parquet(path)
            elif kind == "unsorted":
                frame.reverse().write_parquet(path)
            elif kind == "missing":
                frame.drop("low").write_parquet(path)
            return path

        return make

    @pytest.mark.parametrize(
        ("kind", "parts"),
        [
            ("folder", ("folder",)),
            ("empty", ("empty",)),
            ("text", ("text.parquet",)),
            ("cut", ("cut.parquet",)),
            ("absent", ("absent.parquet",)),
            ("rows0", ("rows0.parquet",)),
            ("rows1", ("1 bars", "105", "window")),
            ("rows104", ("104 bars", "105", "window")),
            ("types", ("open",)),
            ("nan", ("row 0", "close", "nan")),
            ("unsorted", ("row 1", "time")),
            ("missing", ("low",)),
        ],
    )
    def test_bad_input(self, moola, bad, tmp_path: Path, kind: str, parts: tuple[str, ...]) -> None:
        refused = moola("build", bad(kind), "-o", tmp_path / "a.zarr")
        assert refused.code in (1, 2)
        one_line(refused, *parts)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]

    def test_old_store_survives_a_failed_build(self, moola, bad, store: Path) -> None:
        before = mf.open_store(store).features.copy()
        refused = moola("build", bad("nan"), "-o", store, "--force")
        assert refused.code == 1
        assert np.array_equal(mf.open_store(store).features, before)

    def test_wrong_usage_is_code_2(self, moola, tmp_path: Path) -> None:
        assert moola("build").code == 2
        assert moola("build", SAMPLE, "-o", tmp_path / "a", "--swing-rule", "magic").code == 2
        assert moola("build", SAMPLE, "-o", tmp_path / "a", "--map", "open").code == 2
        assert moola("build", SAMPLE, "-o", tmp_path / "a", "--map", "foo=bar").code == 2
        assert moola("build", SAMPLE, "-o", tmp_path / "a", "--dask", "garbage").code == 2
        refused = moola("build", SAMPLE, "-o", tmp_path / "a", "--max-gap", "soon")
        assert refused.code == 2
        one_line(refused, "max_gap", "soon", "4h")

    def test_empty_text_is_no_path(self, moola, store: Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        for given in (("build", SAMPLE), ("export", store), ("synth", "--bars", 1_000)):
            refused = moola(*given, "-o", "")
            assert refused.code == 2
            assert refused.err.endswith(
                "is empty text, which is no path; name a file or a folder\n"
            )
        assert list(tmp_path.iterdir()) == []

    def test_unknown_setting_in_toml(self, moola, tmp_path: Path) -> None:
        toml = tmp_path / "f.toml"
        toml.write_text("swing_rul = 'atr'\n")
        refused = moola("build", SAMPLE, "-o", tmp_path / "a", "--config", toml)
        assert refused.code == 2
        one_line(refused, "swing_rul")

    def test_missing_output_folder(self, moola, tmp_path: Path) -> None:
        refused = moola("build", SAMPLE, "-o", tmp_path / "no" / "a.zarr")
        assert refused.code == 1
        one_line(refused, "no folder", "make it first")

    def test_changed_config_needs_force(self, moola, store: Path) -> None:
        refused = moola("build", SAMPLE, "-o", store, "--swing-rule", "early")
        assert refused.code == 1
        one_line(refused, "swing_rule", "'atr'", "--force")

    def test_traceback_only_when_asked(self, moola, tmp_path: Path) -> None:
        quiet = moola("info", tmp_path / "no.zarr")
        assert "Traceback" not in quiet.err
        for given in (("info", tmp_path / "no.zarr", "-vv"), ("-vv", "info", tmp_path / "no.zarr")):
            loud = moola(*given)
            assert "Traceback" in loud.err
        assert quiet.code == loud.code == 1


class TestOtherCommands:
    def test_info(self, moola, store: Path) -> None:
        text = moola("info", store)
        assert text.code == 0
        for name in mf.open_store(store).names:
            assert name in text.out
        (summary,) = json.loads(moola("info", store, "--json").out)
        assert summary["input"]["source"] == "sample.parquet"

    def test_verify_passes_and_fails(self, moola, store: Path, tmp_path: Path) -> None:
        good = moola("verify", store, "--against", SAMPLE)
        assert good.code == 0, good.out + good.err
        assert "FAIL" not in good.out
        other = tmp_path / "other.parquet"
        pl.read_parquet(SAMPLE).head(19_000).write_parquet(other)
        bad = moola("verify", store, "--against", other, "--json")
        assert bad.code == 1
        report = json.loads(bad.out)
        assert not report["passed"]
        assert "failed" in bad.err.strip().splitlines()[-1]

    def test_show(self, moola, store: Path, tmp_path: Path) -> None:
        done = moola("show", store, "-o", tmp_path / "c.html", "--bars", "120")
        assert done.code == 0, done.err
        assert done.out.split() == [str(tmp_path / "c.html"), str(tmp_path / "c.png")]
        refused = moola("show", store, "-o", tmp_path / "c.gif")
        assert refused.code == 2
        one_line(refused, ".html")

    def test_export(self, moola, store: Path, tmp_path: Path) -> None:
        done = moola("export", store, "-o", tmp_path / "out")
        assert done.code == 0, done.err
        windows = np.load(tmp_path / "out" / "features_11d.npy", allow_pickle=False)
        assert windows.shape[1:] == (105, 11)
        again = moola("export", store, "-o", tmp_path / "out")
        assert again.code in (1, 2)
        one_line(again, "--force")

    def test_synth(self, moola, tmp_path: Path) -> None:
        done = moola(
            "synth", "-o", tmp_path / "b.csv", "--bars", "3000", "--labels", tmp_path / "l.parquet"
        )
        assert done.code == 0, done.err
        assert len(mf.read_bars(tmp_path / "b.csv")) == 3000
        refused = moola("synth", "-o", tmp_path / "b.parquet", "--bars", "5")
        assert refused.code == 2
        one_line(refused, "num_bars", "5")

    def test_stream_goes_on_from_a_saved_state(self, tmp_path: Path) -> None:
        frame = pl.read_parquet(SAMPLE).head(300)
        bars = mf.read_bars(frame)
        expected = mf.compute(bars).values
        state = tmp_path / "state.json"
        got = []
        for piece in (frame.head(180), frame.tail(120)):
            done = subprocess.run(
                [sys.executable, "-m", "moola_features", "stream", "--state", state, "--json"],
                input=piece.write_csv(), capture_output=True, text=True, cwd=ROOT, check=True,
            )  # fmt: skip
            got += [list(json.loads(line).values())[2:] for line in done.stdout.splitlines()]
        assert np.array_equal(np.array(got, np.float32), expected)

    def test_a_state_inside_a_store(self, moola, store: Path) -> None:
        refused = moola("stream", "--state", store / "state.json")
        assert refused.code == 1
        one_line(refused, "is inside the store", "choose another folder")
        assert not (store / "state.json").exists()

    def test_a_symbol_of_no_store(self, moola) -> None:
        refused = moola("stream", "--symbol", "NQ")
        assert refused.code == 2
        one_line(refused, "--symbol needs --store")

    def test_stream_goes_on_from_a_store(self, store: Path) -> None:
        opened = mf.open_store(store)
        last = opened.ohlc[-1]
        after = int(opened.time[-1]) + 60_000_000_000
        line = f"time,open,high,low,close\n{after},{','.join(repr(float(x)) for x in last)}\n"
        done = subprocess.run(
            [sys.executable, "-m", "moola_features", "stream", "--store", store],
            input=line, capture_output=True, text=True, cwd=ROOT, check=True,
        )  # fmt: skip
        header, row = done.stdout.splitlines()
        assert header.split(",")[2:] == list(opened.names)
        bars = mf.read_bars(SAMPLE)
        longer = mf.Bars(
            time=[*bars.time, after], open=[*bars.open, last[0]], high=[*bars.high, last[1]],
            low=[*bars.low, last[2]], close=[*bars.close, last[3]],
        )  # fmt: skip
        assert np.array_equal(
            np.array(row.split(",")[2:], np.float32), mf.compute(longer).values[-1]
        )

    def test_version_help_and_completion(self, moola) -> None:
        assert mf.__version__ in moola("--version").out
        listed = moola("--help").out
        assert all(command in listed for command in COMMANDS)
        for shell in ("bash", "zsh", "fish"):
            assert "_MOOLA_FEATURES_COMPLETE" in moola("completion", shell).out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, moola, command: str) -> None:
        shown = moola(command, "--help")
        assert shown.code == 0
        assert "Usage: " in shown.out
        options = [x for x in cli.cli.commands[command].params if isinstance(x, click.Option)]
        assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    bars = tmp_path / "bars.parquet"
    frame = pl.read_parquet(SAMPLE)
    step = frame["timestamp"].dt.epoch("ns").max() - frame["timestamp"].dt.epoch("ns").min()
    parts = [
        frame.with_columns(pl.col("timestamp") + pl.duration(nanoseconds=i * (step + 60 * 10**9)))
        for i in range(60)
    ]
    pl.concat(parts).write_parquet(bars)
    # What a script starts in the background ignores Ctrl-C; termination it must not.
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"] if number == signal.SIGTERM else []
    build = [sys.executable, "-m", "moola_features", "build", bars, "-o", tmp_path / "a.zarr"]
    process = subprocess.Popen(
        [*shell, *build],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    beside = tmp_path / ".a.zarr.building"
    deadline = time.monotonic() + 60
    while not beside.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the build ended before it could be interrupted")
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == "interrupted; what was there before is untouched"
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["bars.parquet"]


def test_an_interrupted_stream_promises_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "moola_features", "stream", "--state", state],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("time,open,high,low,close\n2024-03-05T14:30Z,1,2,0.5,1\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.readline()  # the bar's features
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip() == "interrupted"
    assert json.loads(state.read_text())["last_time"] == 1_709_649_000 * 10**9


def test_an_interrupted_build_of_an_address_promises_nothing(moola, monkeypatch) -> None:
    def build(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moola_features.builder.build", build)
    done = moola("build", SAMPLE, "-o", "s3://bucket/x.zarr")
    last = done.err.strip().splitlines()[-1]
    assert last == "interrupted; what stood at s3://bucket/x.zarr may be gone, build again"
    done = moola("build", SAMPLE, "-o", "x.zarr")
    assert done.err.strip().splitlines()[-1] == "interrupted; what was there before is untouched"


def test_module_and_script_are_the_same() -> None:
    script = Path(sys.executable).parent / "moola-features"
    command = [sys.executable, "-m", "moola_features", "--version"]
    expected = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    if not script.exists():
        pytest.skip("moola is not installed as a script here")
    actual = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert actual.stdout == expected.stdout
