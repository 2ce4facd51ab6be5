"""The configuration: its bounds, its profiles, and its way in and out of TOML."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moola_features as mf
from moola_features.config import MAX_PERIOD, PROFILES
from moola_features.errors import ConfigError
from tests.markets import walk

FIELDS = {field.name: field.default for field in dataclasses.fields(mf.FeatureConfig)}

COUNTS = {
    "range_period": 1, "atr_period": 1, "window_length": 1, "early_lookback": 0, "warmup_bars": 0,
}  # fmt: skip
SIZES = ("k", "early_retrace", "distance_clip", "range_clip", "proxy_clip")

# One value for every field that is not its default.
OTHERS: dict[str, Any] = {
    "swing_rule": "early",
    "range_period": 31,
    "atr_period": 14,
    "k": 1 / 3,
    "early_lookback": 0,
    "early_retrace": 1e-7,
    "distance_clip": 12.0,
    "range_clip": 1e6,
    "proxy_clip": 4.5,
    "warmup_bars": 0,
    "max_gap": "4h",
    "window_length": 60,
    "consol_proxy": True,
    "context": True,
}

TAKERS = (
    lambda config: mf.compute(walk(20), config),
    lambda config: mf.swings(walk(20), config),
    lambda config: mf.transform_windows(np.ones((1, 105, 4)), config),
    mf.Stream,
    lambda config: mf.build(walk(200), "nowhere.zarr", config),
)

HOUR_NS = 3_600 * 10**9


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        mf.FeatureConfig(**settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_settings_are_those_of_the_design():
    assert list(FIELDS) == [
        "family", "swing_rule", "range_period", "atr_period", "k", "early_lookback",
        "early_retrace", "distance_clip", "range_clip", "proxy_clip", "warmup_bars", "max_gap",
        "window_length", "consol_proxy", "context",
    ]  # fmt: skip
    assert set(OTHERS) == set(FIELDS) - {"family"}
    assert all(value != FIELDS[name] for name, value in OTHERS.items())


def test_settings_are_frozen_and_named():
    config = mf.FeatureConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.k = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        mf.FeatureConfig("relativity")  # type: ignore[misc]
    with pytest.raises(TypeError, match="swing_role"):
        mf.FeatureConfig(swing_role="atr")  # type: ignore[call-arg]
    assert {config: 1}[mf.FeatureConfig()] == 1


class TestBounds:
    @pytest.mark.parametrize(("name", "low"), COUNTS.items())
    def test_counts_within_bounds(self, name, low):
        for value in (low, MAX_PERIOD):
            assert getattr(mf.FeatureConfig(**{name: value}), name) == value

    @pytest.mark.parametrize("value", [-1, MAX_PERIOD + 1, True, 20.0, "20", None, math.nan])
    @pytest.mark.parametrize("name", COUNTS)
    def test_counts_out_of_bounds(self, name, value):
        message = refused(**{name: value})
        assert message == (
            f"{name} is {value!r}; it must be a whole number from {COUNTS[name]} to {MAX_PERIOD}"
        )

    @pytest.mark.parametrize("name", [name for name, low in COUNTS.items() if low == 1])
    def test_periods_of_nothing(self, name):
        assert f"{name} is 0;" in refused(**{name: 0})

    @pytest.mark.parametrize("value", [1e-300, 0.5, 1e6])
    @pytest.mark.parametrize("name", SIZES)
    def test_sizes_within_bounds(self, name, value):
        assert getattr(mf.FeatureConfig(**{name: value}), name) == value

    @pytest.mark.parametrize(
        "value", [0, 0.0, -1.5, 1e6 + 1, math.nan, math.inf, 10**400, True, "1.2", None, [1.2]]
    )
    @pytest.mark.parametrize("name", SIZES)
    def test_sizes_out_of_bounds(self, name, value):
        message = refused(**{name: value})
        assert message == f"{name} is {value!r}; it must be a number above 0 and at most 1e6"

    @pytest.mark.parametrize("name", SIZES)
    def test_whole_sizes_are_the_same_configuration(self, name):
        whole = mf.FeatureConfig(**{name: 3})
        assert type(getattr(whole, name)) is float
        assert type(getattr(mf.FeatureConfig(**{name: np.float64(3)}), name)) is float
        assert whole == mf.FeatureConfig(**{name: 3.0})
        assert whole.to_toml() == mf.FeatureConfig(**{name: 3.0}).to_toml()

    @pytest.mark.parametrize(
        ("name", "choices"),
        [("family", "relativity, returns"), ("swing_rule", "atr, early, same_bar")],
    )
    @pytest.mark.parametrize("value", ["ATR", "", None, 1, ["atr"]])
    def test_choices(self, name, choices, value):
        assert refused(**{name: value}) == f"{name} is {value!r}; choose one of {choices}"

    @pytest.mark.parametrize("name", ["consol_proxy", "context"])
    @pytest.mark.parametrize("value", [1, 0, "true", None])
    def test_flags(self, name, value):
        assert refused(**{name: value}) == f"{name} is {value!r}; it must be true or false"

    @pytest.mark.parametrize("name", ["consol_proxy", "context"])
    def test_flags_of_the_other_family(self, name):
        assert f"{name} = true belongs to family 'relativity'" in refused(
            family="returns", **{name: True}
        )
        assert mf.FeatureConfig(family="returns", **{name: False}).family == "returns"


class TestMaxGap:
    @pytest.mark.parametrize(
        ("value", "nanoseconds"),
        [
            (None, None),
            ("1ns", 1),
            ("7us", 7_000),
            ("250ms", 250_000_000),
            ("90s", 90 * 10**9),
            ("90m", 90 * 60 * 10**9),
            ("90min", 90 * 60 * 10**9),
            ("4h", 4 * HOUR_NS),
            ("4 H", 4 * HOUR_NS),
            (" 1d ", 24 * HOUR_NS),
            (timedelta(hours=4), 4 * HOUR_NS),
            (timedelta(days=10_000, microseconds=1), 10_000 * 24 * HOUR_NS + 1_000),
        ],
    )
    def test_forms(self, value, nanoseconds):
        assert mf.FeatureConfig(max_gap=value).max_gap_ns == nanoseconds

    @pytest.mark.parametrize("value", ["240min", "14400s", "04h", " 4H", timedelta(hours=4)])
    def test_one_duration_is_one_configuration(self, value):
        assert mf.FeatureConfig(max_gap=value) == mf.FeatureConfig(max_gap="4h")

    @pytest.mark.parametrize(
        "value",
        [
            "", "4", "h", "4.5h", "-4h", "0h", "4 hours", "4h30m", 14_400, 4.0, True, "4\nx",
            "9" * 18 + "d", "9" * 5_000 + "h", timedelta(0), timedelta(hours=-1), b"4h",
        ],
    )  # fmt: skip
    def test_no_durations(self, value):
        message = refused(max_gap=value)
        assert message.startswith("max_gap is ")
        assert message.endswith("; give a duration such as '4h', '90min' or '1d'")


class TestProfiles:
    def test_are_those_of_the_definitions(self):
        expected = {
            "standard": {},
            "wide": {"k": 3.0, "distance_clip": 12.0, "range_clip": 6.0, "proxy_clip": 4.0},
            "faithful": {"swing_rule": "same_bar"},
        }
        assert list(PROFILES) == list(expected)
        for name, settings in expected.items():
            assert mf.FeatureConfig.profile(name) == mf.FeatureConfig(**settings)

    def test_single_values_override(self):
        config = mf.FeatureConfig.profile("wide", k=2, context=True)
        assert config == mf.FeatureConfig(
            k=2.0, distance_clip=12.0, range_clip=6.0, proxy_clip=4.0, context=True
        )
        assert mf.FeatureConfig.profile("wide").k == 3.0

    @pytest.mark.parametrize("name", ["Wide", "", None, 3, ["wide"]])
    def test_unknown(self, name):
        with pytest.raises(ConfigError) as caught:
            mf.FeatureConfig.profile(name)
        assert str(caught.value) == (f"profile is {name!r}; choose one of standard, wide, faithful")

    @pytest.mark.parametrize(
        "take", TAKERS, ids=["compute", "swings", "windows", "stream", "build"]
    )
    @pytest.mark.parametrize("config", ["wide", {}, 0, mf.FeatureConfig])
    def test_a_name_is_no_configuration(self, take, config):
        with pytest.raises(ConfigError) as caught:
            take(config)
        assert str(caught.value) == (
            f"config is {config!r}; give a FeatureConfig, such as FeatureConfig.profile('wide'), "
            "or None for the standard profile"
        )

    def test_unknown_override(self):
        with pytest.raises(ConfigError, match="unknown setting 'clip'; the settings are atr_per"):
            mf.FeatureConfig.profile("wide", clip=3)


def positive() -> st.SearchStrategy[float]:
    return st.floats(min_value=5e-324, max_value=1e6) | st.integers(1, 10**6)


@st.composite
def any_config(draw: st.DrawFn) -> mf.FeatureConfig:
    family = draw(st.sampled_from(("relativity", "returns")))
    units = st.sampled_from(("ns", "us", "ms", "s", "min", "h", "d"))
    durations = st.builds("{}{}".format, st.integers(1, 50_000), units)
    spans = st.timedeltas(timedelta(microseconds=1), timedelta(days=50_000))
    return mf.FeatureConfig(
        family=family,
        swing_rule=draw(st.sampled_from(("atr", "early", "same_bar"))),
        max_gap=draw(st.none() | durations | spans),
        consol_proxy=family == "relativity" and draw(st.booleans()),
        context=family == "relativity" and draw(st.booleans()),
        **{name: draw(st.integers(low, MAX_PERIOD)) for name, low in COUNTS.items()},
        **{name: draw(positive()) for name in SIZES},
    )


class TestTextForms:
    @given(config=any_config())
    def test_toml_round_trip(self, config, tmp_path_factory):
        path = tmp_path_factory.getbasetemp() / "round_trip.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        assert mf.FeatureConfig.from_toml(path) == config

    @given(config=any_config())
    def test_json_round_trip(self, config):
        values = json.loads(json.dumps(config.to_dict()))
        assert list(values) == list(FIELDS)
        assert mf.FeatureConfig.from_dict(values) == config

    @pytest.mark.parametrize(("name", "value"), OTHERS.items())
    def test_every_setting_is_in_the_text(self, name, value, tmp_path):
        config = mf.FeatureConfig(**{name: value})
        path = tmp_path / "one.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        read = mf.FeatureConfig.from_toml(path)
        assert getattr(read, name) == value
        assert read == config != mf.FeatureConfig()

    def test_unknown_setting_of_a_dict(self):
        with pytest.raises(ConfigError, match="unknown setting 'K'"):
            mf.FeatureConfig.from_dict({"K": 2})


class TestFiles:
    def read(self, tmp_path: Path, text: str, **overrides: Any) -> mf.FeatureConfig:
        path = tmp_path / "features.toml"
        path.write_text(text, encoding="utf-8")
        return mf.FeatureConfig.from_toml(path, **overrides)

    def refused(self, tmp_path: Path, text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.read(tmp_path, text)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_empty_is_the_standard(self, tmp_path):
        assert self.read(tmp_path, "") == mf.FeatureConfig()

    def test_a_profile_and_single_settings(self, tmp_path):
        config = self.read(tmp_path, 'profile = "wide"\nk = 2\ncontext = true\n')
        assert config == mf.FeatureConfig.profile("wide", k=2.0, context=True)

    def test_overrides_come_last(self, tmp_path):
        text = 'profile = "wide"\nmax_gap = "4h"\nk = 2.5\n'
        config = self.read(tmp_path, text, k=9, max_gap=None)
        assert config == mf.FeatureConfig.profile("wide", k=9.0)

    def test_another_profile_than_the_files(self, tmp_path):
        text = 'profile = "faithful"\nk = 2.5\n'
        for content in (text, "k = 2.5"):
            config = self.read(tmp_path, content, profile="wide")
            assert config == mf.FeatureConfig.profile("wide", k=2.5)
        with pytest.raises(ConfigError, match="profile is 'narrow'; choose one of"):
            self.read(tmp_path, text, profile="narrow")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("swing_role = 3", "unknown setting 'swing_role'"),
            ("name = 'wide'", "unknown setting 'name'"),
            ("cls = 1", "unknown setting 'cls'"),
            ("[features]\nk = 2", "unknown setting 'features'"),
            ("profile = 'narrow'", "profile is 'narrow'; choose one of"),
            ("profile = ['wide']", "profile is ['wide']; choose one of"),
            ("k = -1", "k is -1; it must be"),
            ("max_gap = 04:00:00", "max_gap is datetime.time(4, 0)"),
            ("k = ", "features.toml is not TOML"),
        ],
    )
    def test_refused(self, tmp_path, text, message):
        assert message in self.refused(tmp_path, text)

    def test_no_text(self, tmp_path):
        path = tmp_path / "features.toml"
        path.write_bytes(b'family = "\xff\xfe"')
        with pytest.raises(ConfigError, match=r"features\.toml is not TOML"):
            mf.FeatureConfig.from_toml(path)

    def test_no_file(self, tmp_path):
        with pytest.raises(ConfigError, match=r"no\.toml: No such file .*; give a readable file"):
            mf.FeatureConfig.from_toml(tmp_path / "no.toml")
        with pytest.raises(ConfigError, match="Is a directory; give a readable file"):
            mf.FeatureConfig.from_toml(tmp_path)


class TestWhatFollows:
    def test_columns(self):
        assert len(mf.FeatureConfig().names) == 11
        assert len(mf.FeatureConfig(consol_proxy=True).names) == 12
        assert len(mf.FeatureConfig(consol_proxy=True, context=True).names) == 20
        assert len(mf.FeatureConfig(family="returns").names) == 11
        assert mf.FeatureConfig(context=True).names == tuple(
            column.name for column in mf.columns(mf.FeatureConfig(context=True))
        )

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, 20),
            ({"warmup_bars": 0}, 10),
            ({"warmup_bars": 0, "atr_period": 33}, 33),
            ({"context": True}, 60),
            ({"context": True, "atr_period": 77}, 77),
            ({"family": "returns"}, 20),
            ({"family": "returns", "warmup_bars": 0}, 19),
        ],
    )
    def test_first_bar_that_can_be_valid(self, settings, expected):
        assert mf.FeatureConfig(**settings).first_valid_index == expected
