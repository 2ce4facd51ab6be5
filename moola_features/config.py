"""What to compute: one frozen configuration, in and out of TOML."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from moola_features import spec
from moola_features.errors import ConfigError

PROFILES: dict[str, dict[str, Any]] = {
    "standard": {},
    "wide": {"k": 3.0, "distance_clip": 12.0, "range_clip": 6.0, "proxy_clip": 4.0},
    "faithful": {"swing_rule": "same_bar"},
}

_UNITS_NS = {
    "ns": 1, "us": 1_000, "ms": 1_000_000, "s": 10**9,
    "m": 60 * 10**9, "min": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9,
}  # fmt: skip
MAX_PERIOD = 10_000  # bars; a longer look-back would outgrow the kernels' working set


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Everything that decides what a feature means; a store keeps it whole.

    Parameters
    ----------
    family
        ``"relativity"`` (scale-free candles and swings) or ``"returns"``.
    swing_rule
        How a swing is confirmed: ``"atr"``, ``"early"`` or ``"same_bar"``.
    range_period
        Bars of the exponential mean of the range; weight 2 / (range_period + 1).
    atr_period
        Bars of the average true range.
    k
        Confirmation distance in ATR.
    early_lookback, early_retrace
        The early rule: an extreme at most this many bars old, left by this many ATR.
    distance_clip, range_clip, proxy_clip
        Bounds of the distance columns, of ``range_z`` and of ``expansion_proxy``.
    warmup_bars
        Bars at the head of a segment that are never valid.
    max_gap
        Longest time between two bars of one segment, such as ``"4h"``; text, ``timedelta``
        or None for no limit.
    window_length
        Bars in a window, and the unit of the two ``bars_since`` columns.
    consol_proxy, context
        Whether to append the consolidation column and the eight context columns.

    Raises
    ------
    ConfigError
        A value out of bounds; the message names the parameter, the value and the remedy.

    Examples
    --------
    >>> FeatureConfig(swing_rule="early", max_gap="90min").max_gap_ns
    5400000000000
    """

    family: str = "relativity"
    swing_rule: str = "atr"
    range_period: int = 20
    atr_period: int = 10
    k: float = 1.2
    early_lookback: int = 5
    early_retrace: float = 0.5
    distance_clip: float = 3.0
    range_clip: float = 3.0
    proxy_clip: float = 2.0
    warmup_bars: int = 20
    max_gap: str | timedelta | None = None
    window_length: int = 105
    consol_proxy: bool = False
    context: bool = False

    def __post_init__(self) -> None:
        _require_choice("family", self.family, spec.FAMILIES)
        _require_choice("swing_rule", self.swing_rule, spec.SWING_RULES)
        for name in ("range_period", "atr_period", "window_length"):
            _require_int(name, getattr(self, name), 1, MAX_PERIOD)
        for name in ("early_lookback", "warmup_bars"):
            _require_int(name, getattr(self, name), 0, MAX_PERIOD)
        for name in ("k", "early_retrace", "distance_clip", "range_clip", "proxy_clip"):
            # Stored as float, so that 3 and 3.0 are one configuration in a store and in TOML.
            object.__setattr__(self, name, _positive_float(name, getattr(self, name)))
        for name in ("consol_proxy", "context"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}; it must be true or false")
            if value and self.family != "relativity":
                raise ConfigError(
                    f"{name} = true belongs to family 'relativity', but family is "
                    f"{self.family!r}; leave {name} out or set family = 'relativity'"
                )
        gap = self.max_gap
        if isinstance(gap, timedelta):
            # In integers: total_seconds() is a float and loses nanoseconds on long gaps.
            gap = _gap_text(gap // timedelta(microseconds=1) * 1_000)
        if gap is not None:
            # One text for one duration, so that 4h and 240min are one configuration too.
            gap = _gap_text(parse_duration_ns("max_gap", gap))
        object.__setattr__(self, "max_gap", gap)

    @property
    def max_gap_ns(self) -> int | None:
        """Longest time between two bars of one segment in nanoseconds, or None."""
        return None if self.max_gap is None else parse_duration_ns("max_gap", self.max_gap)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the order of the feature matrix."""
        return tuple(column.name for column in spec.columns(self))

    @property
    def first_valid_index(self) -> int:
        """Position in its segment of the first bar that can be valid."""
        return max(self.warmup_bars, *(column.look_back for column in spec.columns(self)))

    @classmethod
    def or_standard(cls, config: Any) -> Self:
        """Return a configuration, or the standard profile for None.

        Raises
        ------
        ConfigError
            Anything else, such as a profile's name.
        """
        if config is None:
            return cls()
        if not isinstance(config, cls):
            raise ConfigError(
                f"config is {config!r}; give a FeatureConfig, such as "
                "FeatureConfig.profile('wide'), or None for the standard profile"
            )
        return config

    @classmethod
    def profile(cls, name: str, **overrides: Any) -> Self:
        """Make one of the named profiles, with single values overridden.

        Parameters
        ----------
        name
            ``"standard"``, ``"wide"`` or ``"faithful"``.
        overrides
            Fields that replace the profile's.

        Raises
        ------
        ConfigError
            An unknown profile or field, or a value out of bounds.

        Examples
        --------
        >>> FeatureConfig.profile("wide", context=True).k
        3.0
        """
        return cls.from_dict({**_profile_settings(name), **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make a configuration from plain values, refusing names that it does not have."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"unknown setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a configuration from a TOML file.

        Parameters
        ----------
        path
            File with settings at the top level; ``profile = "wide"`` may name a base.
        overrides
            Fields that replace the file's; ``profile`` another base in place of the file's.

        Raises
        ------
        ConfigError
            A file that is missing or not TOML, an unknown setting, a value out of bounds.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"config {path}: {error.strerror}; give a readable file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"config {path} is not TOML: {error}") from error
        settings = {"profile": "standard", **values, **overrides}
        base = _profile_settings(settings.pop("profile"))
        return cls.from_dict({**base, **settings})

    def to_toml(self) -> str:
        """Return the configuration as TOML text that :meth:`from_toml` reads back.

        Examples
        --------
        >>> print(FeatureConfig().to_toml().splitlines()[0])
        family = "relativity"
        """
        lines = []
        for name, value in self.to_dict().items():
            if value is None:
                continue  # TOML has no null; an absent max_gap means none
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f"{name} = {text.replace(chr(39), chr(34))}")
        return "\n".join(lines) + "\n"


def _profile_settings(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PROFILES:
        raise ConfigError(f"profile is {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def parse_duration_ns(name: str, value: Any) -> int:
    """Read a duration such as ``"4h"``, ``"90min"`` or ``"1d"`` as nanoseconds."""
    text = value if isinstance(value, str) else ""
    match = re.fullmatch(r"\s*(\d{1,19})\s*([a-zA-Z]+)\s*", text)
    unit = match and _UNITS_NS.get(match[2].lower())
    if not match or not unit or int(match[1]) <= 0 or int(match[1]) * unit >= 2**62:
        raise ConfigError(f"{name} is {value!r}; give a duration such as '4h', '90min' or '1d'")
    return int(match[1]) * unit


def _gap_text(nanoseconds: int) -> str:
    for unit in ("d", "h", "min", "s", "ms", "us", "ns"):
        if nanoseconds % _UNITS_NS[unit] == 0:
            return f"{nanoseconds // _UNITS_NS[unit]}{unit}"
    raise AssertionError("every whole number of nanoseconds is a multiple of one")


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _require_int(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def _positive_float(name: str, value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= 1e6:  # NaN fails too
        raise ConfigError(f"{name} is {value!r}; it must be a number above 0 and at most 1e6")
    return float(value)
