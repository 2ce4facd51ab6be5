"""Charts: what a page and an image hold, read back from the files themselves."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moola_features as mf
from moola_features import chart
from moola_features.chart import scene as scenes
from moola_features.chart import theme, write_chart
from moola_features.errors import ConfigError, MoolaError, OutputError

matplotlib_image = pytest.importorskip("matplotlib.image")
pytest.importorskip("plotly")

MINUTE_NS = 60 * 10**9
START_NS = int(np.datetime64("2024-03-05T22:00", "ns").astype(np.int64))
NUM_BARS = 420
GAP_BAR = 300  # the first bar after two quiet days
GAP_NS = 2 * 86_400 * 10**9


def triangle_bars() -> mf.Bars:
    """20 bars up, 20 bars down, by 1 each, with wicks of 0.25: every swing is known by hand.

    A peak's high is 120.25 and ATR is 1.5, so the close must lie 1.8 below: two bars later.
    """
    phase = np.arange(NUM_BARS) % 40
    close = 100.0 + np.minimum(phase, 40 - phase)
    opened = np.concatenate(([close[0]], close[:-1]))
    time = START_NS + np.arange(NUM_BARS) * MINUTE_NS
    time[GAP_BAR:] += GAP_NS
    high, low = np.maximum(opened, close) + 0.25, np.minimum(opened, close) - 0.25
    return mf.Bars(time=time, open=opened, high=high, low=low, close=close)


def built(bars: mf.Bars, path: Path, **settings: Any) -> mf.Store:
    mf.build(bars, path, mf.FeatureConfig(**settings))
    store: mf.Store = mf.open_store(path)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    return built(triangle_bars(), tmp_path_factory.mktemp("chart") / "wave.zarr", max_gap="4h")


def page_data(path: Path) -> dict[str, Any]:
    found = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S
    )
    assert len(found) == 1
    data: dict[str, Any] = json.loads(found[0])
    return data


def pixels(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        read = matplotlib_image.imread(file, format="png")
    return np.round(read[:, :, :3] * 255).astype(int)


def is_colour(image: np.ndarray, name: str) -> np.ndarray:
    wanted = [int(theme.COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(image - wanted).max(axis=2) <= 2


# ---- the page ------------------------------------------------------------------------------------


def test_page_holds_the_bars_and_columns_of_the_stretch(store: mf.Store, tmp_path: Path) -> None:
    written = write_chart(store, tmp_path / "wave.html", bars=150)
    assert written == [tmp_path / "wave.html", tmp_path / "wave.png"]
    data = page_data(written[0])
    first = NUM_BARS - 150
    assert data["first"] == first
    ohlc = np.array([data[name] for name in ("open", "high", "low", "close")]).T
    np.testing.assert_array_equal(ohlc, store.ohlc[first:])
    np.testing.assert_array_equal(np.array(data["time"]) * 1e6, store.time[first:])
    names = [panel["name"] for panel in data["panels"]]
    assert names == ["range_z", "dist_to_prev_SH", "dist_to_prev_SL", "expansion_proxy"]
    for panel in data["panels"]:
        column = next(c for c in mf.columns(store.config) if c.name == panel["name"])
        assert (panel["low"], panel["high"]) == (column.low, column.high)
        expected = store.features[first:, store.config.names.index(column.name)]
        np.testing.assert_array_equal(np.float32(panel["values"]), expected)


def test_page_marks_the_swings_of_a_market_made_by_hand(store: mf.Store, tmp_path: Path) -> None:
    write_chart(store, tmp_path / "wave.html", at=int(store.time[125]), bars=250)
    data = page_data(tmp_path / "wave.html")
    swings = data["swings"]
    turns = list(range(20, 248, 20))  # the turn at 240 is confirmed at 242, inside
    assert data["first"] == 0
    assert swings["index"] == turns
    assert swings["confirmed_index"] == [turn + 2 for turn in turns]
    assert swings["is_high"] == [turn % 40 == 20 for turn in turns]
    assert swings["price"] == [120.25 if turn % 40 == 20 else 99.75 for turn in turns]


@pytest.mark.parametrize(("stop", "known"), [(22, []), (23, [20])])
def test_swing_that_only_a_later_bar_confirms_is_not_drawn(
    store: mf.Store, stop: int, known: list[int]
) -> None:
    found = scenes._find_swings(store, 0, stop)
    assert found["index"].tolist() == known


def test_swings_are_those_of_the_true_state_and_the_zigzag_enters_from_the_left(
    store: mf.Store,
) -> None:
    every = mf.swings(triangle_bars(), store.config)
    for first, stop in ((0, NUM_BARS), (150, 171), (290, 330), (310, 420)):
        found = scenes._find_swings(store, first, stop)
        inside = (every.confirmed_index >= first) & (every.confirmed_index < stop)
        shown = found["confirmed_index"] >= first
        np.testing.assert_array_equal(found["index"][shown], every.index[inside])
        np.testing.assert_array_equal(found["price"][shown], every.price[inside])
        before = every.index[every.confirmed_index < first]
        in_segment = before[(before >= GAP_BAR) == (first >= GAP_BAR)]
        assert found["index"][~shown].tolist() == in_segment[-1:].tolist()
    assert set(scenes._find_swings(store, 290, 330)["segment"].tolist()) == {0, 1}


def test_page_shades_invalid_bars_and_marks_the_gap(store: mf.Store, tmp_path: Path) -> None:
    write_chart(store, tmp_path / "wave.html")
    data = page_data(tmp_path / "wave.html")
    shaded = np.zeros(NUM_BARS, bool)
    for start, stop in data["invalid"]:
        shaded[start:stop] = True
    first = data["first"]
    np.testing.assert_array_equal(shaded[first:], ~store.valid[first:])
    assert shaded.any()
    assert not shaded.all()
    assert data["boundaries"] == [GAP_BAR]
    assert data["gap_texts"] == ["2 d 1 min"]


class _Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.policy = ""
        self.controls: dict[str, dict[str, str | None]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [named[key] or "" for key in ("src", "href", "action") if key in named]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""
        if tag == "input":
            self.controls[named["id"] or ""] = named


def test_page_loads_nothing_from_anywhere(store: mf.Store, tmp_path: Path) -> None:
    write_chart(store, tmp_path / "wave.html")
    text = (tmp_path / "wave.html").read_text("utf-8")
    parser = _Sources()
    parser.feed(text)
    assert parser.found == ["data:,"]
    assert parser.policy.startswith("default-src 'none'")
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "%%" not in text.split("<script>")[0]
    assert "Plotly.react" in text


def test_page_has_a_picker_bounded_by_the_stretch(store: mf.Store, tmp_path: Path) -> None:
    write_chart(store, tmp_path / "wave.html", bars=30)
    parser = _Sources()
    parser.feed((tmp_path / "wave.html").read_text("utf-8"))
    picker = parser.controls["picker"]
    assert picker["type"] == "datetime-local"
    assert picker["min"] == str(store.time[-30].astype("datetime64[ns]").astype("datetime64[s]"))
    assert picker["max"] == str(store.time[-1].astype("datetime64[ns]").astype("datetime64[s]"))
    assert picker["step"] == "60"


def test_names_are_shown_as_text(store: mf.Store, tmp_path: Path) -> None:
    named = tmp_path / "<script>$\\frac{%%data%%.zarr"
    shutil.copytree(store.path, named)
    write_chart(mf.open_store(named), tmp_path / "odd.html", bars=30)
    text = (tmp_path / "odd.html").read_text("utf-8")
    assert "&lt;script&gt;$\\frac{%%data%%.zarr" in text
    assert "<script>$" not in text
    assert len(page_data(tmp_path / "odd.html")["close"]) == 30


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript engine to check with")
def test_script_of_the_page_is_valid() -> None:
    script = Path(chart.__file__).parent / "page.js"
    checked = subprocess.run(["node", "--check", script], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()


# ---- the image -----------------------------------------------------------------------------------


def test_image_alone_is_drawn_at_its_size(store: mf.Store, tmp_path: Path) -> None:
    assert write_chart(store, tmp_path / "wave.PNG") == [tmp_path / "wave.PNG"]
    assert [path.name for path in tmp_path.iterdir()] == ["wave.PNG"]
    four = pixels(tmp_path / "wave.PNG")
    write_chart(store, tmp_path / "bare.png", columns=[])
    bare = pixels(tmp_path / "bare.png")
    assert four.shape[1] == bare.shape[1] == 1920
    assert four.shape[0] - bare.shape[0] == pytest.approx(4 * 0.78 * 120, abs=1)
    for name in ("rising", "falling", "swing_high", "swing_low", "zigzag"):
        assert is_colour(bare, name).sum() > 50, name


def test_image_marks_a_swing_high_above_its_candle(store: mf.Store, tmp_path: Path) -> None:
    from moola_features.chart import image as drawing

    write_chart(store, tmp_path / "peak.png", at=int(store.time[17]), bars=40, columns=[])
    image = pixels(tmp_path / "peak.png")
    step = (drawing.WIDTH - drawing.LEFT - drawing.RIGHT) * drawing.DPI / 42  # bars -1 to 41
    column = round(drawing.LEFT * drawing.DPI + 21 * step)
    near = slice(column - 8, column + 9)
    legend = round(drawing.HEADER * drawing.DPI)
    marks = np.flatnonzero(is_colour(image[legend:, near], "swing_high").any(axis=1))
    candle = np.flatnonzero(is_colour(image[legend:, near], "rising").any(axis=1))
    assert 3 <= candle.min() - marks.min() <= 20
    assert not is_colour(image[legend:, near], "swing_low").any()
    # The bar that confirms it, two bars on, is ringed at its close, two points lower.
    ring = slice(round(column + 2 * step) - 3, round(column + 2 * step) + 4)
    rows = np.flatnonzero(is_colour(image[legend:, ring], "swing_high").any(axis=1))
    assert rows.min() > candle.min()


def test_bars_that_share_a_candle_keep_its_extremes(
    store: mf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theme, "MAX_SWINGS", dict.fromkeys(theme.MAX_SWINGS, 0))
    heights = []
    for most in (1_000, 50):
        monkeypatch.setattr(theme, "MAX_CANDLES", most)
        write_chart(store, tmp_path / "wave.png", bars=200, columns=[])
        image = pixels(tmp_path / "wave.png")[110:, :1800]
        drawn = is_colour(image, "rising") | is_colour(image, "falling")
        heights.append(np.flatnonzero(drawn.any(axis=1))[[0, -1]])
    np.testing.assert_allclose(heights[0], heights[1], atol=2)


def test_prices_that_never_move_are_drawn(tmp_path: Path) -> None:
    flat = np.full(120, 7.0)
    bars = mf.Bars(time=np.arange(120) * MINUTE_NS, open=flat, high=flat, low=flat, close=flat)
    write_chart(built(bars, tmp_path / "flat.zarr"), tmp_path / "flat.html", bars=10)
    assert is_colour(pixels(tmp_path / "flat.png"), "rising").sum() > 50
    assert page_data(tmp_path / "flat.html")["swings"]["index"] == []


def test_family_returns_has_its_own_columns_and_no_swings(tmp_path: Path) -> None:
    returns = built(triangle_bars(), tmp_path / "returns.zarr", family="returns")
    write_chart(returns, tmp_path / "returns.html")
    data = page_data(tmp_path / "returns.html")
    assert [panel["name"] for panel in data["panels"]] == [
        "log_return_close", "body_ratio", "zscore_close",
    ]  # fmt: skip
    assert data["swings"]["index"] == []
    unbounded = data["panels"][0]
    reach = np.abs(unbounded["values"]).max()
    assert (unbounded["low"], unbounded["high"]) == pytest.approx((-reach, reach))


# ---- where the stretch lies ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [
        START_NS + 200 * MINUTE_NS,
        START_NS + 200 * MINUTE_NS + 59 * 10**9,
        "2024-03-06 01:20",
        "2024-03-06T02:20:00+01:00",
        datetime(2024, 3, 6, 1, 20),
        datetime(2024, 3, 6, 1, 20, tzinfo=UTC),
        datetime(2024, 3, 5, 20, 20, tzinfo=timezone(timedelta(hours=-5))),
    ],
)
def test_stretch_is_centred_on_a_time(store: mf.Store, at: Any) -> None:
    scene = scenes.make_scene(store, at, 50, None)
    assert scene.focus == 200
    assert (scene.first, len(scene.time)) == (175, 50)


@pytest.mark.parametrize(
    ("index", "bars", "first", "num_bars"),
    [(5, 50, 0, 50), (415, 50, 370, 50), (0, 10_000, 0, 420), (None, 50, 370, 50)],
)
def test_stretch_is_clipped_to_the_store(
    store: mf.Store, index: int | None, bars: int, first: int, num_bars: int
) -> None:
    at = None if index is None else int(store.time[index])
    scene = scenes.make_scene(store, at, bars, None)
    assert (scene.first, len(scene.time)) == (first, num_bars)
    assert scene.focus == index


def test_time_inside_a_gap_shows_the_bar_before_it(store: mf.Store) -> None:
    assert scenes.make_scene(store, "2024-03-07", 50, None).focus == GAP_BAR - 1


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("wave.svg", {}, ["wave.svg", ".html or .png"]),
        ("wave", {}, [".html or .png"]),
        ("w.png", {"at": "2023-01-01"}, ["2023-01-01", "2024-03-05 22:00", "2024-03-08 04:59"]),
        ("w.png", {"at": "2025-01-01"}, ["2025-01-01", "outside the store"]),
        ("w.png", {"at": "noon"}, ["noon", "give a time"]),
        ("w.png", {"at": True}, ["True", "give a time"]),
        ("w.png", {"bars": 9}, ["9", "10 to 20000"]),
        ("w.png", {"bars": 20_001}, ["20001", "10 to 20000"]),
        ("w.png", {"bars": 50.0}, ["50.0", "whole number"]),
        ("w.png", {"bars": True}, ["True", "whole number"]),
        ("w.png", {"columns": ["range_z", "volume"]}, ["volume", "open_norm", "expansion_proxy"]),
        ("w.png", {"columns": "range_z"}, ["range_z", "list"]),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    store: mf.Store, tmp_path: Path, name: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        write_chart(store, tmp_path / name, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_refused(store: mf.Store, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing") as caught:
        write_chart(store, tmp_path / "missing" / "wave.html", bars=20)
    assert "\n" not in str(caught.value)


def test_a_place_inside_a_store_is_refused(store: mf.Store, tmp_path: Path) -> None:
    (tmp_path / "door").symlink_to(store.path)
    for place in (store.path / "wave.html", tmp_path / "door" / "features" / "wave.png"):
        with pytest.raises(OutputError, match=r"is inside the store .* next build would delete it"):
            write_chart(store, place, bars=20)
        assert not place.exists()


def test_neither_file_is_replaced_when_one_cannot_be(store: mf.Store, tmp_path: Path) -> None:
    (tmp_path / "wave.html").write_text("older")
    (tmp_path / "wave.png").mkdir()
    with pytest.raises(OutputError, match=r"wave\.png"):
        write_chart(store, tmp_path / "wave.html", bars=20)
    assert (tmp_path / "wave.html").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wave.html", "wave.png"]


def test_file_that_was_there_survives_a_failure(
    store: mf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wave.png").write_bytes(b"older")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="no space left"):
        write_chart(store, tmp_path / "wave.png", bars=20)
    monkeypatch.undo()
    assert (tmp_path / "wave.png").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("package", ["matplotlib", "plotly"])
def test_missing_package_is_named_with_its_remedy(
    store: mf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == package or name in (
            "moola_features.chart.page",
            "moola_features.chart.image",
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MoolaError, match=rf"{package}.*pip install 'moola\[charts\]'"):
        write_chart(store, tmp_path / "wave.html", bars=20)


# ---- habits --------------------------------------------------------------------------------------


def test_same_store_gives_the_same_bytes(store: mf.Store, tmp_path: Path) -> None:
    first, second = (
        [path.read_bytes() for path in write_chart(store, tmp_path / name / "wave.html", bars=60)]
        for name in _folders(tmp_path, "a", "b")
    )
    assert first == second


def _folders(parent: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        (parent / name).mkdir()
    return names


def test_drawing_libraries_are_loaded_late_and_pyplot_never(
    store: mf.Store, tmp_path: Path
) -> None:
    code = f"""
import sys
import moola_features as mf
from moola_features.chart import write_chart
assert not {{"matplotlib", "plotly"}} & set(sys.modules)
write_chart(mf.open_store({str(store.path)!r}), {str(tmp_path / "wave.png")!r}, bars=20)
assert "matplotlib" in sys.modules
assert not {{"matplotlib.pyplot", "plotly"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- labels --------------------------------------------------------------------------------------


def test_time_labels_stand_apart_and_name_the_day_at_midnight(store: mf.Store) -> None:
    scene = scenes.make_scene(store, None, NUM_BARS, None)
    for spacing in (5, 30, 100):
        ticks = scenes.choose_ticks(scene.tick_rank, spacing)
        assert (np.diff(ticks) >= spacing).all()
        assert ticks
    ticks = scenes.choose_ticks(scene.tick_rank, 30)
    labels = {index: scene.tick_text[index] for index in ticks}
    assert labels[120] == "6 Mar"  # 22:00 and two hours
    assert labels[60] == "23:00"
    assert labels[GAP_BAR] == "8 Mar"
    assert scene.tick_text[1] == "22:01"


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (10**9, ["23:59:59", "6 Mar", "00:00:01"]),
        (86_400 * 10**9, ["5 Mar", "6 Mar", "7 Mar"]),
        (31 * 86_400 * 10**9, ["Feb 2024", "Mar 2024", "Apr 2024"]),
        (366 * 86_400 * 10**9, ["2023", "2024", "2025"]),
    ],
)
def test_time_labels_follow_the_step_between_bars(step: int, expected: list[str]) -> None:
    midnight = int(np.datetime64("2024-03-06", "ns").astype(np.int64))
    time = midnight + np.array([-1, 0, 1]) * step
    _, texts = scenes.label_times(time, int(time[0]) - step)
    assert list(texts) == expected


@pytest.mark.parametrize(
    ("tick", "base", "decimals"),
    [(0.25, 17_000, 2), (1.0, 17_000, 0), (1e-5, 1.1, 5), (1e-8, 3e-5, 8), (5.0, 60_000, 0)],
)
def test_prices_are_written_with_the_digits_of_their_grid(
    tick: float, base: float, decimals: int
) -> None:
    steps = np.random.default_rng(1).integers(0, 200, (300, 4))
    assert scenes.count_decimals(base + steps * tick) == decimals


def test_prices_off_any_grid_are_written_short() -> None:
    prices = 17_000 + 50 * np.random.default_rng(1).random((300, 4))
    assert scenes.count_decimals(prices) == 3


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (49 * 3_600 * 10**9, "2 d 1 h"),
        (90 * 60 * 10**9, "1 h 30 min"),
        (16 * 60 * 10**9, "16 min"),
        (1_500_000_000, "1.5 s"),
    ],
)
def test_gaps_are_written_in_their_largest_units(nanoseconds: int, expected: str) -> None:
    assert scenes.duration_text(nanoseconds) == expected


def test_notes_do_not_overlap() -> None:
    assert scenes.choose_notes([10, 12, 40, 60], 10, None) == [0, 2, 3]
    assert scenes.choose_notes([10, 12, 40, 60], 10, 44) == [0, 3]


def test_png_of_the_page_is_the_image(store: mf.Store, tmp_path: Path) -> None:
    write_chart(store, tmp_path / "page.html", bars=60)
    write_chart(store, tmp_path / "image.png", bars=60)
    content = (tmp_path / "page.png").read_bytes()
    assert content == (tmp_path / "image.png").read_bytes()
    assert matplotlib_image.imread(io.BytesIO(content), format="png").shape[2] == 4
