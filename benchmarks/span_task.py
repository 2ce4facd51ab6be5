"""The benchmark's fixed protocol: which bars, which windows, which of them to learn from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

import moola_features as mf
from moola_features.bars import Bars
from moola_features.files import replaced_file
from moola_features.store import Store
from moola_features.synth import synthesise
from moola_features.times import TimeLike, parse_time_ns, time_text
from moola_train.evaluation.bootstrap import Draws
from moola_train.hindsight import LABELS, Hindsight, label_windows, window_names
from moola_train.labels import read_labels
from moola_train.rule_floor import rule_spans
from moola_train.splits import Split, forward_chain, write_split
from moola_train.targets import Int64, LabelledWindows, Targets, make_targets

LENGTH = 105
STRIDE = 52
ORIGIN = 21  # bar of the first window: 20 to warm features up, and one that its label looks back at
TYPES = ("consolidation", "retracement")
NONE = "none"

COLUMNS: dict[str, mf.FeatureConfig] = {
    "standard": mf.FeatureConfig(),
    "wide": mf.FeatureConfig.profile("wide"),
    "faithful": mf.FeatureConfig.profile("faithful"),
    "returns": mf.FeatureConfig(family="returns"),
    "wide + context": mf.FeatureConfig.profile("wide", context=True),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Periods and training sizes; one for the real bars, one for synthetic ones.

    Attributes
    ----------
    name
        What rows are called after.
    train_from, dev_from, test_from, stop
        Times; bars before ``train_from`` warm features up.
    sizes
        Labels to train on, and how many different draws of them there are.
    strides
        Bars between the starts of windows that a size is drawn from: 52 where there are enough.
    apart
        Sizes whose windows do not overlap.
    """

    name: str
    train_from: TimeLike
    dev_from: TimeLike
    test_from: TimeLike
    stop: TimeLike
    sizes: dict[int, int]
    strides: dict[int, int]
    apart: tuple[int, ...] = ()


REAL = Protocol(
    name="BTC/USD",
    train_from="2017-01-01",
    dev_from="2019-01-01",
    test_from="2019-03-03",
    stop="2020-01-01",
    sizes={174: 5, 5_000: 1, 20_000: 1},
    strides={174: STRIDE, 5_000: STRIDE, 20_000: 13},
    apart=(174,),
)


def synthetic(num_bars: int) -> tuple[Bars, Protocol]:
    """A small market for a machine without the real bars; its protocol has the same parts."""
    bars = synthesise(num_bars, seed=17).bars
    at = [time_text(int(bars.time[int(share * num_bars)])) for share in (0.02, 0.5, 0.6)]
    stop = time_text(int(bars.time[-1]))
    return bars, Protocol(
        name="synthetic", train_from=at[0], dev_from=at[1], test_from=at[2], stop=stop,
        sizes={60: 1}, strides={60: STRIDE},
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Windows:
    """Labelled windows of one part."""

    begin: Int64
    found: Hindsight

    def __len__(self) -> int:
        return len(self.begin)

    def of(self, *names: str) -> Windows:
        """Those with one of these labels."""
        return self.take(
            np.flatnonzero(np.isin(self.found.label, [LABELS.index(name) for name in names]))
        )

    def take(self, rows: NDArray[Any]) -> Windows:
        """These rows, in their order."""
        return Windows(self.begin[rows], self.found.take(rows))


@dataclass(eq=False)
class Task:
    """Bars with their stores in a folder, and the parts of the protocol.

    Parameters
    ----------
    bars, protocol
        What is learnt from, and how it is divided.
    folder
        Where stores, labels and splits are made.
    other
        Another instrument, to be predicted without having been learnt from.
    """

    bars: Bars
    protocol: Protocol
    folder: Path
    other: Task | None = None
    _stores: dict[str, Store] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        prices = (self.bars.open, self.bars.high, self.bars.low, self.bars.close)
        self.ohlc = np.stack(prices, axis=1)

    def store(self, columns: str) -> Store:
        """The store of a column set, built when first asked for."""
        if columns not in self._stores:
            path = self.folder / f"{columns.replace(' + ', '-')}.zarr"
            mf.build(self.bars, path, COLUMNS[columns])
            opened = mf.open_store(path)
            assert isinstance(opened, Store)
            self._stores[columns] = opened
        return self._stores[columns]

    def windows(self, first: TimeLike, stop: TimeLike, stride: int = STRIDE) -> Windows:
        """Label the windows that lie in a period, on one grid through all bars.

        Those that look at bars of the next period, purge included, are left out.
        """
        ends = (parse_time_ns("from", first), parse_time_ns("to", stop))
        low, high = (int(np.searchsorted(self.bars.time, end)) for end in ends)
        grid = np.arange(ORIGIN, len(self.bars), stride)
        ahead = 2 * LENGTH if high < len(self.bars) else LENGTH
        begin = grid[(grid >= low) & (grid <= high - ahead)]
        return Windows(begin, label_windows(self.bars.time, self.ohlc, begin))

    def training(self, size: int, draw: int) -> Windows:
        """Labels of one draw, of the windows with a type."""
        periods = self.protocol
        pool = self.windows(periods.train_from, periods.dev_from, periods.strides[size]).of(*TYPES)
        order = np.random.default_rng([size, draw]).permutation(len(pool))
        if size in periods.apart:
            order = _apart(pool.begin, order, size)
        if len(order) < size:
            raise ValueError(f"{len(order)} of {len(pool)} windows can be drawn; {size} are asked")
        return pool.take(np.sort(order[:size]))

    def dev(self) -> Windows:
        """The development part's windows with a type."""
        return self.windows(self.protocol.dev_from, self.protocol.test_from).of(*TYPES)

    def test(self) -> Windows:
        """The test part, labels of every kind."""
        return self.windows(self.protocol.test_from, self.protocol.stop)

    def all_windows(self) -> Windows:
        """Every window of the bars, behind the longest warm-up of any columns."""
        begin = np.arange(ORIGIN + 20 * STRIDE, len(self.bars) - LENGTH, STRIDE)
        return Windows(begin, label_windows(self.bars.time, self.ohlc, begin))

    def prices(self, begin: Int64) -> NDArray[np.float64]:
        """Open, high, low and close of windows, float64 [N, 105, 4]."""
        return self.ohlc[begin[:, None] + np.arange(LENGTH)]

    def files(self, name: str, parts: list[Windows], store: Store) -> tuple[Path, Path]:
        """Write labels and a split of the training, development and test windows."""
        labels, split = (self.folder / f"{name}.{end}" for end in ("parquet", "json"))
        begin = np.concatenate([part.begin for part in parts])
        found = Hindsight.joined([part.found for part in parts])
        with replaced_file(labels) as beside:
            _frame(self.bars.time[begin], found).write_parquet(beside)
        windows = read_labels(labels, classes=_classes(parts), store=store)
        made = forward_chain(
            windows, val_from=self.protocol.dev_from, test_from=self.protocol.test_from
        )
        _require_whole(made, parts)
        write_split(made, split)
        return labels, split


def truth_of(windows: Windows) -> Targets:
    """Targets of windows as metrics want them; types are positions in `TYPES`."""
    names = window_names(windows.begin)
    label = windows.found.label.astype(np.int64)
    return make_targets(
        LabelledWindows(
            window_id=tuple(names), base_id=tuple(names), type=np.where(label < 2, label, -1),
            start=windows.found.start, end=windows.found.end, classes=TYPES, length=LENGTH,
        )
    )  # fmt: skip


def days_of(task: Task, windows: Windows) -> Draws:
    """Bootstrap draws of whole UTC days."""
    return Draws.of(task.bars.time[windows.begin] // (86_400 * 10**9))


def rule_confidence(task: Task, windows: Windows) -> NDArray[np.float64]:
    """What the rule orders windows by: its net move in true ranges."""
    return rule_spans(task.prices(windows.begin)).move


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one row to a file of JSON lines, in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _apart(begin: Int64, order: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The first windows of an order that share no bar with one before them."""
    kept: list[int] = []
    for row in order.tolist():
        if len(kept) < size and (np.abs(begin[kept] - begin[row]) >= LENGTH).all():
            kept.append(row)
    return np.array(kept, np.int64)


def _classes(parts: list[Windows]) -> tuple[str, ...]:
    none = any((part.found.label == LABELS.index(NONE)).any() for part in parts)
    return (*TYPES, NONE) if none else TYPES


def _frame(start_time: Int64, found: Hindsight) -> pl.DataFrame:
    spans = {
        f"expansion_{name}": pl.Series(values).set(pl.Series(values < 0), None)
        for name, values in (("start", found.start), ("end", found.end))
    }
    return pl.DataFrame(
        {
            "window_id": window_names(start_time),
            "label": [LABELS[index] for index in found.label.tolist()],
            **spans,
            "start_time": pl.Series(start_time).cast(pl.Datetime("ns", "UTC")),
        }
    )


def _require_whole(split: Split, parts: list[Windows]) -> None:
    """Only the purge may take windows away, a handful at the ends of the periods."""
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        if len(split.part(name, 0)) < len(part) - 20:
            raise ValueError(f"the split has {len(split.part(name, 0))} of {len(part)} in {name}")
