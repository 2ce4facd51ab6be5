"""Where one period of a split ends and the next one begins: by shares, or by dates."""

from __future__ import annotations

import numpy as np

from moola_features.times import TimeLike, parse_time_ns, time_text
from moola_train.errors import ConfigError, SplitError
from moola_train.targets import Int64, LabelledWindows

DEFAULT_SHARE = 0.15

NEVER = int(np.iinfo(np.int64).max // 2)  # a place that no window reaches, with room for a gap


def cuts_by_share(
    places: Int64, folds: int, val_share: float | None, test_share: float | None
) -> list[int]:
    """First place of each validation period, then of the test period.

    Parameters
    ----------
    places
        int64 ``[N]``: where the windows stand.
    folds
        Number of validation periods, side by side.
    val_share, test_share
        Of the windows: one validation period, and the test period; 0.15 when None.

    Raises
    ------
    ConfigError
        A number out of bounds, or shares that leave nothing to train on.

    Examples
    --------
    >>> cuts_by_share(np.arange(0, 1_000, 10), 2, 0.2, 0.1)
    [500, 700, 900]
    """
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 1:
        raise ConfigError(f"folds is {folds!r}; it must be a whole number of at least 1")
    if folds > len(places):
        raise ConfigError(
            f"folds is {folds}, and there are {len(places)} windows; give fewer folds"
        )
    val = DEFAULT_SHARE if val_share is None else val_share
    test = DEFAULT_SHARE if test_share is None else test_share
    if not 0 < val < 1:
        raise ConfigError(f"val_share is {val!r}; it must be above 0 and below 1")
    if not 0 <= test < 1:
        raise ConfigError(f"test_share is {test!r}; it must be at least 0 and below 1")
    taken = folds * val + test
    if taken >= 1:
        raise ConfigError(
            f"{folds} x val_share {val:g} and test_share {test:g} take {taken:.0%} of the windows "
            "and leave none to train on; make them smaller"
        )
    ordered = np.sort(places)
    shares = 1.0 - test - val * np.arange(folds, -1, -1)
    counts = np.rint(shares * len(places)).astype(np.int64)
    return [int(ordered[count]) if count < len(ordered) else NEVER for count in counts]


def cuts_by_time(
    labels: LabelledWindows, places: Int64, val_from: TimeLike | None, test_from: TimeLike | None
) -> list[int]:
    """First place of the validation period, then of the test period.

    Parameters
    ----------
    labels
        Anchored windows.
    places
        int64 ``[N]``: where they stand.
    val_from, test_from
        Times; the periods begin with the first windows that begin then or later. None for no test
        period.

    Raises
    ------
    SplitError
        Windows without times, a period without a window, or periods in reversed order.
    """
    if labels.start_time is None:
        raise SplitError(
            "val_from and test_from are times, and these windows have none; give shares instead"
        )
    if val_from is None:
        raise SplitError("test_from is given without val_from; say where validation begins as well")
    times = [parse_time_ns("val_from", val_from)]
    if test_from is not None:
        times.append(parse_time_ns("test_from", test_from))
        if times[1] <= times[0]:
            raise SplitError(
                f"test_from is {time_text(times[1])}, not after val_from, {time_text(times[0])}; "
                "validation comes before the test"
            )
    cuts = []
    for name, time in zip(("val_from", "test_from"), times, strict=False):
        later = labels.start_time >= time
        if not later.any():
            raise SplitError(
                f"{name} is {time_text(time)}, and the last window begins at "
                f"{time_text(int(labels.start_time.max()))}; give an earlier time"
            )
        cuts.append(int(places[later].min()))
    return cuts if test_from is not None else [*cuts, NEVER]
