"""A trained run, loaded to predict: strictly, and on the columns that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from moola_features import spec
from moola_features.config import FeatureConfig
from moola_features.engine import transform_windows
from moola_features.store import Store
from moola_features.windows import Windows
from moola_train.config import LoopConfig
from moola_train.devices import full_precision, uses_gpu
from moola_train.errors import ModelError, RunError
from moola_train.memory import enough
from moola_train.mirror import MirrorImage
from moola_train.models import Model
from moola_train.run_data import RunData
from moola_train.runs import WEIGHTS
from moola_train.targets import NO_EXPANSION

BATCH_SIZE = 256

# Settings that decide which bars have features, not what the features of a bar are. After a gap
# the features begin anew, so where gaps are is none of them.
_FREE_SETTINGS = {"warmup_bars"}

Predictions = dict[str, NDArray[Any]]


class Predictor:
    """A trained model that reads windows and says what it sees.

    Parameters
    ----------
    model
        With its weights; it is put into evaluation mode.
    data
        What it was trained on. A model that learnt from windows turned upside down too reads each
        window both ways up, and its outputs are means over the two.
    device
        Where it computes.

    Examples
    --------
    >>> from moola_train.inference import Predictor
    >>> predictor = Predictor.open("runs/first")  # doctest: +SKIP
    >>> found = predictor.predict(store, store.windows(stride=52).starts)  # doctest: +SKIP
    >>> found["type_probability"].shape, found["start"].shape  # doctest: +SKIP
    ((3201, 2), (3201,))
    """

    def __init__(self, model: Model, data: RunData, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.data = data
        self.device = device
        self._mirror = MirrorImage(spec.columns(data.features)) if data.mirrored else None

    @classmethod
    def open(cls, run: str | Path, *, device: str = "auto") -> Self:
        """Load a run's best weights.

        Parameters
        ----------
        run
            Folder that `moola_train.fit.fit` made.
        device
            ``"auto"``, ``"cpu"`` or ``"cuda"``.

        Raises
        ------
        RunError
            No run, one that has not ended yet, or weights that are not its model's.
        """
        data = RunData.read(run)
        model = data.make_model()
        _load_strictly(model, _read_weights(Path(run) / WEIGHTS), Path(run))
        on_gpu = uses_gpu(LoopConfig(device=device))
        return cls(model, data, torch.device("cuda" if on_gpu else "cpu"))

    def predict(
        self, store: Store, starts: ArrayLike, *, batch_size: int = BATCH_SIZE
    ) -> Predictions:
        """Predict windows of a store.

        Parameters
        ----------
        store
            With the columns and feature settings of the training.
        starts
            int64 ``[N]``: first bars of windows of which all bars are valid.
        batch_size
            Windows that are computed at once.

        Returns
        -------
        dict of ndarray
            As :meth:`predict_windows`.

        Raises
        ------
        ModelError
            Other columns or feature settings, starts that are no whole numbers, windows with bars
            that are not valid, or a model of windows that start cold.
        WindowError
            Starts outside the store.
        """
        if not self.data.anchored:
            raise ModelError(
                f"the model was trained on windows from a cold start, those of {store.path} carry "
                "history; give it prices instead"
            )
        self.require_features(store)
        given = np.asarray(starts)
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
            raise ModelError(
                f"starts are {given.dtype} {list(given.shape)}; give whole numbers, [N]"
            )
        first = given.astype(np.int64)
        windows = Windows(store.features, first, self.data.window_length)
        last = first + self.data.window_length - 1
        ends = store.segments[:, 1]
        whole = store.valid[first] & (ends[np.searchsorted(ends, first, side="right")] > last)
        if not whole.all():
            bad = int(np.argmin(whole))
            raise ModelError(
                f"starts[{bad}] = {first[bad]}: that window holds bars of {store.path} that are "
                "not valid or crosses a gap; leave it out"
            )
        return self.predict_windows(windows, batch_size=batch_size)

    def predict_prices(self, ohlc: ArrayLike, *, batch_size: int = BATCH_SIZE) -> Predictions:
        """Predict windows that hold their own prices, float64 ``[N, K, 4]``.

        Raises
        ------
        ModelError
            A model of windows that carry the history before them.
        """
        if self.data.anchored:
            raise ModelError(
                "the model was trained on windows of a store, whose features carry history; give "
                "it a store and the windows' first bars"
            )
        features = transform_windows(ohlc, self.data.features)
        return self.predict_windows(features, batch_size=batch_size)

    @torch.no_grad()
    def predict_windows(
        self, features: Windows | NDArray[np.float32], *, batch_size: int = BATCH_SIZE
    ) -> Predictions:
        """Predict windows by their features.

        Parameters
        ----------
        features
            float32 ``[N, K, F]``, or windows of a table.
        batch_size
            Windows that are computed at once.

        Returns
        -------
        dict of ndarray
            What the heads say, in the order of the windows: ``type_probability`` ``[N, C]``;
            ``start`` and ``end`` int64 ``[N]``, -1 for none; ``span_probability`` ``[N, K]``;
            ``start_probability`` and ``end_probability`` ``[N, K]``; ``countdown`` ``[N, K]`` in
            [0, 1]; and ``expansion_probability`` ``[N]``: one less the probability of the class
            ``none`` where there is one, else that of the bar most probably inside.

        Raises
        ------
        ModelError
            Another number of bars or columns, features that are not finite, or no batch size.
        """
        settings = self.model.settings
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ModelError(f"batch_size is {batch_size!r}; give a whole number from 1")
        if isinstance(features, Windows):
            shape = features.length, features.features.shape[1]
        else:
            shape = features.shape[1:]
        if shape != (settings.window_length, settings.num_features):
            raise ModelError(
                f"windows are {list(shape)}, the model reads "
                f"[{settings.window_length}, {settings.num_features}]; give those"
            )
        with (
            full_precision(),
            enough(
                f"predicting {batch_size} windows at once on {self.device}",
                "give a smaller batch_size, or device='cpu'",
            ),
        ):
            parts = [
                self._predict_batch(features[first : first + batch_size])
                for first in range(0, max(len(features), 1), batch_size)
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _predict_batch(self, features: NDArray[np.float32]) -> Predictions:
        values = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(self.device)
        if not bool(torch.isfinite(values).all()):
            raise ModelError("features hold values that are not finite; leave those windows out")
        outputs = self._outputs(values.transpose(0, 1).contiguous())
        found = {**self.model.decode(outputs), **_edges(outputs)}
        expansion = self._expansion(found)
        if expansion is not None:
            found["expansion_probability"] = expansion
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def _outputs(self, features: Tensor) -> dict[str, Tensor]:
        upright: dict[str, Tensor] = self.model({"features": features})
        if self._mirror is None:
            return upright
        turned = self.model({"features": self._mirror(features)})
        # Halved before they are added: what is masked out is the lowest number there is.
        return {name: upright[name] / 2 + turned[name] / 2 for name in upright}

    def _expansion(self, found: Mapping[str, Tensor]) -> Tensor | None:
        classes = self.data.classes
        if NO_EXPANSION in classes and "type_probability" in found:
            return 1 - found["type_probability"][:, classes.index(NO_EXPANSION)]
        return found["span_probability"].amax(dim=1) if "span_probability" in found else None

    def require_features(self, store: Store) -> None:
        """Refuse a store whose columns are not those of the training, or mean something else."""
        pairs = zip(self.data.columns, store.names, strict=False)
        for position, (ours, theirs) in enumerate(pairs):
            if ours != theirs:
                raise ModelError(
                    f"column {position} of {store.path} is {theirs!r}, the model reads {ours!r}; "
                    "give a store with the columns of its training"
                )
        if len(store.names) != len(self.data.columns):
            raise ModelError(
                f"{store.path} has {len(store.names)} columns, the model reads "
                f"{len(self.data.columns)}; give a store with the columns of its training"
            )
        _require_same_features(self.data.features, store)


def _require_same_features(trained: FeatureConfig, store: Store) -> None:
    for name, wanted in trained.to_dict().items():
        found = getattr(store.config, name)
        same = (
            trained.max_gap_ns == store.config.max_gap_ns if name == "max_gap" else found == wanted
        )
        if not same and name not in _FREE_SETTINGS:
            raise ModelError(
                f"{store.path} was built with {name} = {found!r}, the model was trained with "
                f"{wanted!r}; build a store like that of its training"
            )


def _edges(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "edges" not in outputs:
        return {}
    first, last = outputs["edges"].softmax(dim=1).unbind(dim=2)  # [B, T] each
    return {"start_probability": first, "end_probability": last}


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); let the run end first, or train again"
        ) from error
    except SafetensorError as error:
        raise RunError(f"{path} is no safetensors file ({error}); train again") from error


def _load_strictly(model: Model, weights: Mapping[str, Tensor], run: Path) -> None:
    own = model.state_dict()
    for name in (*own, *weights):
        shapes = [list(part[name].shape) if name in part else None for part in (weights, own)]
        if shapes[0] != shapes[1]:
            raise RunError(
                f"{run}: {name} is {shapes[0]} in {WEIGHTS} and {shapes[1]} in the model; "
                "keep the files of a run together, or train again"
            )
    model.load_state_dict(dict(weights))
