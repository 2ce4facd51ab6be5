"""Pretrain an encoder on windows of a store: from bars without labels to an encoder file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from moola_features import spec
from moola_features.files import require_folder
from moola_features.splits import split_windows
from moola_features.store import Store
from moola_features.times import time_text
from moola_features.windows import Windows
from moola_train.assembly import RunReport, make_loaders, make_model, train
from moola_train.config import require_watch
from moola_train.devices import prepare_device
from moola_train.distributed import ALONE, World
from moola_train.errors import LabelsError, ModelError, RunError
from moola_train.labels import CLASSES, read_labels, store_fingerprint
from moola_train.loop import Outcome, Report
from moola_train.mae import INTERPOLATION, MEAN, MaskedAutoencoder
from moola_train.models import Model
from moola_train.objectives import Objective
from moola_train.outcome import STOPPED
from moola_train.presets import PRESETS, WITHOUT_LABELS
from moola_train.pretrain_config import PretrainConfig
from moola_train.runs import SUMMARY, RunFolder
from moola_train.splits import read_split
from moola_train.transfer import EncoderCard, encoder_path, write_encoder


class PretrainObjective(Objective, Protocol):
    """What pretraining asks of an objective besides what the loop does."""

    model_settings: ClassVar[dict[str, Any]]
    """Heads, and what else its model needs."""

    @classmethod
    def of(cls, windows: Windows, columns: tuple[str, ...], config: PretrainConfig) -> Any:
        """Make it for the windows of the training part."""

    def initialise(self, model: Model) -> None:
        """Let the model start where the floor is."""


OBJECTIVES: dict[str, type[PretrainObjective]] = {"mae": MaskedAutoencoder}


@dataclass(frozen=True)
class TrainingPeriod:
    """The bars that may be read, and what says so.

    Attributes
    ----------
    stop_bar
        The first bar that is not read; None for all bars.
    data
        Digests of the split and its labels; empty without them.
    """

    stop_bar: int | None = None
    data: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        store: Store,
        labels_path: Path,
        split_path: Path,
        fold: int,
        *,
        classes: tuple[str, ...] = CLASSES,
    ) -> TrainingPeriod:
        """Take the period of a split's training part: up to the end of its last window.

        Raises
        ------
        LabelsError
            Labels that hold their own prices, which say nothing about periods of a store.
        SplitError
            A split of other labels, or one that leaks.
        """
        labels = read_labels(labels_path, classes=classes, store=store)
        split = read_split(split_path, labels)
        rows = split.part("train", fold)
        if labels.start_bar is None or len(rows) == 0:
            raise LabelsError(
                f"fold {fold} of {split_path} has no training windows in {store.path}; give a "
                "split of anchored labels"
            )
        stop = int(labels.start_bar[rows].max()) + labels.length
        digests = {
            "labels_sha256": labels.sha256(),
            "split_sha256": split.sha256(),
            "fold": str(fold),
        }
        return cls(stop, digests)


@dataclass(frozen=True)
class PretrainReport(RunReport):
    """What a pretraining run did.

    Attributes
    ----------
    encoder
        The encoder file; None if the run was stopped before it ended.
    """

    encoder: Path | None = None

    @property
    def columns(self) -> list[dict[str, Any]]:
        """Loss of each column at the best validation, beside both floors."""
        metrics = self.outcome.best.get("metrics", {})
        names = [name.partition(".")[2] for name in metrics if name.startswith("loss.")]
        return [
            {
                "column": name,
                **{
                    kind: metrics[f"{kind}.{name}"]["value"]
                    for kind in ("loss", MEAN, INTERPOLATION)
                },
            }
            for name in names
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            **super().to_dict(),
            "encoder": None if self.encoder is None else str(self.encoder),
            "columns": self.columns,
        }


def pretrain(
    store: Store,
    encoder_file: str | Path,
    run_path: str | Path,
    config: PretrainConfig | None = None,
    *,
    period: TrainingPeriod | None = None,
    resume: bool = False,
    report: Report | None = None,
    world: World = ALONE,
) -> PretrainReport:
    """Train an encoder on windows of a store that nobody labelled.

    The last windows in time validate; no bar of theirs, nor of the warm-up behind them, is in a
    window that is trained on.

    Parameters
    ----------
    store
        Where the windows are.
    encoder_file
        Where the encoder goes, ``NAME.safetensors`` with ``NAME.json`` beside: the weights of the
        best validation.
    run_path
        Folder of the run; made, or gone on from with ``resume``.
    config
        Settings; the defaults when None.
    period
        The training period of a split, if the encoder is to be judged by that split; no bar
        after it is read. The whole store when None.
    resume
        Whether to go on from the folder's latest checkpoint, if there is one.
    report
        Called with every record that is logged.
    world
        Which of several processes this is, from `moola_train.distributed.joined`.

    Returns
    -------
    PretrainReport
        How it ended, each column's error beside its floors.

    Raises
    ------
    TrainError
        Settings or a run folder that do not fit, or too few windows; the message says which.
    """
    config, period = config or PretrainConfig(), period or TrainingPeriod()
    kind = OBJECTIVES[config.pretrain.objective]
    _require_own_heads(config.model.preset, kind.model_settings["heads"])
    target = encoder_path(encoder_file)
    require_folder(target.absolute().parent, target)
    device = prepare_device(config.loop, world)
    parts = pretraining_windows(store, config, period.stop_bar)
    loaders = make_loaders(parts, config, device, world=world)
    objective: PretrainObjective = kind.of(parts["train"], store.names, config)
    model = make_model(
        config, len(store.names), window_length=parts["train"].length,
        log_sigmas=config.loss.balance == "kendall", **kind.model_settings,
    )  # fmt: skip
    objective.initialise(model)
    require_watch(config, ("loss", *(f"loss.{name}" for name in store.names)))
    run = RunFolder(run_path, store=store.path, writes=world.writes)
    data = {**_fingerprint(store, parts), **period.data}
    with run.held():
        done = train(
            model, objective, loaders, run, config,
            device=device, data=data, resume=resume, report=report,
            columns=spec.columns(store.config),
        )  # fmt: skip
        ended = done.outcome.status != STOPPED
        if ended and run.writes:
            card = _card(store, config, parts["train"].length, data, done.outcome)
            write_encoder(target, model, card)
        found = PretrainReport(**vars(done), encoder=target if ended else None)
        run.write_json(SUMMARY, found.to_dict())
    return found


def _require_own_heads(preset: str, heads: tuple[str, ...]) -> None:
    """Refuse a preset that learns something else from bars than the objective teaches."""
    if preset not in PRESETS:
        return  # which is said where the model is made
    others = WITHOUT_LABELS.intersection(PRESETS[preset].settings.heads).difference(heads)
    if others:
        raise ModelError(
            f"preset {preset!r} learns {', '.join(sorted(others))}, and the objective teaches "
            f"{', '.join(heads)}; choose jade-mae, or a preset for labels, whose encoder is taken"
        )


def pretraining_windows(
    store: Store, config: PretrainConfig, stop_bar: int | None = None
) -> dict[str, Windows]:
    """Windows to train on and, after them in time, to validate on.

    Parameters
    ----------
    store
        Where they are.
    config
        Their length, stride and the validation part's share.
    stop_bar
        The first bar that is not read; None for all bars.

    Returns
    -------
    dict of Windows
        ``"train"`` and ``"val"``. A window of the second starts more than a window's other bars
        and the features' warm-up after the start of the first part's last one.

    Raises
    ------
    RunError
        A part that is left without windows.
    """
    settings = config.pretrain
    stop = None
    if stop_bar is not None:
        stop = int(store.time[stop_bar - 1]) + 1
    windows = store.windows(settings.window_length, settings.stride, stop=stop)
    purge = windows.length - 1 + store.config.first_valid_index
    shares = {"train": 1.0 - settings.val_share, "val": settings.val_share}
    rows = split_windows(windows.starts, purge, shares)
    for name, chosen in rows.items():
        if len(chosen) == 0:
            raise RunError(
                f"{store.path} has {len(windows)} windows of {windows.length} bars in the training "
                f"period and none is left for {name} after a purge of {purge} bars; give more "
                "bars, lower pretrain.stride, or raise pretrain.val_share"
            )
    return {
        name: Windows(windows.features, windows.starts[chosen], windows.length)
        for name, chosen in rows.items()
    }


def _fingerprint(store: Store, parts: dict[str, Windows]) -> dict[str, str]:
    """What the encoder is trained on: the bars, and the period of them that was read."""
    source = store_fingerprint(store)
    starts: NDArray[np.int64] = np.concatenate([windows.starts for windows in parts.values()])
    last = int(starts.max()) + parts["train"].length - 1
    return {
        "store": source["name"],
        "store_sha256": source["sha256"],
        "first_time": time_text(int(store.time[starts.min()])),
        "last_time": time_text(int(store.time[last])),
    }


def _card(
    store: Store, config: PretrainConfig, length: int, data: dict[str, str], outcome: Outcome
) -> EncoderCard:
    metrics = outcome.best.get("metrics", {})
    return EncoderCard(
        objective=config.pretrain.objective,
        columns=store.names,
        window_length=length,
        warm=True,
        data=data,
        metrics={name: float(metric["value"]) for name, metric in metrics.items()},
    )
