"""What a run was trained on, as its folder keeps it: enough to load it and to judge it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from moola_features.config import FeatureConfig
from moola_features.errors import MoolaError
from moola_features.store import Store
from moola_features.store.checksums import has_checksums
from moola_train.errors import RunError
from moola_train.labels import store_fingerprint
from moola_train.models import Model
from moola_train.presets import ModelSettings
from moola_train.runs import DATA, PATHS

_KINDS: dict[str, tuple[type, ...]] = {
    "labels_sha256": (str,), "split_sha256": (str,), "fold": (int,), "anchored": (bool,),
    "store": (dict, type(None)), "encoder_sha256": (str, type(None)), "classes": (list,),
    "window_length": (int,), "columns": (list,), "features": (dict,), "preset": (str,),
    "settings": (dict,), "mirrored": (bool,), PATHS: (dict,),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run was trained on and what it made of it.

    Attributes
    ----------
    labels_sha256, split_sha256
        Digests of what labels and split say.
    fold
        Fold of the split.
    store
        ``name`` and ``sha256`` of the bars of the store, and ``values_sha256`` of all that it
        holds; None where windows hold their own.
    encoder_sha256
        Of the encoder file that it started from; None without one.
    anchored
        Whether windows stand in a store, so that features carry the history before them.
    classes
        Names of the types, in the order of the model's outputs.
    window_length
        Bars in a window, K.
    columns
        Names of the columns that the model reads, in order.
    features
        The configuration that they were computed by.
    preset, settings
        What the model was called, and what it is made of.
    mirrored
        Whether it learnt from windows turned upside down too, see `moola_train.mirror`.
    paths
        Where ``labels``, ``split`` and ``store`` lay; a run may be judged on copies elsewhere.
    """

    labels_sha256: str
    split_sha256: str
    fold: int
    store: dict[str, str] | None
    encoder_sha256: str | None
    anchored: bool
    classes: tuple[str, ...]
    window_length: int
    columns: tuple[str, ...]
    features: FeatureConfig
    preset: str
    settings: ModelSettings
    mirrored: bool
    paths: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """Return it as the plain JSON types of the run's file."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def read(cls, run: str | Path) -> Self:
        """Read it from a run's folder.

        Raises
        ------
        RunError
            No run of `moola_train.fit.fit`, or one of another version.
        """
        path = Path(run) / DATA
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(
                f"{run} is no run: {DATA} cannot be read ({error.strerror}); give the folder of a "
                "`moola-train fit`"
            ) from error
        except ValueError as error:
            raise RunError(f"{path} is no JSON: {error}; train again") from error
        if not isinstance(values, dict) or "classes" not in values:
            raise RunError(
                f"{run} is no run of `moola-train fit` that can be loaded: {DATA} has no classes; "
                "give another folder, or train again"
            )
        for name, kinds in _KINDS.items():
            if not isinstance(values.get(name), kinds):
                raise RunError(f"{path}: {name} is {values.get(name)!r}; train again")
        if values["store"] is not None and "values_sha256" not in values["store"]:
            raise RunError(f"{path} is of an earlier moola, which kept no digest; train again")
        kept = {name: values[name] for name in _KINDS}
        for name in ("classes", "columns"):
            kept[name] = tuple(map(str, kept[name]))
        try:
            kept["features"] = FeatureConfig.from_dict(kept["features"])
            kept["settings"] = ModelSettings(**kept["settings"])
        except (MoolaError, TypeError) as error:
            raise RunError(f"{path} is of another moola: {error}; train again") from error
        return cls(**kept)

    def make_model(self) -> Model:
        """Build the model, its weights not yet loaded."""
        return Model(self.settings)


def paths_of(**paths: str | Path | None) -> dict[str, str | None]:
    """Where files lie, from the root on, as text.

    Examples
    --------
    >>> paths_of(labels="/data/../labels.parquet", store=None)
    {'labels': '/labels.parquet', 'store': None}
    """
    return {name: None if p is None else str(Path(p).resolve()) for name, p in paths.items()}


def store_data(store: Store) -> dict[str, str]:
    """What a run keeps of its store: see :attr:`RunData.store`.

    Raises
    ------
    RunError
        A store without checksums, which would not show a change.
    """
    if not has_checksums(store.attributes):
        raise RunError(f"{store.path} has no checksums; rebuild it with --force")
    known = store.attributes["checksums"]
    # Attributes say when and by what it was built, too.
    kept = {name: value for name, value in known.items() if name != "attributes"}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return {**store_fingerprint(store), "values_sha256": digest}
