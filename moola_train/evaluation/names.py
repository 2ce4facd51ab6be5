"""Words and numbers that an evaluation and what shows it agree on."""

from __future__ import annotations

PARTS = ("val", "test")
CLASS, VOLATILITY = "class", "volatility"
TERCILES = ("quiet", "middle", "wild")
BLOCK_BARS = 240  # bars that the permutation control shuffles among themselves
