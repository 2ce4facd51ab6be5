"""What is compared: floors, a rule, gradient boosting, MiniRocket, and our presets."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.span_task import (
    COLUMNS,
    LENGTH,
    NONE,
    TYPES,
    Protocol,
    Task,
    Windows,
    rule_confidence,
    truth_of,
)
from moola_features import Windows as StoreWindows
from moola_features.store import Store
from moola_train.config import RunConfig
from moola_train.crf import single_span
from moola_train.fit import fit
from moola_train.inference import Predictor
from moola_train.rule_floor import RuleFloor
from moola_train.targets import TargetPriors

Arrays = dict[str, NDArray[Any]]

PRESET_OF = {
    "jade-span": "jade-span",
    "jade-compact": "jade-compact",
    "jade-span, none": "jade-span",
}
LAGS = range(-10, 11)  # bars around a bar that boosting reads
ROWS_OF_BOOSTING = 200_000  # bars at most; more take minutes and gain nothing
WINDOWS_OF_ROCKET = 5_000  # at most: its ridge models grow with the cube
BARS_OF_ROCKET = 20_000
ROCKET_PYTHON = "MOOLA_ROCKET_PYTHON"  # variable: the Python of an environment that has aeon
SEEDS = (17, 13, 23, 29)
FEW = 1_000  # labels up to which a schedule counts as one for few

SMALL: dict[str, Any] = {
    "data": {"batch_size": 32},
    "loss": {"balance": "fixed"},
    "optimiser": {"learning_rate": 4e-3, "ema_decay": 0.99, "warmup_epochs": 10.0},
    "augment": {"mirror": 0.5, "shift": 10},
    "loop": {"epochs": 100, "validate_epochs": 100, "device": "cpu", "checkpoint_steps": 100_000},
}
LARGE: dict[str, Any] = {
    "data": {"batch_size": 64},
    "loss": {"balance": "fixed"},
    "optimiser": {"learning_rate": 5e-3, "ema_decay": 0.995, "warmup_epochs": 1.0},
    "augment": {"mirror": 0.5, "shift": 10},
    "loop": {"epochs": 16, "validate_epochs": 16, "device": "cpu", "checkpoint_steps": 100_000},
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a model on a column set, learning from one draw of labels, with one seed."""

    size: int
    draw: int
    seed: int
    columns: str
    model: str

    @property
    def key(self) -> str:
        """Its name among the rows."""
        return f"{self.size}/{self.draw}/{self.seed}/{self.columns}/{self.model}"


@dataclass(frozen=True, eq=False)
class Result:
    """What a model says of the test windows.

    Attributes
    ----------
    predictions
        As ``moola_train.metrics.evaluate`` wants them, of all test windows.
    expansion
        float ``[N]``: what windows are ordered by, those with an expansion first.
    more
        Anything else that belongs into the row.
    other
        Predictions of the other instrument's windows, where there is one.
    """

    predictions: Arrays
    expansion: NDArray[np.floating]
    more: dict[str, Any]
    other: Arrays | None = None


def recipe(job: Job, **loop: Any) -> RunConfig:
    """Settings of one of our presets for so many labels; chosen on the development part."""
    settings = SMALL if job.size <= FEW else LARGE
    return RunConfig.from_dict(
        {
            **settings,
            "model": {"preset": PRESET_OF[job.model]},
            "data": {**settings["data"], "classes": ",".join(_classes(job))},
            "loop": {**settings["loop"], "seed": job.seed, **loop},
        }
    )


def network(task: Task, job: Job, test: Windows) -> Result:
    """Fit one of our presets by ``moola_train.fit`` and predict by its ``Predictor``."""
    store = task.store(job.columns)
    name = job.key.replace("/", "_").replace(" ", "").replace("+", "-").replace(",", "-")
    train = task.training(job.size, job.draw)
    dev = task.dev()
    if job.model.endswith(NONE):
        train, dev = _with_none(task, job, train), _dev_with_none(task)
    parts = [train, dev, test.of(*_classes(job))]
    labels, split = task.files(name, parts, store)
    folder = task.folder / name
    resumed = folder.exists()
    done = fit(store, labels, split, folder, recipe(job), resume=resumed)
    if done.outcome.status == "stopped":  # half a run is no row
        raise KeyboardInterrupt
    predictor = Predictor.open(folder, device="cpu")
    found = predictor.predict(store, test.begin)
    other = None
    if task.other is not None:
        begin = task.other.all_windows().of(*TYPES).begin
        other = _kept(predictor.predict(task.other.store(job.columns), begin))
    shutil.rmtree(folder)
    for file in (labels, split):
        file.unlink()
    inside = found["span_probability"].max(axis=1) if "span_probability" in found else None
    expansion = found.get("expansion_probability", inside)
    assert expansion is not None
    more = {"parameters": done.num_parameters, "steps": done.outcome.step, **done.parts}
    if resumed:
        more["seconds"] = None  # nobody knows how long the first start took
    return Result(_kept(found), expansion, more, other)


def _kept(found: Arrays) -> Arrays:
    """Span and type, without the class of windows that have neither."""
    shares = found["type_probability"][:, : len(TYPES)]
    return {"type_probability": shares, "start": found["start"], "end": found["end"]}


def _classes(job: Job) -> tuple[str, ...]:
    return (*TYPES, NONE) if job.model.endswith(NONE) else TYPES


def _with_none(task: Task, job: Job, train: Windows) -> Windows:
    """As many windows without an expansion again, drawn alike."""
    periods = task.protocol
    stride = periods.strides[job.size]
    pool = task.windows(periods.train_from, periods.dev_from, stride).of(NONE)
    rows = np.random.default_rng([job.size, job.draw, 1]).permutation(len(pool))[: len(train)]
    return _joined(train, pool.take(np.sort(rows)))


def _dev_with_none(task: Task) -> Windows:
    return task.windows(task.protocol.dev_from, task.protocol.test_from).of(*TYPES, NONE)


def _joined(*parts: Windows) -> Windows:
    begin = np.concatenate([part.begin for part in parts])
    found = type(parts[0].found).joined([part.found for part in parts])
    return Windows(begin, found).take(np.argsort(begin, kind="stable"))


def constant(task: Task, job: Job, test: Windows) -> Result:
    """The majority class and the best constant span of the training part."""
    priors = TargetPriors.of(truth_of(task.training(job.size, job.draw)), TYPES)
    first, last = priors.best.iou_span
    count = len(test)
    return Result(
        {
            "start": np.full(count, first),
            "end": np.full(count, last),
            "type_probability": np.tile(priors.class_shares, (count, 1)),
        },
        np.zeros(count),
        {},
    )


def every_bar(task: Task, job: Job, test: Windows) -> Result:
    """Every bar marked; types by their frequency."""
    found = constant(task, job, test)
    found.predictions["start"][:], found.predictions["end"][:] = 0, LENGTH - 1
    return found


def rule(task: Task, job: Job, test: Windows) -> Result:
    """The run of 8 bars with the largest net move; one threshold fitted to the types."""
    train = task.training(job.size, job.draw)
    truth = truth_of(train)
    floor = RuleFloor.fit(task.prices(train.begin), truth["type"], truth["start"], len(TYPES))
    return Result(
        floor.predict(task.prices(test.begin)), rule_confidence(task, test),
        {"threshold": floor.threshold},
    )  # fmt: skip


def boosting(task: Task, job: Job, test: Windows) -> Result:
    """Histogram gradient boosting: per bar for the span, per window for the type."""
    from sklearn.ensemble import HistGradientBoostingClassifier as Boosting

    store, random = task.store(job.columns), np.random.default_rng(job.seed)
    train = task.training(job.size, job.draw)
    truth = truth_of(train)
    inside = truth["span"].ravel() > 0
    chosen = np.sort(random.permutation(len(inside))[:ROWS_OF_BOOSTING])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        per_bar = Boosting(random_state=job.seed)
        per_bar.fit(_bars(store, train.begin, chosen), inside[chosen])
        start, end, log_odds = _decode(per_bar, store, test.begin)
        per_window = Boosting(random_state=job.seed)
        per_window.fit(_summary(store, train.begin, truth["start"]), truth["type"])
        shares = per_window.predict_proba(_summary(store, test.begin, start))
    expansion = log_odds.max(axis=1)
    found = {"start": start, "end": end, "type_probability": shares}
    return Result(found, expansion, {"train": len(train)})


def rocket(task: Task, job: Job, test: Windows) -> Result:
    """MiniRocket in an environment of its own: per bar for the span, per window for the type."""
    store, random = task.store(job.columns), np.random.default_rng(job.seed)
    train = task.training(job.size, job.draw)
    train = train.take(np.sort(random.permutation(len(train))[:WINDOWS_OF_ROCKET]))
    truth = truth_of(train)
    inside = truth["span"] > 0
    chosen = np.sort(random.permutation(inside.size)[:BARS_OF_ROCKET])
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npz"
        np.savez(
            given, train=_values(store, train.begin), test=_values(store, test.begin),
            type=truth["type"], inside=inside, chosen=chosen,
        )  # fmt: skip
        script = Path(__file__).with_name("rocket.py")
        command = [os.environ[ROCKET_PYTHON], str(script), str(given), str(made), str(job.seed)]
        subprocess.run(command, check=True, env={**os.environ, "NUMBA_NUM_THREADS": "1"})
        with np.load(made, allow_pickle=False) as found:
            share, shares = np.clip(found["inside"], 0.001, 0.999), found["type"]
    odds = np.log(share / (1 - share))
    start, end = _best_span(odds)
    predictions = {"start": start, "end": end, "type_probability": shares}
    return Result(predictions, odds.max(axis=1), {"train": len(train)})


def _values(store: Store, begin: NDArray[np.int64]) -> NDArray[np.float32]:
    return StoreWindows(store.features, begin, LENGTH).gather(np.arange(len(begin)))


def _bars(store: Store, begin: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Columns of chosen bars and of those around them within the window, 0 outside it."""
    window, position = chosen // LENGTH, chosen % LENGTH
    parts = []
    for lag in LAGS:
        at = np.clip(position + lag, 0, LENGTH - 1)
        within = ((position + lag) == at)[:, None]
        parts.append(np.where(within, store.features[begin[window] + at], 0))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _decode(
    model: Any, store: Store, begin: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The most probable single span of each window, by log-odds of its bars."""
    parts = [begin[first : first + 500] for first in range(0, len(begin), 500)]
    rows = (_bars(store, part, np.arange(LENGTH * len(part))) for part in parts)
    odds = np.concatenate([model.decision_function(part) for part in rows]).reshape(-1, LENGTH)
    return *_best_span(odds), odds


def _best_span(odds: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # At a half of its highest bar's chance, so that every window gets a span.
    level = np.minimum(odds.max(axis=1, keepdims=True) - 1.0, 0.0)
    emissions = torch.zeros(*odds.shape, 2, dtype=torch.float64)
    emissions[:, :, 1] = torch.from_numpy(odds - level)
    flat = torch.zeros(2, dtype=torch.float64)
    start, end = single_span(emissions, torch.zeros(2, 2, dtype=torch.float64), flat, flat)
    return start.numpy(), end.numpy()


def _summary(
    store: Store, begin: NDArray[np.int64], start: NDArray[np.int64]
) -> NDArray[np.float32]:
    """A window in few numbers: moments of its columns, and the bars around the span's start."""
    values = _values(store, begin)
    around = np.clip(start[:, None] + np.arange(-16, 4), 0, LENGTH - 1)
    near = np.take_along_axis(values, around[:, :, None], axis=1)
    before = near[:, :16]
    return np.concatenate(
        [
            values.mean(1), values.std(1), values.min(1), values.max(1),
            before.mean(1), before.std(1), before.min(1), before.max(1),
            near.reshape(len(begin), -1),
        ],
        axis=1,
    )  # fmt: skip


MODELS: dict[str, Callable[[Task, Job, Windows], Result]] = {
    "constant span, majority": constant,
    "every bar": every_bar,
    "rule": rule,
    "boosting": boosting,
    "MiniRocket": rocket,
    "jade-compact": network,
    "jade-span": network,
    "jade-span, none": network,
}
NEEDS_NO_COLUMNS = ("constant span, majority", "every bar", "rule")


def jobs_of(protocol: Protocol) -> Iterator[Job]:
    """All runs, the most telling first; none twice."""
    seen = set()
    for job in _jobs(protocol):
        if job.key not in seen:
            seen.add(job.key)
            yield job


def _jobs(protocol: Protocol) -> Iterator[Job]:
    sizes = list(protocol.sizes.items())
    first = SEEDS[0]

    def each(
        models: tuple[str, ...], columns: tuple[str, ...], chosen: Any, seeds: tuple[int, ...]
    ) -> Iterator[Job]:
        for (size, draws), seed, name, model in itertools.product(chosen, seeds, columns, models):
            for draw in range(draws):
                yield Job(size=size, draw=draw, seed=seed, columns=name, model=model)

    few, many = sizes[:1], sizes[1:]
    every, best = tuple(COLUMNS), ("wide + context", "wide")
    yield from each(NEEDS_NO_COLUMNS, ("-",), sizes, (first,))
    yield from each(("jade-span",), best[:1], sizes[::-1], (first,))
    yield from each(("jade-span",), best[1:], sizes[::-1], (first,))
    yield from each(("jade-span",), every, few, (first,))
    yield from each(("boosting",), best, sizes, (first,))
    yield from each(("MiniRocket",), best[:1], sizes, (first,))
    yield from each(("jade-span, none",), best[:1], sizes, (first,))
    yield from each(("jade-compact",), best, sizes, (first,))
    yield from each(("jade-span",), every, many, (first,))
    yield from each(("jade-compact", "boosting"), every, sizes, (first,))
    yield from each(("jade-span", "jade-compact"), every, sizes, SEEDS[1:])
