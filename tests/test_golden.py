"""Numbers worked out by hand: sixteen bars, and a few more for what those do not show.

Both the package and the naive twins are held against them, so that the two cannot agree on the
same mistake.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import moola_features as mf
from tests import reference
from tests.strategies import MINUTE_NS, START_NS, to_bars, twin_settings

pytestmark = pytest.mark.kernels

# Short periods keep the arithmetic small: E halves (a = 2 / (3 + 1)), ATR is the mean of two
# true ranges, times count in tenths. k is 1.2. Clips are tight enough to be met.
SHORT: dict[str, Any] = {
    "range_period": 3, "atr_period": 2, "window_length": 10, "warmup_bars": 4,
    "distance_clip": 3.0, "range_clip": 1.25, "proxy_clip": 0.8,
}  # fmt: skip

SIXTEEN = np.array(
    [  # open, high, low, close   R  TR  ATR   the zigzag under rule `atr`
        (100, 102, 99, 101),    # 0: 3   -   -    no leg yet
        (101, 103, 100, 102),   # 1: 3   3   3    up leg starts at the close: x = 102
        (102, 106, 102, 105),   # 2: 4   4   3.5  x = 106; 106 - 105 = 1 < 1.2 * 3.5 = 4.2
        (105, 110, 104, 109),   # 3: 6   6   5    x = 110; 1 < 6
        (108, 109, 103, 104),   # 4: 6   6   6    110 - 104 = 6 < 7.2
        (104, 105, 101, 102),   # 5: 4   4   5    110 - 102 = 8 >= 6: SH = 110 of bar 3; x = 101
        (102, 102, 102, 102),   # 6: 0   0   2    flat; 102 - 101 = 1 < 2.4
        (102, 103, 98, 99),     # 7: 5   5   2.5  x = 98; 1 < 3
        (99, 102, 99, 101),     # 8: 3   3   4    101 - 98 = 3 < 4.8
        (101, 104, 100, 103),   # 9: 4   4   3.5  103 - 98 = 5 >= 4.2: SL = 98 of bar 7; x = 104
        (103, 108, 103, 107),  # 10: 5   5   4.5  x = 108; 1 < 5.4
        (107, 109, 106, 106),  # 11: 3   3   4    x = 109; 109 - 106 = 3 < 4.8
        (110, 112, 110, 111),  # 12: 2   6   4.5  opens with a gap: TR = 112 - 106; x = 112
        (111, 113, 111, 112),  # 13: 2   2   4    x = 113; 1 < 4.8
        (112, 113, 108, 109),  # 14: 5   5   3.5  113 - 109 = 4 < 4.2
        (109, 116, 109, 115),  # 15: 7   7   6    x = 116; 1 < 7.2
    ],
    dtype=np.float64,
)  # fmt: skip

# (O - L) / R and so on; bar 6 is flat and has 0 everywhere.
OPEN_NORM = [
    1/3, 1/3, 0, 1/6, 5/6, 3/4, 0, 4/5, 0, 1/4, 0, 1/3, 0, 0, 4/5, 0,
]  # fmt: skip
CLOSE_NORM = [
    2/3, 2/3, 3/4, 5/6, 1/6, 1/4, 0, 1/5, 2/3, 3/4, 4/5, 0, 1/2, 1/2, 1/5, 6/7,
]  # fmt: skip
BODY_PCT = [
    1/3, 1/3, 3/4, 4/6, -4/6, -2/4, 0, -3/5, 2/3, 2/4, 4/5, -1/3, 1/2, 1/2, -3/5, 6/7,
]  # fmt: skip
UPPER_WICK = [
    1/3, 1/3, 1/4, 1/6, 1/6, 1/4, 0, 1/5, 1/3, 1/4, 1/5, 2/3, 1/2, 1/2, 1/5, 1/7,
]  # fmt: skip
LOWER_WICK = [
    1/3, 1/3, 0, 1/6, 1/6, 1/4, 0, 1/5, 0, 1/4, 0, 0, 0, 0, 1/5, 0,
]  # fmt: skip

RANGE_Z = [
    1,  # 3 / 3
    1,  # E = 3/2 + 3/2 = 3
    4 / 3.5,  # E = 4/2 + 3/2
    1.25,  # E = 6/2 + 3.5/2 = 4.75; 6 / 4.75 = 1.263 is clipped
    6 / 5.375,
    4 / 4.6875,
    0,  # flat; E = 2.34375
    1.25,  # 5 / 3.671875 = 1.362
    3 / 3.3359375,
    4 / 3.66796875,
    5 / 4.333984375,
    3 / 3.6669921875,
    2 / 2.83349609375,
    2 / 2.416748046875,
    1.25,  # 5 / 3.7083740234375 = 1.348
    1.25,  # 7 / 5.35418701171875 = 1.307
]
DIST_SH = [
    0, 0, 0, 0, 0,  # not known
    8 / 5,  # (110 - 102) / 5
    3,  # 8 / 2 = 4
    3,  # 11 / 2.5 = 4.4
    9 / 4, 7 / 3.5, 3 / 4.5, 4 / 4, -1 / 4.5, -2 / 4, 1 / 3.5, -5 / 6,
]  # fmt: skip
DIST_SL = [
    0, 0, 0, 0, 0, 0, 0, 0, 0,  # not known
    5 / 3.5,  # (103 - 98) / 3.5
    9 / 4.5, 8 / 4, 13 / 4.5,
    3,  # 14 / 4 = 3.5
    3,  # 11 / 3.5 = 3.143
    17 / 6,
]  # fmt: skip
SINCE_SH = [0, 0, 0, 0, 0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]  # (i - 3) / 10
SINCE_SL = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]  # (i - 7) / 10
EXPANSION = [
    0,  # no leg
    1 * 1 / 3,
    0.8,  # 4/3.5 * 3/4 = 0.857 is clipped
    0.8,  # 1.25 * 4/6 = 0.833
    -4 / 5.375,  # 6/5.375 * -4/6
    2 / 4.6875,  # the leg has turned: 4/4.6875 * -1 * -2/4
    0,  # flat
    0.75,  # 1.25 * -1 * -3/5
    -2 / 3.3359375,  # 3/3.3359375 * -1 * 2/3
    2 / 3.66796875,  # up again: 4/3.66796875 * 2/4
    0.8,  # 5/4.333984375 * 4/5 = 0.923
    -1 / 3.6669921875,
    1 / 2.83349609375,
    1 / 2.416748046875,
    -0.75,
    0.8,  # 1.25 * 6/7 = 1.071
]
TABLE = np.column_stack(
    (
        OPEN_NORM, CLOSE_NORM, BODY_PCT, UPPER_WICK, LOWER_WICK, RANGE_Z,
        DIST_SH, DIST_SL, SINCE_SH, SINCE_SL, EXPANSION,
    )
)  # fmt: skip

# (is_high, bar of the extreme, bar that confirmed it, price of the extreme)
ATR_SWINGS = [(True, 3, 5, 110), (False, 7, 9, 98)]
EARLY_SWINGS = [
    (True, 3, 4, 110),  # one bar after the high: 110 - 103 = 7 >= 0.5 * 6; then x = 103
    (False, 5, 6, 101),  # 102 - 101 = 1 >= 0.5 * 2, a tie; then x = 102
    (True, 7, 7, 103),  # by the rule `atr`, which looks at the close: 103 - 99 = 4 >= 1.2 * 2.5
    (False, 7, 8, 98),  # 102 - 98 = 4 >= 0.5 * 4
    (True, 13, 14, 113),  # 113 - 108 = 5 >= 0.5 * 3.5; bar 11 fails, its own high is the extreme
    (False, 14, 15, 108),  # 116 - 108 = 8 >= 0.5 * 6
]
SAME_BAR_SWINGS = [
    (True, 2, 2, 106),  # a bar's own high: 106 - 102 = 4 >= 0.5 * 3.5
    (False, 2, 3, 102),  # 110 - 102 = 8 >= 0.5 * 5
    (True, 3, 4, 110),  # 110 - 103 = 7 >= 0.5 * 6
    (False, 5, 5, 101),  # 105 - 101 = 4 >= 0.5 * 5
    (True, 5, 6, 105),  # 105 - 102 = 3 >= 0.5 * 2
    (False, 7, 7, 98),  # 103 - 98 = 5 >= 0.5 * 2.5
    (True, 7, 8, 103),  # 103 - 99 = 4 >= 0.5 * 4
    (False, 8, 9, 99),  # 104 - 99 = 5 >= 0.5 * 3.5
    (True, 10, 10, 108),  # 108 - 103 = 5 >= 0.5 * 4.5
    (False, 10, 11, 103),  # 109 - 103 = 6 >= 0.5 * 4
    (True, 13, 13, 113),  # 113 - 111 = 2 >= 0.5 * 4, a tie; bar 12: 112 - 110 = 2 < 0.5 * 4.5
    (False, 14, 14, 108),  # 113 - 108 = 5 >= 0.5 * 3.5
    (True, 15, 15, 116),  # 116 - 109 = 7 >= 0.5 * 6
]


def check(
    ohlc: NDArray[np.float64], expected: Any, columns: Any = slice(None), **config: Any
) -> None:
    """Hold package and twin against numbers for some columns (a name or a slice)."""
    chosen = mf.FeatureConfig(**config)
    if isinstance(columns, str):
        columns = chosen.names.index(columns)
    time = START_NS + np.arange(len(ohlc)) * MINUTE_NS
    actual = mf.compute(to_bars(time, ohlc), chosen).values
    twin = reference.features(time, ohlc, **twin_settings(chosen))
    np.testing.assert_allclose(twin[:, columns], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual[:, columns], expected, rtol=0, atol=1e-6)


def test_sixteen_bars() -> None:
    check(SIXTEEN, TABLE, **SHORT)


def test_windows_start_cold() -> None:
    windows = np.stack((SIXTEEN[:10], SIXTEEN[:10] + 50.0))  # [2, 10, 4]
    actual = mf.transform_windows(windows, mf.FeatureConfig(**SHORT))
    np.testing.assert_allclose(actual, [TABLE[:10], TABLE[:10]], rtol=0, atol=1e-6)


def test_valid_once_both_swings_are_known() -> None:
    config = mf.FeatureConfig(**SHORT)  # warm-up 4 bars, ATR full at bar 2, swing low at bar 9
    time = START_NS + np.arange(16) * MINUTE_NS
    expected = [False] * 9 + [True] * 7
    assert mf.compute(to_bars(time, SIXTEEN), config).valid.tolist() == expected
    assert reference.valid(time, SIXTEEN, **twin_settings(config)).tolist() == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("atr", ATR_SWINGS), ("early", EARLY_SWINGS), ("same_bar", SAME_BAR_SWINGS)],
)
def test_swings_under_every_rule(rule: str, expected: list[tuple[bool, int, int, float]]) -> None:
    config = mf.FeatureConfig(swing_rule=rule, **SHORT)
    time = START_NS + np.arange(16) * MINUTE_NS
    actual = mf.swings(to_bars(time, SIXTEEN), config)
    assert list(zip(*unpack(actual), strict=True)) == expected
    assert reference.swings(time, SIXTEEN, **twin_settings(config)) == expected


def unpack(swings: mf.Swings) -> tuple[list[Any], ...]:
    return (
        swings.is_high.tolist(),
        swings.index.tolist(),
        swings.confirmed_index.tolist(),
        swings.price.tolist(),
    )


def test_the_early_rule_forgets_old_extremes() -> None:
    # The close never falls by 1.2 ATR, but a low falls by half an ATR two bars after the high.
    ohlc = np.array(
        [
            (100, 102, 98, 100),
            (100, 104, 100, 104),  # 1: up leg, x = 104
            (104, 110, 104, 110),  # 2: x = 110, closes at its high
            (110, 110, 109, 110),  # 3: TR 1, ATR 3.5; 110 - 109 = 1 < 0.5 * 3.5
            (110, 110, 107, 109),  # 4: TR 3, ATR 2; age 2; 110 - 107 = 3 >= 0.5 * 2
        ],
        dtype=np.float64,
    )
    time = START_NS + np.arange(len(ohlc)) * MINUTE_NS
    for lookback, expected in ((1, []), (2, [(True, 2, 4, 110)])):
        config = mf.FeatureConfig(swing_rule="early", early_lookback=lookback, atr_period=2)
        assert list(zip(*unpack(mf.swings(to_bars(time, ohlc), config)), strict=True)) == expected
        assert reference.swings(time, ohlc, **twin_settings(config)) == expected


def test_distances_take_their_limit_where_nothing_moves() -> None:
    flat = np.full((4, 4), 115.0)
    # 16: TR 0, ATR 3.5; 116 - 115 = 1 < 4.2: still SH = 110, SL = 98
    # 17: ATR 0, and 116 - 115 = 1 >= 0: SH = 116; 115 lies below it and above SL = 98
    # 18: ATR 0, and 115 - 115 = 0 >= 0: SL = 115 of bar 17, where the close now lies
    # 19: the same for the high: SH = 115 of bar 18
    expected_sh = [*DIST_SH, -5 / 3.5, 3, 3, 0]
    expected_sl = [*DIST_SL, 3, 3, 0, 0]
    ohlc = np.concatenate((SIXTEEN, flat))
    check(ohlc, expected_sh, "dist_to_prev_SH", **SHORT)
    check(ohlc, expected_sl, "dist_to_prev_SL", **SHORT)


def test_a_tie_confirms_whatever_the_rounding() -> None:
    # In tenths the up leg's extreme is 0.6 above the close and k * ATR = 1.2 * 0.5 = 0.6, but
    # 10.6 - 10.0 comes out below and 1.2 * ATR above it, so a plain >= would miss the swing.
    ohlc = np.array(
        [
            (10.0, 10.1, 9.8, 10.1),
            (10.1, 10.5, 10.1, 10.5),  # 1: TR 0.4; up leg, x = 10.5
            (10.5, 10.6, 10.0, 10.0),  # 2: TR 0.6, ATR 0.5; x = 10.6
        ]
    )
    assert 10.6 - 10.0 < 1.2 * (((10.5 - 10.1) + (10.6 - 10.0)) / 2)
    for factor in (1.0, 1.3, 1e-7, 3.0):
        check(ohlc * factor, [0, 0, 0.6 / 0.5], "dist_to_prev_SH", atr_period=2)
        bars = to_bars(START_NS + np.arange(3) * MINUTE_NS, ohlc * factor)
        swings = mf.swings(bars, mf.FeatureConfig(atr_period=2))
        assert swings.index.tolist() == [2]
        assert swings.confirmed_index.tolist() == [2]


@pytest.mark.parametrize(("short_by", "expected"), [(2.0**-32, [2]), (2.0**-30, [])])
def test_a_near_miss_is_no_tie(short_by: float, expected: list[int]) -> None:
    # The last bar's ATR is its own range, so that the move falls short of 1.0 ATR by C - L. Of a
    # close of 1024, the share 2**-41 that still counts as a tie is 2**-31.
    last = (1025.0, 1026.0, 1024.0, 1024.0 + short_by)
    ohlc = np.array([(1025.0, 1026.0, 1024.0, 1025.0), (1025.0, 1026.0, 1024.0, 1025.0), last])
    time = START_NS + np.arange(3) * MINUTE_NS
    config = mf.FeatureConfig(atr_period=1, k=1.0)
    assert mf.swings(to_bars(time, ohlc), config).confirmed_index.tolist() == expected
    twin = reference.swings(time, ohlc, **twin_settings(config))
    assert [swing.confirmed_index for swing in twin] == expected


def test_consol_proxy() -> None:
    calm = np.array(
        [
            0, 0, 0, 0, 0,
            (1 - 4 / 4.6875 / 1.25) * (1 - 2 / 4) * 0.2 / 2,
            1 * 1 * 0.3 / 2,  # a flat bar is the calmest
            0,  # range_z at its clip
            (1 - 3 / 3.3359375 / 1.25) * (1 - 2 / 3) * 0.5 / 2,
            (1 - 4 / 3.66796875 / 1.25) * (1 - 2 / 4) * (0.6 + 0.2) / 2,
            (1 - 5 / 4.333984375 / 1.25) * (1 - 4 / 5) * (0.7 + 0.3) / 2,
            (1 - 3 / 3.6669921875 / 1.25) * (1 - 1 / 3) * (0.8 + 0.4) / 2,
            (1 - 2 / 2.83349609375 / 1.25) * (1 - 1 / 2) * (0.9 + 0.5) / 2,
            (1 - 2 / 2.416748046875 / 1.25) * (1 - 1 / 2) * (1.0 + 0.6) / 2,
            0, 0,  # at the clip again
        ]
    )  # fmt: skip
    check(SIXTEEN, calm, "consol_proxy", consol_proxy=True, **SHORT)
    check(SIXTEEN, TABLE, slice(0, 11), consol_proxy=True, **SHORT)


def test_context_while_its_look_backs_fill() -> None:
    config = mf.FeatureConfig(context=True, **SHORT)
    expected: dict[int, list[float]] = {
        0: [0] * 8,
        1: [  # A60 = 3
            1 / 3,  # 102 - 101
            1 / 3,  # 103 - 102
            3 / 3,  # 102 - 99
            1 / 3, 3 / 3,
            3 / 3,
            1,  # one step, all of it net
            4 / 3,  # 103 - 99
        ],
        6: [  # A60 = (3 + 4 + 6 + 6 + 4 + 0) / 6 = 23 / 6
            0,
            8 * 6 / 23,  # 110 - 102
            3 * 6 / 23,  # 102 - 99
            8 * 6 / 23, 3 * 6 / 23,
            2 * 6 / 23,  # ATR 2
            1 / 15,  # (102 - 101) over 1 + 3 + 4 + 5 + 2 + 0
            11 * 6 / 23,  # 110 - 99
        ],
        15: [  # A60 = 63 / 15 = 4.2
            6 / 4.2,  # 115 - 109
            1 / 4.2,  # 116 - 115
            17 / 4.2,  # 115 - 98
            1 / 4.2, 17 / 4.2,
            6 / 4.2,  # ATR 6
            13 / 27,  # (115 - 102) over 0 + 3 + 2 + 2 + 4 + 1 + 5 + 1 + 3 + 6
            18 / 4.2,  # 116 - 98; bar 0 is out of the last 15
        ],
    }  # fmt: skip
    time = START_NS + np.arange(16) * MINUTE_NS
    actual = mf.compute(to_bars(time, SIXTEEN), config).values[:, 11:]
    twin = reference.features(time, SIXTEEN, **twin_settings(config))[:, 11:]
    for bar, row in expected.items():
        np.testing.assert_allclose(actual[bar], row, rtol=0, atol=1e-6)
        np.testing.assert_allclose(twin[bar], row, rtol=0, atol=1e-12)


def test_context_over_full_look_backs() -> None:
    # The close falls by 1 a bar, highs and lows lie 2 above and below it. Every true range is 4:
    # the close before is 1 above this one, inside the bar. A jump of 100 lies 70 bars back.
    close = 1_000.0 - np.arange(100.0)
    close[:30] += 100.0
    ohlc = np.column_stack((close, close + 2, close - 2, close))
    expected = [
        -1 / 4,
        (19 + 2) / 4,  # the high of 19 bars ago is 19 + 2 above this close
        2 / 4,
        (59 + 2) / 4,
        2 / 4,
        1,
        -1,  # ten steps of one
        (14 + 4) / 4,  # from the high of 14 bars ago to this low
    ]
    # The jump falls from the close of bar 29 to bar 30, whose true range is therefore 103: the
    # last 60 true ranges are clear of it from bar 90 on, when its high is out of the 60 bars too.
    config = mf.FeatureConfig(context=True)
    time = START_NS + np.arange(100) * MINUTE_NS
    actual = mf.compute(to_bars(time, ohlc), config).values[:, 11:]
    twin = reference.features(time, ohlc, **twin_settings(config))[:, 11:]
    for bar in range(90, 100):
        np.testing.assert_allclose(actual[bar], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(twin[bar], expected, rtol=0, atol=1e-12)
    # One bar earlier: A60 = (59 * 4 + 103) / 60 = 5.65, and bar 30 is the oldest of 60 highs.
    np.testing.assert_allclose(actual[89, [0, 3, 5]], [-1 / 5.65, 61 / 5.65, 4 / 5.65], atol=1e-6)


def test_returns() -> None:
    ohlc = np.array(
        [
            (2.0, 4.0, 1.0, 3.0),  # R 3: body 1, upper wick 1, lower wick 1
            (2.0, 8.0, 1.0, 6.0),  # R 7: body 4, upper wick 2, lower wick 1
            (4.0, 4.0, 4.0, 4.0),  # flat
        ]
    )
    log_2 = math.log(2)
    # z-scores: two values lie one deviation either side; three as written out below
    opens = 2 / math.sqrt(2)  # 2 2 4: mean 8/3, deviations -2/3 -2/3 4/3, variance 24/27
    highs = -4 / 3 / (math.sqrt(32) / 3)  # 4 8 4: mean 16/3, -4/3 8/3 -4/3, variance 96/27 = 32/9
    lows = 2 / math.sqrt(2)  # 1 1 4: mean 2, -1 -1 2, variance 2
    closes = -1 / 3 / math.sqrt(14 / 9)  # 3 6 4: mean 13/3, -4/3 5/3 -1/3, variance 42/27 = 14/9
    expected = [
        [0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0],
        [0, log_2, 0, log_2, 4 / 7, 2 / 7, 1 / 7, 0, 1, 0, 1],
        [log_2, -log_2, 2 * log_2, math.log(2 / 3), 0, 0, 0, opens, highs, lows, closes],
    ]
    check(ohlc, expected, family="returns")


def test_zscore_looks_back_twenty_bars() -> None:
    closes = np.array([5.0] + [7.0] * 20)
    ohlc = np.column_stack((closes,) * 4)
    # Bar 19 still sees the 5: mean 6.9, variance (1.9**2 + 19 * 0.1**2) / 20 = 0.19.
    expected = [0.1 / math.sqrt(0.19), 0.0]
    time = START_NS + np.arange(21) * MINUTE_NS
    config = mf.FeatureConfig(family="returns")
    features = mf.compute(to_bars(time, ohlc), config)
    twin = reference.features(time, ohlc, **twin_settings(config))
    np.testing.assert_allclose(features.values[19:, 10], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(twin[19:, 10], expected, rtol=0, atol=1e-12)
    assert features.valid.tolist() == [False] * 20 + [True]  # warm-up of 20 bars


def test_segments_end_at_long_gaps_only() -> None:
    minutes = np.array([0, 1, 2, 6, 7, 12, 13])  # gaps of 4 and 5 minutes
    time = START_NS + minutes * MINUTE_NS
    bars = to_bars(time, SIXTEEN[:7])
    for max_gap, gap_ns, expected in (
        (None, None, [[0, 7]]),
        ("4min", 4 * MINUTE_NS, [[0, 5], [5, 7]]),  # further apart than 4 minutes, not as far
        ("239s", 239 * 10**9, [[0, 3], [3, 5], [5, 7]]),
    ):
        config = mf.FeatureConfig(max_gap=max_gap)
        assert mf.compute(bars, config).segments.tolist() == expected
        assert reference.segments(time, max_gap_ns=gap_ns).tolist() == expected


def test_window_starts_of_the_twin() -> None:
    valid = np.array([False, True, True, True, True, True, False, True, True])
    segments = np.array([[0, 4], [4, 9]])
    # Bars 1 to 3 in the first segment; 4, 5 and 7, 8 in the second.
    assert reference.valid_window_starts(valid, segments, length=2).tolist() == [1, 2, 4, 7]
    assert reference.valid_window_starts(valid, segments, length=3).tolist() == [1]
