"""Which windows a review asks for, in what order, and what it shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moola_features as mf
from moola_train.config import RunConfig
from moola_train.errors import ConfigError, LabelsError
from moola_train.fit import fit
from moola_train.inference import Predictor
from moola_train.review.candidates import mean_entropy, queue_rows, store_windows
from moola_train.review.pictures import LEAST_PAUSE, NUM_AFTER, NUM_BEFORE, Pictures
from moola_train.review.start import ReviewSettings, open_review
from tests.train.reviewing import CLASSES, ONE, make_store
from tests.train.small import SETTINGS, make_task


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    return make_store(tmp_path_factory.mktemp("review"))


def test_candidates_are_valid_windows_that_share_no_bar(store: mf.Store) -> None:
    every = store_windows(store, stride=None, sample=None, seed=1)
    assert every.tolist() == store.windows(105, 105).starts.tolist()
    assert (np.diff(every) >= 105).all()
    few, more = (store_windows(store, stride=7, sample=n, seed=1) for n in (10, 20))
    assert len(few) == 10
    assert set(few.tolist()) < set(more.tolist()) < set(store.windows(105, 7).starts.tolist())
    assert (np.diff(more) > 0).all()
    other = store_windows(store, stride=7, sample=10, seed=2)
    assert other.tolist() != few.tolist()
    with pytest.raises(ConfigError, match="sample is 0; draw at least 1"):
        store_windows(store, stride=None, sample=0, seed=1)
    with pytest.raises(LabelsError, match="has no valid window of 105 bars there"):
        store_windows(store, stride=None, sample=1, seed=1, start="2090-01-01")


def test_orders() -> None:
    bars = np.array([900, 100, 500, 300, 700])
    whole = {"seed": 3, "bounds": (0, 10_000), "uncertainty": None}
    assert queue_rows(bars, order="given", **whole).tolist() == [0, 1, 2, 3, 4]
    drawn = queue_rows(bars, order="random", **whole)
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 4]
    # The order is that of the windows, in whatever rows of a file they stand.
    mixed = np.array([4, 2, 0, 1, 3])
    again = queue_rows(bars[mixed], order="random", **whole)
    assert bars[mixed][again].tolist() == bars[drawn].tolist()
    assert queue_rows(bars, order="random", **{**whole, "seed": 4}).tolist() != drawn.tolist()
    asked = {**whole, "uncertainty": np.array([0.2, 0.9, 0.2, 0.5, 1.0])}
    assert queue_rows(bars, order="uncertain", **asked).tolist() == [4, 1, 3, 0, 2]
    inside = {**whole, "bounds": (300, 805)}
    assert queue_rows(bars, order="given", **inside).tolist() == [2, 3, 4]
    assert queue_rows(bars, order="given", **{**whole, "bounds": (300, 804)}).tolist() == [2, 3]


def test_entropies_by_hand() -> None:
    even, sure, fair = np.full((1, 4), 0.25), np.array([[0.0, 1, 0, 0]]), np.array([[0.9, 0.1]])
    assert mean_entropy([even]).tolist() == pytest.approx([1.0])
    assert mean_entropy([sure]).tolist() == [0.0]
    # -(0.9 log2 0.9 + 0.1 log2 0.1) = 0.46900
    assert mean_entropy([fair]).tolist() == pytest.approx([0.4689956], abs=1e-6)
    assert mean_entropy([even, fair]).tolist() == pytest.approx([0.7344978], abs=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[mf.Store, Path, Path]:
    """A store, labels and a small run on them."""
    folder = tmp_path_factory.mktemp("run")
    task = make_task(folder)
    assert task.store is not None
    changes = {"model.preset": "jade-span", "loop.epochs": 1}
    config = RunConfig.from_dict(SETTINGS).override(changes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(task.store, task.labels, task.split, folder / "run", config)
    torch.set_num_threads(threads)
    return task.store, task.labels, folder / "run"


def test_the_model_orders_and_suggests(run: tuple[mf.Store, Path, Path], tmp_path: Path) -> None:
    store, _, folder = run
    settings = ReviewSettings(order="uncertain", run=folder, sample=12)
    with open_review(store, tmp_path / "hand.parquet", settings=settings) as server:
        asked: list[dict[str, Any]] = []
        while (reply := server.session.next({"page": ONE, "have": [w["id"] for w in asked]}))[
            "next"
        ]:
            asked.append(reply["next"])
    starts = store_windows(store, stride=None, sample=12, seed=17)
    found = Predictor.open(folder).predict(store, starts)
    parts = []
    for name in ("type_probability", "start_probability", "end_probability"):
        p = found[name].astype(np.float64)
        logs = np.log(np.where(p > 0, p, 1.0))  # what cannot be adds nothing
        parts.append(-(p * logs).sum(axis=1) / np.log(p.shape[1]))
    expected = starts[np.argsort(-np.mean(parts, axis=0), kind="stable")]
    by_time = {int(store.time[bar]) // 10**6: row for row, bar in enumerate(starts.tolist())}
    rows = [by_time[int(window["time"][window["before"]])] for window in asked]
    assert starts[rows].tolist() == expected.tolist()
    for window, row in zip(asked, rows, strict=True):
        suggestion = window["suggestion"]
        assert suggestion["label"] == CLASSES[found["type_probability"][row].argmax()]
        assert (suggestion["start"], suggestion["end"]) == (found["start"][row], found["end"][row])
        assert suggestion["source"] == "model run"


def test_labels_are_suggested_before_the_model_and_nothing_to_the_blind(
    run: tuple[mf.Store, Path, Path], tmp_path: Path
) -> None:
    store, labels, folder = run
    for blind, expected in ((False, ["labels", "model run"]), (True, [])):
        output = tmp_path / f"{blind}.parquet"
        settings = ReviewSettings(run=folder, sample=500, blind=blind)
        with open_review(store, labels, output, settings) as server:
            first = server.session.next({"page": ONE})["next"]
            names = {first["suggestion"] and (first["suggestion"]["source"] or "labels")}
            have = [first["id"]]
            for _ in range(60):
                window = server.session.next({"page": ONE, "have": have})["next"]
                if window is None:
                    break
                have.append(window["id"])
                names.add(window["suggestion"] and (window["suggestion"]["source"] or "labels"))
        assert sorted(name for name in names if name) == expected


# ---- pictures ---------------------------------------------------------------------------------


def test_a_picture_shows_the_bars_and_the_swings_that_they_have_confirmed(store: mf.Store) -> None:
    pictures = Pictures(store, 105)
    for bar in store.windows(105, 997).starts.tolist():
        picture = pictures.of(bar)
        first = bar - picture["before"]
        assert picture["before"] == min(bar, NUM_BEFORE)
        stop = bar + 105 + NUM_AFTER
        assert picture["time"] == [int(ns) // 10**6 for ns in store.time[first:stop]]
        for column, name in enumerate(("open", "high", "low", "close")):
            assert picture[name] == store.ohlc[first:stop, column].tolist()
        # Bars after the window change no swing that it shows.
        ohlc = np.asarray(store.ohlc[: bar + 105])
        seen = mf.Bars(
            time=np.asarray(store.time[: bar + 105]), open=ohlc[:, 0], high=ohlc[:, 1],
            low=ohlc[:, 2], close=ohlc[:, 3],
        )  # fmt: skip
        known = mf.swings(seen, store.config)
        expected = list(
            zip(known.is_high, known.index - bar, known.confirmed_index - bar, known.price,
                strict=True)
        )  # fmt: skip
        count = int((known.confirmed_index >= first).sum()) + 1
        shown = [
            (swing["high"], swing["at"], swing["confirmed"], swing["price"])
            for swing in picture["swings"]
            if swing["confirmed"] < 105
        ]
        assert shown == expected[-count:]


def test_a_picture_stays_within_its_segment(tmp_path: Path) -> None:
    bars = mf.synth.synthesise(900, seed=5).bars
    time = np.array(bars.time)
    time[450:] += 10 * 86_400 * 10**9
    parts = {name: getattr(bars, name) for name in ("open", "high", "low", "close")}
    config = mf.FeatureConfig(max_gap="1d")
    mf.build(mf.Bars(time=time, **parts), tmp_path / "gap.zarr", config)
    store = mf.open_store(tmp_path / "gap.zarr")
    starts = store.windows(105, 1).starts
    before, after = starts[starts < 450], starts[starts >= 450]
    last = Pictures(store, 105).of(int(before[-1]))
    assert len(last["time"]) - last["before"] == 105
    first = Pictures(store, 105).of(int(after[0]))
    assert first["before"] == min(after[0] - 450, NUM_BEFORE)
    assert first["time"][0] >= int(store.time[450]) // 10**6
    assert all(swing["at"] >= 450 - after[0] for swing in first["swings"])


def test_a_picture_says_where_nothing_was_traded(tmp_path: Path) -> None:
    bars = mf.synth.synthesise(900, seed=5).bars
    minute = 60 * 10**9
    time = bars.time[0] + np.arange(900, dtype=np.int64) * minute
    time[400:] += (LEAST_PAUSE - 1) * minute  # one bar too few to be said
    time[420:] += LEAST_PAUSE * minute
    time[450:] += 49 * 60 * minute
    parts = {name: getattr(bars, name) for name in ("open", "high", "low", "close")}
    mf.build(mf.Bars(time=time, **parts), tmp_path / "pauses.zarr")
    store = mf.open_store(tmp_path / "pauses.zarr")
    asked = [430, 420, 300]
    shown = [Pictures(store, 105).of(bar)["pauses"] for bar in asked]
    week = {"text": "2 d 1 h"}
    assert shown[0] == [{"at": -10, "text": "11 min"}, {"at": 20, **week}]
    assert shown[1] == [{"at": 0, "text": "11 min"}, {"at": 30, **week}]
    assert [pause["at"] for pause in shown[2]] == [120]  # bars after the window are drawn too
