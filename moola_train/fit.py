"""Fit a preset to labelled windows: from files to a run folder."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moola_features import transform_windows
from moola_features.config import FeatureConfig
from moola_features.store import Store
from moola_features.windows import Windows
from moola_train.balance import make_balance
from moola_train.config import RunConfig
from moola_train.devices import prepare_device
from moola_train.errors import LabelsError
from moola_train.labels import read_labels, require_members
from moola_train.loaders import WindowLoader
from moola_train.loop import Loop, Outcome, Report
from moola_train.models import Model, build
from moola_train.objectives import Supervised
from moola_train.order import BatchOrder, inverse_class_counts
from moola_train.runs import SUMMARY, WEIGHTS, RunFolder
from moola_train.splits import read_split
from moola_train.targets import LabelledWindows, TargetPriors, make_targets

VALIDATION_BATCH = 256


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes
    ----------
    run
        The run's folder.
    outcome
        How it ended, with the watched metric at its best beside the floors.
    num_parameters
        Trainable parameters of the model.
    parts
        Windows in the training and the validation part.
    """

    run: Path
    outcome: Outcome
    num_parameters: int
    parts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "run": str(self.run),
            **dataclasses.asdict(self.outcome),
            "num_parameters": self.num_parameters,
            "parts": self.parts,
        }


def fit(
    store: Store | None,
    labels_path: str | Path,
    split_path: str | Path,
    run_path: str | Path,
    config: RunConfig | None = None,
    *,
    fold: int = 0,
    feature_config: FeatureConfig | None = None,
    resume: bool = False,
    report: Report | None = None,
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
    feature_config
        What to compute of windows that hold their own prices; a store brings its own.
    resume
        Whether to go on from the folder's latest checkpoint, if there is one.
    report
        Called with every record that is logged.

    Returns
    -------
    FitReport
        How it ended, metrics beside their floors.

    Raises
    ------
    TrainError
        Labels, a split, settings or a run folder that do not fit; the message says which.
    """
    config = config or RunConfig()
    device = prepare_device(config.loop)
    labels = read_labels(labels_path, store=store)
    split = read_split(split_path, labels)
    parts = {name: split.part(name, fold) for name in ("train", "val")}
    require_members(labels, parts["train"])
    targets = make_targets(labels)
    priors = TargetPriors.of(targets, labels.classes, parts["train"])
    features = _features(labels, store, feature_config or FeatureConfig())
    loaders = {
        name: WindowLoader(
            features(rows),
            _order(name, targets["type"][rows], config),
            device=device,
            placement=config.data.placement,
            targets={key: values[rows] for key, values in targets.items()},
        )
        for name, rows in parts.items()
    }
    num_features = len(store.names if store else (feature_config or FeatureConfig()).names)
    model = _model(config, num_features, priors).to(device)
    balance = make_balance(config.loss.balance, model.heads, log_sigmas=model.log_sigmas)
    run = RunFolder(run_path)
    data = {
        "labels_sha256": labels.sha256(),
        "split_sha256": hashlib.sha256(Path(split_path).read_bytes()).hexdigest(),
        "fold": fold,
        "store": labels.store,
    }
    run.begin(config, data, resume=resume)
    loop = Loop(
        model=model, objective=Supervised(priors), balance=balance.to(device),
        train=loaders["train"], validation=loaders["val"],
        config=config, run=run, device=device, report=report,
    )  # fmt: skip
    if resume:
        loop.resume()
    outcome = loop.run()
    found = FitReport(
        run=run.path,
        outcome=outcome,
        num_parameters=model.num_parameters,
        parts={name: len(rows) for name, rows in parts.items()},
    )
    run.write_json(SUMMARY, found.to_dict())
    _write_weights(model, run)
    return found


def _features(labels: LabelledWindows, store: Store | None, config: FeatureConfig) -> Any:
    """Return a function from rows of the labels to what a loader reads."""
    if store is None:
        if labels.ohlc is None:
            raise LabelsError("the labels point into a store; give the store as well")
        windows = transform_windows(labels.ohlc, config)
        return lambda rows: np.ascontiguousarray(windows[rows])
    assert labels.start_bar is not None
    bars = labels.start_bar[:, None] + np.arange(labels.length)
    bad = np.flatnonzero(~store.valid[bars].all(axis=1))
    if len(bad):
        raise LabelsError(
            f"window {labels.window_id[bad[0]]!r} holds bars that are not valid in {store.path}, "
            f"as do {len(bad) - 1} more; leave them out, or build with fewer warmup_bars"
        )
    starts = labels.start_bar
    return lambda rows: Windows(store.features, starts[rows], labels.length)


def _order(part: str, types: NDArray[np.int64], config: RunConfig) -> BatchOrder:
    seed = config.loop.seed
    if part == "val":
        size = min(VALIDATION_BATCH, len(types))
        return BatchOrder(len(types), size, seed=seed, shuffle=False, drop_last=False)
    return BatchOrder(
        len(types),
        min(config.data.batch_size, len(types)),
        seed=seed,
        weights=inverse_class_counts(types) if config.data.balanced else None,
    )


def _model(config: RunConfig, num_features: int, priors: TargetPriors) -> Model:
    asked = {
        "hidden_size": config.model.hidden,
        "num_layers": config.model.layers,
        "input_dropout": config.model.input_dropout,
        "head_dropout": config.model.head_dropout,
    }
    overrides = {name: value for name, value in asked.items() if value is not None}
    if config.model.recurrent_dropout:
        overrides["recurrent_dropout"] = config.model.recurrent_dropout
    if config.model.position:
        overrides["position"] = True
    if config.loss.type_loss == "focal":
        overrides["focal_gamma"] = config.loss.focal_gamma
    if config.loss.balance != "kendall":
        overrides["log_sigmas"] = False
    torch.manual_seed(config.loop.seed)
    model = build(
        config.model.preset,
        num_features=num_features, num_classes=len(priors.classes), **overrides,
    )  # fmt: skip
    model.initialise(priors)
    return model


def _write_weights(model: Model, run: RunFolder) -> None:
    from safetensors.torch import save

    if run.writes:
        from moola_features.files import replaced_file

        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        with replaced_file(run.file(WEIGHTS)) as beside:
            beside.write_bytes(save({k: v.contiguous() for k, v in weights.items()}))
