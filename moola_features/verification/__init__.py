"""Checks of a store: it is computed again, held against the laws, and against its bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moola_features.bars.checks import ON_BAD_BARS
from moola_features.bars.sources import BarSource, open_source
from moola_features.errors import BarsError, StoreError
from moola_features.remote.objects import require_local
from moola_features.store import Store, Universe, open_store
from moola_features.store.checksums import has_checksums, require_attributes, require_intact
from moola_features.verification.agreement import Agreement, compare_bars
from moola_features.verification.laws import Differences, check_local, check_scale
from moola_features.verification.sweep import ColumnValues, Sweep, first_difference

MIN_VALID_SHARE = 0.90  # of the bars behind their segments' warm-up
MIN_DENSITY = 0.50  # share of all values that are not 0

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Check:
    """One check and what came of it.

    Attributes
    ----------
    name
        What was checked; in a universe with the symbol before it.
    passed
        None where it was not asked for.
    detail
        One line: what was found, and where.
    numbers
        The counts and shares behind it.
    """

    name: str
    passed: bool | None
    detail: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Verification:
    """Everything that was found out about a store.

    Attributes
    ----------
    path
        The store.
    checks
        One after the other.
    columns
        What the stored values of each column are like.
    """

    path: Path
    checks: tuple[Check, ...]
    columns: tuple[ColumnValues, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "path": str(self.path),
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
            "columns": [column.to_dict() for column in self.columns],
        }


def verify(
    path: str | Path,
    against: Any = None,
    *,
    column_map: Mapping[str, str] | None = None,
    seed: int = 17,
    progress: Progress | None = None,
) -> Verification:
    """Check a store, or every store of a universe.

    Every bar is computed again and compared to the bit. At places drawn from ``seed`` it is
    shown that values depend on no later bar, on no other segment, and not on the scale of
    prices. Memory does not grow with the store.

    Two checks tell whether there is enough to learn from: more than 0.90 of the bars must be valid,
    not counting the warm-up of each segment that is longer than that, and more than 0.50 of all
    values must not be 0.

    Parameters
    ----------
    path
        Folder that ``build`` made.
    against
        The bars that it was built from, anything that :func:`read_bars` takes: their SHA-256,
        times and prices must be the store's. None does not ask. The instruments of a universe
        that was built of several files are verified one by one, each against its own.
    column_map
        As for ``build``: column by field where names in ``against`` are not recognised.
    seed
        Draws the sampled places.
    progress
        Called with bars done and bars in all.

    Returns
    -------
    Verification
        ``passed``, the checks and a table of the columns.

    Raises
    ------
    StoreNotFoundError, StoreError
        A store that cannot be opened, or an address; the message says what is wrong with it.
    BarsError, BarsNotFoundError
        Bars to hold it against that cannot be opened, or are of one instrument of many.

    Examples
    --------
    >>> import tempfile
    >>> import moola_features as mf
    >>> bars = mf.synthesise(2_000).bars
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = mf.build(bars, f"{folder}/bars.zarr")
    ...     mf.verify(report.path, bars).passed
    True
    """
    require_local(path, "verify")
    opened = open_store(path)
    stores = _by_symbol(opened)
    if against is not None:
        _require_one_input(opened, stores)
    source = None if against is None else _open_like(stores, against, column_map)
    advance = _advancer(stores, progress, num_passes=1 if source is None else 2)
    checks: dict[str | None, list[Check]] = {}
    if isinstance(opened, Universe):
        checks[None] = [_listed(opened)]
    columns: list[ColumnValues] = []
    for symbol, store in stores.items():
        rng = np.random.default_rng(seed)
        sweep = Sweep(store, rng, advance)
        checks[symbol] = [
            _intact(store), *_recounted(sweep), *_laws(sweep, rng), *_gates(sweep)
        ]  # fmt: skip
        columns += [replace(column, name=_named(symbol, column.name)) for column in sweep.columns]
    for symbol, found in _input(stores, source, advance).items():
        checks.setdefault(symbol, []).extend(found)
    return Verification(
        path=opened.path,
        checks=tuple(
            replace(check, name=_named(symbol, check.name))
            for symbol, found in checks.items()
            for check in found
        ),
        columns=tuple(columns),
    )


def _by_symbol(opened: Store | Universe) -> dict[str | None, Store]:
    if isinstance(opened, Store):
        return {opened.attributes.get("symbol"): opened}
    return dict(opened.items())


def _require_one_input(opened: Store | Universe, stores: Mapping[str | None, Store]) -> None:
    """Refuse to hold a universe of several files against one of them: the others would all fail."""
    inputs = {symbol: _told_of_input(store, "source") for symbol, store in stores.items()}
    if len(set(map(str, inputs.values()))) > 1:
        symbol, name = next(iter(inputs.items()))
        raise BarsError(
            f"{opened.path} was built of several files; verify its instruments one by one, each "
            f"against its own, such as {stores[symbol].path} against {name}"
        )


def _listed(universe: Universe) -> Check:
    """Check that what a universe says of itself is what was written."""
    words = f"{len(universe):,} instruments are listed as was written"
    if not has_checksums(universe.attributes):
        return Check("instruments", None, "the universe tells no checksum, an older moola's", {})
    try:
        require_attributes(universe.path, universe.attributes)
    except StoreError as error:
        return _check("instruments", str(error), "")
    return _check("instruments", "", words, num_instruments=len(universe))


def _intact(store: Store) -> Check:
    """Check that files are what was written."""
    if not has_checksums(store.attributes):
        return Check("checksums", None, "the store tells none, an older moola made it", {})
    try:
        num_files = require_intact(store.path, store.attributes, len(store.names))
    except StoreError as error:
        return _check("checksums", str(error), "")
    return _check("checksums", "", f"{num_files:,} files are what was written", num_files=num_files)


def _recounted(sweep: Sweep) -> list[Check]:
    """Checks of whatever one pass over the bars tells again."""
    store, attributes = sweep.store, sweep.store.attributes
    faults = sweep.bars.dropped
    bad_bars = f"{faults}; the first: {faults.examples[0].detail}" if faults.total else ""
    same_segments = np.array_equal(store.segments, sweep.segments)
    state = first_difference(attributes.get("state"), sweep.state)
    registry = [_bounds(column.to_dict()) for column in sweep.columns]
    counted = {**sweep.counted, "features": registry}
    told = {name: attributes.get(name) for name in sweep.counted}
    features = attributes.get("features")
    told["features"] = [_bounds(x) for x in features] if isinstance(features, list) else features
    attribute = first_difference(told, counted)
    return [
        _check(
            "bars",
            bad_bars,
            f"{len(store):,} bars: times increase, prices are finite and in order",
            num_bars=len(store), num_bad=faults.total,
        ),
        _check(
            "segments",
            "" if same_segments else _first_segment(store, sweep),
            f"{len(sweep.segments):,}, as times and max_gap {store.config.max_gap} make them",
            num_segments=len(sweep.segments),
        ),
        _compared("recompute", sweep.recomputed, "computed again, the same bits"),
        _check("state", state, "the state after the last bar is the one computed again"),
        _check("attributes", attribute, "counts, gaps and ranges are those counted again"),
        _check(
            "range",
            sweep.first_outside,
            f"every value of {len(sweep.columns)} columns is finite and in its range",
            num_values=store.features.size, num_outside=sweep.num_outside,
        ),
    ]  # fmt: skip


def _laws(sweep: Sweep, rng: np.random.Generator) -> list[Check]:
    """Checks of the laws at sampled places."""
    # A damaged store may hold any number; what comes of it is compared, not warned about.
    with np.errstate(all="ignore"):
        local = check_local(sweep.store, sweep.segments, rng)
        scale = check_scale(sweep.store, sweep.segments, rng)
    return [
        _compared("causal", sweep.causal, "the same bits without later bars, and before others"),
        _compared("local", local, "the same bits when their segment stands alone"),
        _compared("scale", scale, "unchanged when all prices are multiplied, by ten factors"),
    ]


def _gates(sweep: Sweep) -> list[Check]:
    """Checks of how much there is to learn from: settings or bars that leave next to nothing."""
    warmup = sweep.store.config.first_valid_index
    lengths = sweep.segments[:, 1] - sweep.segments[:, 0]
    # A segment that ends within its warm-up counts: with a small max_gap, all of them might.
    num_warming = warmup * int(np.count_nonzero(lengths > warmup))
    valid_share = sweep.num_valid / (len(sweep.store) - num_warming)
    behind = f"of the bars behind each segment's warm-up of {warmup} are valid"
    density = float(np.mean([column.share_non_zero for column in sweep.columns]))
    gates = (
        ("valid share", valid_share, MIN_VALID_SHARE, behind),
        ("density", density, MIN_DENSITY, "of all values are not 0"),
    )
    return [
        Check(
            name, share > least, f"{share:.4f} {words}, more than {least:.2f} must be",
            {"share": share, "least": least},
        )
        for name, share, least, words in gates
    ]  # fmt: skip


def _input(
    stores: Mapping[str | None, Store], source: BarSource | None, advance: Callable[[int], None]
) -> dict[str | None, list[Check]]:
    """Checks against the bars that the stores were built from."""
    if source is None:
        return {name: [Check("input", None, "not asked", {})] for name in stores}
    digest = source.sha256()
    agreements = compare_bars(stores, source, advance)
    return {
        name: [*_digest_check(stores.get(name), digest), _agreement_check(agreement)]
        for name, agreement in agreements.items()
    }


def _digest_check(store: Store | None, digest: str) -> list[Check]:
    if store is None:
        return []
    known = _told_of_input(store, "sha256")
    failure = "" if known == digest else f"SHA-256 is {known} in the store, {digest} of the bars"
    return [_check("input digest", failure, f"SHA-256 {digest[:16]}...")]


def _agreement_check(agreement: Agreement) -> Check:
    words = f"{agreement.num_bars:,} bars: every time and price is the same"
    return _check("input bars", agreement.difference, words, num_bars=agreement.num_bars)


def _open_like(
    stores: Mapping[str | None, Store], against: Any, column_map: Mapping[str, str] | None
) -> BarSource:
    """Open bars in the way that the build did."""
    known = _told_of_input(next(iter(stores.values())), "on_bad_bars")
    on_bad_bars = known if known in ON_BAD_BARS else ON_BAD_BARS[0]
    return open_source(against, column_map=column_map, on_bad_bars=on_bad_bars)


def _advancer(
    stores: Mapping[str | None, Store], progress: Progress | None, *, num_passes: int
) -> Callable[[int], None]:
    total = num_passes * sum(len(store) for store in stores.values())
    done = 0

    def advance(num_bars: int) -> None:
        nonlocal done
        done += num_bars
        if progress is not None:
            progress(done, total)

    return advance


def _compared(name: str, found: Differences, words: str) -> Check:
    failure = (
        f"{found.num_different:,} of {found.num_bars:,} bars differ, the first: {found.first}"
        if found.first
        else ""
    )
    return _check(
        name, failure, f"{found.num_bars:,} bars: {words}",
        num_bars=found.num_bars, num_different=found.num_different,
    )  # fmt: skip


def _check(name: str, failure: str, success: str, **numbers: float) -> Check:
    return Check(name, not failure, failure or success, numbers)


def _first_segment(store: Store, sweep: Sweep) -> str:
    stored, expected = store.segments.tolist(), sweep.segments.tolist()
    pairs = zip(stored, expected, strict=False)
    position = next(
        (i for i, (one, other) in enumerate(pairs) if one != other), min(len(stored), len(expected))
    )
    here, there = (
        rows[position] if position < len(rows) else "missing" for rows in (stored, expected)
    )
    return (
        f"segment {position:,} is {here} in the store, {there} by its times and "
        f"max_gap {store.config.max_gap}"
    )


def _told_of_input(store: Store, name: str) -> Any:
    told = store.attributes.get("input")
    return told.get(name) if isinstance(told, dict) else None


def _bounds(column: Any) -> Any:
    """Name and range of a column, as attributes have them; their wording may change."""
    if not isinstance(column, dict):
        return column
    return {name: column.get(name) for name in ("name", "low", "high")}


def _named(symbol: str | None, name: str) -> str:
    return name if symbol is None else f"{symbol}: {name}"
