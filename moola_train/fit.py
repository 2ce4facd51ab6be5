"""Fit a preset to labelled windows: from files to a run folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moola_features import spec, transform_windows
from moola_features.config import FeatureConfig
from moola_features.store import Store
from moola_features.windows import Windows
from moola_train.assembly import RunReport, make_loaders, make_model, train, write_weights
from moola_train.config import RunConfig, require_watch
from moola_train.devices import prepare_device
from moola_train.distributed import ALONE, World
from moola_train.errors import ConfigError, LabelsError, ModelError
from moola_train.labels import read_labels, require_members
from moola_train.loop import Report
from moola_train.metrics import evaluate
from moola_train.models import Model
from moola_train.objectives import Supervised
from moola_train.order import inverse_class_counts
from moola_train.outcome import STOPPED
from moola_train.presets import PRESETS, WITHOUT_LABELS
from moola_train.run_data import RunData, paths_of, store_data
from moola_train.runs import SUMMARY, RunFolder
from moola_train.shift import with_room
from moola_train.splits import read_split
from moola_train.targets import (
    Int64,
    LabelledWindows,
    TargetPriors,
    Targets,
    are_labelled,
    make_targets,
)
from moola_train.transfer import TransferReport, check_card, read_encoder, transfer

FeaturesOf = Callable[[Int64], Windows | NDArray[np.float32]]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitReport(RunReport):
    """What a fit did.

    Attributes
    ----------
    transfer
        What became of each tensor of the encoder file; None without one.
    """

    transfer: TransferReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        moved = None if self.transfer is None else dataclasses.asdict(self.transfer)
        return {**super().to_dict(), "transfer": moved}


def fit(
    store: Store | None,
    labels_path: str | Path,
    split_path: str | Path,
    run_path: str | Path,
    config: RunConfig | None = None,
    *,
    fold: int = 0,
    encoder: str | Path | None = None,
    feature_config: FeatureConfig | None = None,
    resume: bool = False,
    report: Report | None = None,
    world: World = ALONE,
) -> FitReport:
    """Train a preset on the training part of a split and validate it on the validation part.

    The test part is never read.

    Parameters
    ----------
    store
        Where anchored labels point; None for labels that hold their own prices.
    labels_path, split_path
        Labels and the split that was made of them.
    run_path
        Folder of the run; made, or gone on from with ``resume``.
    config
        Settings; the defaults when None.
    fold
        Fold of the split.
    encoder
        Encoder file to start from, which `moola_train.pretrain.pretrain` wrote; its tensors must
        fit the preset's encoder, and its columns be those of this run.
    feature_config
        What to compute of windows that hold their own prices; a store brings its own.
    resume
        Whether to go on from the folder's latest checkpoint, if there is one.
    report
        Called with every record that is logged.
    world
        Which of several processes this is, from `moola_train.distributed.joined`; the first one
        writes, and each takes its share of every joint batch.

    Returns
    -------
    FitReport
        How it ended, metrics beside their floors.

    Raises
    ------
    TrainError
        Labels, a split, settings, an encoder or a run folder that do not fit; the message says
        which.
    """
    config = config or RunConfig()
    device = prepare_device(config.loop, world)
    labels = read_labels(labels_path, classes=config.data.class_names, store=store)
    split = read_split(split_path, labels)
    parts = {name: split.part(name, fold) for name in ("train", "val")}
    require_members(labels, parts["train"])
    targets = make_targets(labels)
    if not are_labelled(_of_rows(targets, parts["val"])).any():
        raise LabelsError(
            f"none of the {len(parts['val'])} windows of the validation part is labelled, so "
            "nothing would tell one epoch from another; label some"
        )
    priors = TargetPriors.of(targets, labels.classes, parts["train"])
    feature_config = (
        store.config if store is not None else FeatureConfig.or_standard(feature_config)
    )
    features_of, columns = _features(labels, store, feature_config)
    types = targets["type"][parts["train"]]
    windows = {name: features_of(rows) for name, rows in parts.items()}
    learnt = {name: _of_rows(targets, rows) for name, rows in parts.items()}
    if config.augment.shift:
        windows["train"], room = _with_room(labels, store, parts["train"], config.augment.shift)
        learnt["train"] |= room
    loaders = make_loaders(
        windows, config, device, targets=learnt,
        weights=inverse_class_counts(types) if config.data.balanced else None, world=world,
    )  # fmt: skip
    _require_labelled_heads(config.model.preset)
    model = make_model(config, len(columns), num_classes=len(priors.classes))
    model.initialise(priors)
    if config.loop.watch != "loss":
        require_watch(config, _scored(model, learnt["val"], priors))
    moved, encoder_sha256 = None, None
    if encoder is not None:
        moved, encoder_sha256 = _transfer(model, encoder, columns, labels)
    read_from = None if store is None else store.path
    run = RunFolder(run_path, store=read_from, writes=world.writes)
    data = RunData(
        labels_sha256=labels.sha256(),
        split_sha256=split.sha256(),
        fold=fold,
        store=store_data(store) if store is not None else None,
        encoder_sha256=encoder_sha256,
        anchored=labels.anchored,
        classes=labels.classes,
        window_length=labels.length,
        columns=columns,
        features=feature_config,
        preset=config.model.preset,
        settings=model.settings,
        mirrored=config.augment.mirror > 0,
        paths=paths_of(
            labels=labels_path, split=split_path, store=store.path if store is not None else None
        ),
    ).to_dict()
    with run.held():
        done = train(
            model, Supervised(priors), loaders, run, config,
            device=device, data=data, resume=resume, report=report,
            columns=spec.columns(feature_config),
        )  # fmt: skip
        found = FitReport(**vars(done), transfer=moved)
        run.write_json(SUMMARY, found.to_dict())
        # Nothing has measured those of a run that was stopped before its first validation.
        if found.outcome.status != STOPPED or found.outcome.best:
            write_weights(model, run)
    return found


def _of_rows(targets: Targets, rows: Int64) -> Targets:
    return {name: values[rows] for name, values in targets.items()}


@torch.no_grad()
def _scored(model: Model, truth: Targets, priors: TargetPriors) -> tuple[str, ...]:
    """Metrics that a validation will have and that say which of two epochs is better."""
    settings = model.settings
    nothing = torch.zeros(settings.window_length, 1, settings.num_features)  # [T, B, F]
    found = model.eval().decode(model({"features": nothing}))
    model.train()
    count = len(truth["type"])
    guesses = {name: np.repeat(values.numpy(), count, axis=0) for name, values in found.items()}
    scores = evaluate(guesses, truth, priors)
    return ("loss", *(name for name, metric in scores.items() if metric.better is not None))


def _with_room(
    labels: LabelledWindows, store: Store | None, rows: Int64, reach: int
) -> tuple[Windows, Targets]:
    """Windows of the training part with bars around them, to be shifted in."""
    if store is None or labels.start_bar is None:
        raise ConfigError(
            f"augment.shift is {reach}, but windows that hold their own prices have no bars around "
            "them; set augment.shift = 0"
        )
    return with_room(
        store, labels.start_bar[rows], labels.start[rows], labels.end[rows],
        length=labels.length, reach=reach,
    )  # fmt: skip


def _transfer(
    model: Model, path: str | Path, columns: tuple[str, ...], labels: LabelledWindows
) -> tuple[TransferReport, str]:
    """Load an encoder file into the model; what was done, and the file's digest."""
    tensors, card = read_encoder(path)
    check_card(card, columns=columns, warm=labels.anchored, length=labels.length)
    found = transfer(model, tensors)
    for line in found.lines():
        _logger.info("%s", line)
    return found, card.weights_sha256


def _require_labelled_heads(preset: str) -> None:
    """Refuse a preset that learns from bars: labels hold nothing for its heads."""
    others = {name: WITHOUT_LABELS.intersection(p.settings.heads) for name, p in PRESETS.items()}
    if bad := others.get(preset):
        fitting = [name for name, heads in others.items() if not heads]
        raise ModelError(
            f"preset {preset!r} is for pretraining, labels say nothing of {', '.join(sorted(bad))};"
            f" choose one of {', '.join(fitting)}"
        )


def _features(
    labels: LabelledWindows, store: Store | None, config: FeatureConfig
) -> tuple[FeaturesOf, tuple[str, ...]]:
    """Return a function from rows of the labels to what a loader reads, and its columns."""
    if store is None:
        if labels.ohlc is None:
            raise LabelsError("the labels point into a store; give the store as well")
        windows = transform_windows(labels.ohlc, config)
        return lambda rows: np.ascontiguousarray(windows[rows]), config.names
    assert labels.start_bar is not None
    bars = labels.start_bar[:, None] + np.arange(labels.length)
    bad = np.flatnonzero(~store.valid[bars].all(axis=1))
    if len(bad):
        raise LabelsError(
            f"window {labels.window_id[bad[0]]!r} holds bars that are not valid in {store.path}, "
            f"as do {len(bad) - 1} more; leave them out, or build with fewer warmup_bars"
        )
    starts = labels.start_bar
    return lambda rows: Windows(store.features, starts[rows], labels.length), store.names
