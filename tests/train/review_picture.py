"""The picture of the review page in docs/: python -m tests.train.review_picture docs/review.png."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import moola_features as mf
from tests.conftest import SAMPLE
from tests.train.browser import running_browser
from tests.train.reviewing import serving


def draw(output: Path) -> None:
    """Take a picture of a window of the sample that is half answered."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mf.build(mf.read_bars(SAMPLE), folder / "sample.zarr")
        store = mf.open_store(folder / "sample.zarr")
        times = {"start": "2020-01-16 02:20", "stop": "2020-01-16 04:20"}
        review = serving(store, folder / "hand.parquet", stride=1, **times)
        with review as server, running_browser(folder) as browser:
            browser.size(1280, 720, 1.5)
            browser.colour_scheme("dark")
            browser.open(server.address)
            browser.drag((661, 300), (737, 260))
            browser.press("2")
            browser.screenshot(output)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
