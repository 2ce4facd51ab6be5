"""Words and numbers that an evaluation and what shows it agree on."""

from __future__ import annotations

PARTS = ("val", "test")
CLASS, VOLATILITY = "class", "volatility"
TERCILES = ("quiet", "middle", "wild")
BLOCK_BARS = 240  # bars that the permutation control shuffles among themselves

MEANING = (
    "Recognition, not forecasting: labels are made in hindsight, and a good score says that the "
    "model locates and measures what happened in a window, not that it knows what comes next."
)
