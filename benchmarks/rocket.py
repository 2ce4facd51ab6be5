"""MiniRocket with ridge models, run by a Python that has aeon: `python rocket.py IN OUT SEED`.

An environment of its own, since aeon holds back the NumPy that moola wants. Nothing of moola is
imported: arrays come in a file and go out in one. Per window for the type, and per bar, on the bars
around it, for the span (Dempster, Schmidt and Webb, KDD 2021).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

AROUND = 16  # bars before and behind the one that is judged; spans have up to 20
KERNELS_PER_BAR = 1_000
PENALTIES = np.logspace(-3, 3, 10)
PART = 2_000  # windows or bars that are transformed at a time


def main(source: str, target: str, seed: int) -> None:
    """Read arrays, fit, predict, and write what was found.

    In: ``train`` and ``test`` float32 ``[N, T, F]``; of the training windows ``type`` int64
    ``[N]`` and ``inside`` bool ``[N, T]``; ``chosen`` int64 ``[M]``, positions among all bars of
    the training windows to learn from. Out: ``inside`` ``[N, T]`` and ``type`` ``[N, C]``, shares.
    """
    with np.load(source, allow_pickle=False) as given:
        arrays = {name: given[name] for name in given.files}
    found = {"inside": judge_bars(arrays, seed), "type": judge_windows(arrays, seed)}
    np.savez(target, **found)


def judge_windows(arrays: dict[str, Any], seed: int) -> Any:
    """Type of each test window: 10,000 kernels, a ridge classifier, scores as if they were odds."""
    from aeon.transformations.collection.convolution_based import MiniRocket
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kernels = MiniRocket(random_state=seed, n_jobs=1)
    train = kernels.fit_transform(arrays["train"].transpose(0, 2, 1))
    model = make_pipeline(StandardScaler(with_mean=False), RidgeClassifierCV(PENALTIES))
    model.fit(train, arrays["type"])
    score = model.decision_function(_transformed(kernels, arrays["test"].transpose(0, 2, 1)))
    shares = 1 / (1 + np.exp(-2 * score))
    return np.stack([1 - shares, shares], axis=1)


def judge_bars(arrays: dict[str, Any], seed: int) -> Any:
    """Share of each test bar to lie inside: ridge regression on the 33 bars around it."""
    from aeon.transformations.collection.convolution_based import MiniRocket
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    length, chosen = arrays["train"].shape[1], arrays["chosen"]
    kernels = MiniRocket(KERNELS_PER_BAR, random_state=seed, n_jobs=1)
    around = _around(arrays["train"])[chosen // length, chosen % length]
    model = make_pipeline(StandardScaler(with_mean=False), RidgeCV(PENALTIES))
    model.fit(kernels.fit_transform(around), arrays["inside"].ravel()[chosen].astype(np.float32))
    bars = _around(arrays["test"])
    shares = [model.predict(_transformed(kernels, window)) for window in bars]
    return np.stack(shares)


def _around(windows: Any) -> Any:
    """The bars around each bar, zeros outside the window: [N, T, F] to [N, T, F, 33], a view."""
    padded = np.pad(windows, ((0, 0), (AROUND, AROUND), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1, axis=1)


def _transformed(kernels: Any, series: Any) -> Any:
    parts = (series[first : first + PART] for first in range(0, len(series), PART))
    return np.concatenate([kernels.transform(np.ascontiguousarray(part)) for part in parts])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
