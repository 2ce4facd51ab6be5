"""A run beside the labels, the split and the bars that it was trained on, which must not differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_features.store import Store, open_store
from moola_features.store.checksums import require_intact
from moola_train.errors import RunError, TrainError
from moola_train.inference import Predictions, Predictor
from moola_train.labels import read_labels
from moola_train.run_data import RunData, store_data
from moola_train.splits import Split, read_split
from moola_train.targets import Int64, LabelledWindows, TargetPriors, Targets, make_targets


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A run that is judged, and what it is judged on.

    Attributes
    ----------
    run
        Its folder.
    predictor
        Its model.
    labels, split, store
        As they were in training; no store where windows hold their own prices.
    targets
        Of all windows.
    priors
        Of the training part: what the floors are made of.
    """

    run: Path
    predictor: Predictor
    labels: LabelledWindows
    split: Split
    store: Store | None
    targets: Targets
    priors: TargetPriors

    @property
    def data(self) -> RunData:
        """What the run says of its training."""
        return self.predictor.data

    def rows(self, part: str) -> Int64:
        """Windows of a part of the run's fold."""
        return self.split.part(part, self.data.fold)

    def truth(self, rows: Int64) -> Targets:
        """Targets of some windows."""
        return {name: values[rows] for name, values in self.targets.items()}

    def predict(self, rows: Int64) -> Predictions:
        """What the model says of some windows."""
        if self.store is None:
            assert self.labels.ohlc is not None
            return self.predictor.predict_prices(self.labels.ohlc[rows])
        return self.predictor.predict(self.store, self.start_bars(rows))

    def prices(self, rows: Int64) -> NDArray[np.float64]:
        """Open, high, low, close of some windows, float64 ``[M, K, 4]``."""
        if self.store is None:
            assert self.labels.ohlc is not None
            return self.labels.ohlc[rows]
        bars = self.start_bars(rows)[:, None] + np.arange(self.labels.length)
        return np.asarray(self.store.ohlc[bars])

    def start_bars(self, rows: Int64) -> Int64:
        """First bars of some windows of a store."""
        assert self.labels.start_bar is not None
        return self.labels.start_bar[rows]


def open_subject(
    run: str | Path,
    *,
    store: Store | None = None,
    labels: str | Path | None = None,
    split: str | Path | None = None,
    device: str = "auto",
) -> Subject:
    """Load a run and what it was trained on.

    Parameters
    ----------
    run
        Folder of a finished `moola_train.fit.fit`.
    store, labels, split
        Where these lie now; where they lay in training when None.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    RunError
        No run, or bars, labels or a split that changed since training; the message names which.
    StoreError
        A store of which a file is not what was written.
    TrainError
        Labels or a split that cannot be read, a split that leaks, a store with other columns.
    """
    folder = Path(run)
    predictor = Predictor.open(folder, device=device)
    data = predictor.data
    where = {
        "labels": _path_of("labels", labels, data, folder),
        "split": _path_of("split", split, data, folder),
    }
    bars = _open_store(store, data, folder)
    if bars is not None:
        found, known = store_data(bars), data.store or {}
        _require_unchanged("store", bars.path, found["sha256"], known.get("sha256"), folder)
        predictor.require_features(bars)  # says more of what changed than a digest does
        values = "values_sha256"
        _require_unchanged("store", bars.path, found[values], known.get(values), folder)
        require_intact(bars.path, bars.attributes, len(bars.names))
    with _reading("labels", folder):
        windows = read_labels(
            where["labels"], classes=data.classes, store=bars, window_length=data.window_length
        )
    digest = windows.sha256()
    _require_unchanged("labels", where["labels"], digest, data.labels_sha256, folder)
    with _reading("split", folder):
        parts = read_split(where["split"], windows)
    _require_unchanged("split", where["split"], parts.sha256(), data.split_sha256, folder)
    targets = make_targets(windows)
    priors = TargetPriors.of(targets, windows.classes, parts.part("train", data.fold))
    return Subject(
        run=folder, predictor=predictor, labels=windows, split=parts, store=bars,
        targets=targets, priors=priors,
    )  # fmt: skip


def _path_of(name: str, given: str | Path | None, data: RunData, run: Path) -> Path:
    known = given or data.paths.get(name)
    if known is None or not Path(known).exists():
        raise RunError(
            f"{run} was trained on {name} at {known}, which is not there; put it back, or give "
            f"--{name} with where it is now"
        )
    return Path(known)


def _open_store(given: Store | None, data: RunData, run: Path) -> Store | None:
    if given is not None or not data.anchored:
        return given
    opened: Any = open_store(_path_of("store", None, data, run))
    if not isinstance(opened, Store):
        raise RunError(f"{opened.path} is no longer the store of one instrument; give --store")
    return opened


@contextlib.contextmanager
def _reading(name: str, run: Path) -> Iterator[None]:
    """Say what changed where it can no longer be read: in training it could."""
    try:
        yield
    except TrainError as error:
        raise RunError(f"the {name} changed since {run} was trained: {error}") from error


def _require_unchanged(name: str, path: Path, found: str, known: str | None, run: Path) -> None:
    if found != known:
        raise RunError(
            f"the {name} changed since {run} was trained: {path} has digest {found[:12]}, then it "
            f"was {str(known)[:12]}; give --{name} with those of the training, or train again"
        )
