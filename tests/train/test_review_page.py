"""The page of a review in a real browser: what a person does, and what is on disk afterwards."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moola_features as mf
from moola_train.review.marks import Mark
from tests.train.browser import MISSING, Browser, running_browser
from tests.train.reviewing import make_store, process, rows_of, rule_labels, serving

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SHOWN = "document.documentElement.dataset.window"
MARGINS = 8, 66  # pixels beside the bars


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    return make_store(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.size(1280, 760)
        yield browser


@pytest.fixture
def browser(started: Browser) -> Iterator[Browser]:
    """The browser, which must have nothing to complain of."""
    yield started
    assert started.console() == []


def place_of(browser: Browser, bar: float, height: float = 0.5) -> tuple[float, float]:
    """Where the middle of a bar of the window is drawn, 40 bars before it being drawn too."""
    box = browser.run("document.getElementById('plot').getBoundingClientRect().toJSON()")
    width = box["width"] - sum(MARGINS)
    x = box["left"] + MARGINS[0] + (bar + 40 + 0.5) / 145 * width
    return x, box["top"] + height * box["height"]


def settled(browser: Browser, action: str, *keys: str) -> None:
    """Press keys and wait until the status line begins with a word."""
    browser.run("document.getElementById('status').textContent = ''")
    browser.press(*keys)
    browser.wait(f"document.getElementById('status').textContent.startsWith('{action}')")


def mark(browser: Browser, first: int, last: int, key: str) -> str:
    """Answer the window on show with the mouse and two keys; gives its name."""
    name: str = browser.run(SHOWN)
    browser.drag(place_of(browser, first), place_of(browser, last, 0.6))
    settled(browser, "saved", key, "Enter")
    return name


def spans(path: Path) -> dict[str, tuple[Any, Any, Any]]:
    return {
        name: (row["label"], row["expansion_start"], row["expansion_end"])
        for name, row in rows_of(path).items()
    }


def test_ten_windows_a_kill_and_the_rest(store: mf.Store, tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "hand.parquet"
    arguments = store.path, "--labels", path, "--sample", 14
    said: dict[str, tuple[Any, Any, Any]] = {}
    with process(*arguments) as review:
        browser.open(review.address)
        for turn in range(5):  # with the mouse
            first, last = 30 + 7 * turn, 36 + 8 * turn
            edges = (first, last) if turn % 2 else (last, first)
            said[mark(browser, *edges, "12"[turn % 2])] = (
                ("consolidation", "retracement")[turn % 2], first, last,
            )  # fmt: skip
        for turn in range(4):  # with keys alone: the crosshair begins in the middle, at bar 52
            name = browser.run(SHOWN)
            browser.press("ArrowRight", *(["ArrowLeft"] * turn), "a", *(["ArrowRight"] * 4))
            settled(browser, "saved", "x" if turn == 3 else "1", "Enter" if turn % 2 else " ")
            said[name] = (None if turn == 3 else "consolidation", 52 - turn, 56 - turn)
        said[browser.run(SHOWN)] = ("none", None, None)
        settled(browser, "saved", "0", "Enter")
        assert browser.text("#done") == "10 of 14"
        assert spans(path) == said
        name = browser.run(SHOWN)
        review.end(signal.SIGKILL)
        browser.drag(place_of(browser, 20), place_of(browser, 25))
        settled(browser, "not saved: the server does not answer", "2", "Enter")
        assert browser.run(SHOWN) == name  # what was said is still there
        assert all("ERR_CONNECTION" in message for message in browser.console())
        assert browser.text("#span").startswith("bars 20 to 25 · 6 bars")
    assert spans(path) == said
    with process(*arguments) as review:
        browser.open(review.address)
        assert browser.text("#done") == "10 of 14"
        assert browser.run(SHOWN) == name
        said[mark(browser, 20, 25, "2")] = ("retracement", 20, 25)
        settled(browser, "put aside", "s")
        for start in (50, 60):
            said[mark(browser, start, start + 9, "1")] = ("consolidation", start, start + 9)
        browser.wait("!document.getElementById('finished').hidden")
        assert browser.text("#finished p") == "13 answers are in hand.parquet, 1 skipped."
        browser.press("r")
        browser.wait(SHOWN)
        said[mark(browser, 5, 6, "1")] = ("consolidation", 5, 6)
        browser.wait("!document.getElementById('finished').hidden")
        assert browser.text("#done") == "14 of 14"
    assert spans(path) == said
    assert len(said) == 14


def test_a_mark_is_put_right_by_handles_and_keys(
    store: mf.Store, tmp_path: Path, browser: Browser
) -> None:
    with serving(store, tmp_path / "hand.parquet", sample=3) as server:
        browser.open(server.address)

        def shown() -> str:
            return browser.text("#span").partition(" ·")[0]

        browser.drag(place_of(browser, 40), place_of(browser, 50))
        assert shown() == "bars 40 to 50"
        browser.drag(place_of(browser, 50.5), place_of(browser, 60))  # its right edge
        assert shown() == "bars 40 to 60"
        browser.drag(place_of(browser, 39.5), place_of(browser, 45))
        assert shown() == "bars 45 to 60"
        browser.drag(place_of(browser, 44.5), place_of(browser, 70))  # past the other edge
        assert shown() == "bars 60 to 70"
        browser.press("ArrowLeft")
        assert shown() == "bars 60 to 69"
        browser.press("ArrowUp", "ArrowRight", "ArrowRight")
        assert shown() == "bars 62 to 69"
        browser.press("ArrowLeft", "ArrowLeft", held="Shift")
        assert shown() == "bars 52 to 69"
        browser.press("ArrowDown", *["ArrowLeft"] * 30)
        assert shown() == "bars 52 to 52"
        browser.press(*["ArrowRight"] * 11, held="Shift")
        assert shown() == "bars 52 to 104"  # no further than the window
        browser.move(place_of(browser, 80))
        browser.press("a")
        assert shown() == "bars 80 to 104"
        browser.move(place_of(browser, 77))
        browser.press("e")
        assert shown() == "bars 77 to 77"
        place = place_of(browser, 20)
        browser.drag(place, place)  # a click marks nothing, and wipes out nothing
        assert shown() == "bars 77 to 77"
        browser.press("Delete")
        assert shown() == "drag over the expansion"
        browser.drag(place_of(browser, 100), place_of(browser, 108))
        assert shown() == "bars 100 to 104"
        browser.drag(place_of(browser, 3), place_of(browser, -20))
        assert shown() == "bars 0 to 3"
        browser.press("n")
        assert shown() == "nothing expands here"


def test_suggestions_comments_undo_and_help(
    store: mf.Store, tmp_path: Path, browser: Browser
) -> None:
    labels = rule_labels(store, tmp_path / "rule.parquet")
    path = tmp_path / "rule.reviewed.parquet"
    with serving(store, labels) as server:
        browser.open(server.address)
        first = browser.run(SHOWN)
        settled(browser, "saved", "Enter")  # takes what is suggested
        assert spans(path)[first] == ("consolidation", 40, 47)
        assert rows_of(path)[first]["source"] == "hand"
        second = browser.run(SHOWN)
        browser.press("c", *"12 s", "Enter")  # no keys of the page while one writes
        settled(browser, "saved", "1", "Enter")
        assert rows_of(path)[second]["comment"] == "12 s"
        third = browser.run(SHOWN)
        settled(browser, "taken back", "u")
        settled(browser, "taken back", "u")
        assert browser.run(SHOWN) == first
        assert browser.text("#done") == "0 of 6"
        browser.press("?", "1", "Enter")
        assert browser.run(SHOWN) == first
        browser.press("?")
        assert browser.run("document.getElementById('help').open")
        browser.press("Escape")
        assert not browser.run("document.getElementById('help').open")
        browser.press("ArrowRight")
        settled(browser, "saved", "2", " ")
        assert spans(path)[first] == ("retracement", 40, 48)
        assert browser.run(SHOWN) == second
        assert browser.run("document.getElementById('comment').value") == "12 s"
        settled(browser, "saved", "Enter")
        assert browser.run(SHOWN) == third
        browser.press("Delete")
        settled(browser, "drag over the expansion, or press 0", "Enter")
        assert browser.text("#done") == "2 of 6"


def test_two_tabs_lose_nothing(store: mf.Store, tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "hand.parquet"
    with serving(store, path, sample=8) as server:
        browser.open(server.address)
        tabs = [browser.tab(), browser.new_tab(server.address)]
        said = {}
        for turn in range(3):
            for number, tab in enumerate(tabs):
                browser.to_tab(tab)
                start = 10 * turn + number
                said[mark(browser, start, start + 4, "1")] = ("consolidation", start, start + 4)
        assert len(said) == 6
        assert spans(path) == said
        # One tab is put to sleep; the other one is given its window and answers it.
        browser.to_tab(tabs[0])
        name, sleeper = (
            browser.run(f"document.documentElement.dataset.{x}") for x in ("window", "page")
        )
        browser.to_tab(tabs[1])
        said[mark(browser, 70, 75, "2")] = ("retracement", 70, 75)
        while browser.run(SHOWN) != name:
            server.session.leave({"page": sleeper})
            browser.press("Enter")
            time.sleep(0.05)
        said[mark(browser, 80, 85, "2")] = ("retracement", 80, 85)
        browser.to_tab(tabs[0])
        browser.wait("document.getElementById('status').textContent.startsWith('that window was')")
        assert browser.run(SHOWN) != name
        assert spans(path) == said
        assert browser.text("#done").startswith(f"{len(said)} of 8")


def test_an_answer_that_comes_while_one_is_being_saved_counts(
    store: mf.Store, tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = rule_labels(store, tmp_path / "rule.parquet")
    path = tmp_path / "rule.reviewed.parquet"
    let_go = threading.Event()
    with serving(store, labels) as server:
        change = server.session._record.change

        def slow(marks: dict[int, Mark]) -> None:
            let_go.wait(20)
            change(marks)

        monkeypatch.setattr(server.session._record, "change", slow)
        browser.open(server.address)
        first = browser.run(SHOWN)
        browser.press("2", "Enter")  # waits for the disk; the next one is on show
        second = browser.run(SHOWN)
        browser.press("Enter")  # twice by mistake: what is suggested for the next is not taken
        browser.press("2", "Enter")
        assert browser.run(SHOWN) == second != first
        let_go.set()
        browser.wait("document.getElementById('done').textContent === '2 of 6'")
        rows = rows_of(path)
        by_hand = {name: row["label"] for name, row in rows.items() if row["source"] == "hand"}
        assert by_hand == {first: "retracement", second: "retracement"}
        # Not if the window is another one by then.
        let_go.clear()
        third = browser.run(SHOWN)
        browser.press("1", "Enter", "Enter", "Enter")
        let_go.set()
        browser.wait("document.getElementById('done').textContent === '3 of 6'")
        browser.run("new Promise(requestAnimationFrame)")  # what was to come with it has come
        fourth = browser.run(SHOWN)
        assert fourth not in (first, second, third)
        assert rows_of(path)[fourth]["source"] != "hand"


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_fits_and_can_be_read(
    store: mf.Store, tmp_path: Path, browser: Browser, scheme: str, width: int
) -> None:
    labels = rule_labels(store, tmp_path / "rule.parquet")
    with serving(store, labels) as server:
        try:
            browser.size(width, 760)
            browser.colour_scheme(scheme)
            browser.open(server.address)
            root = "document.documentElement"
            assert browser.run(f"{root}.scrollWidth <= {width} && {root}.scrollHeight <= 760")
            assert browser.run("document.getElementById('plot').clientHeight") >= 300
            drawn = browser.run(
                "(() => { const c = document.getElementById('base'); const d = c.getContext('2d')"
                ".getImageData(0, 0, c.width, c.height).data; return d.filter(Boolean).length; })()"
            )
            assert drawn > 10_000
            for selector in ("#period", "#span", "#status", "button", "#done"):
                assert contrast(browser, selector) >= 4.5, selector
        finally:
            browser.size(1280, 760)
            browser.colour_scheme("dark")


def contrast(browser: Browser, selector: str) -> float:
    """Contrast of text to what lies behind it, as WCAG 2 defines it."""
    colours = browser.run(
        f"""(() => {{
          const own = document.querySelector('{selector}');
          let behind = own;
          const clear = (c) => c === 'rgba(0, 0, 0, 0)';
          while (clear(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
          const colours = [getComputedStyle(own).color, getComputedStyle(behind).backgroundColor];
          return colours.map((text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number));
        }})()"""
    )
    lightness = []
    for colour in colours:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (value / 255 for value in colour)
        ]
        lightness.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    high, low = max(lightness), min(lightness)
    return float((high + 0.05) / (low + 0.05))


def test_the_next_window_is_there_at_once(
    store: mf.Store, tmp_path: Path, browser: Browser
) -> None:
    with serving(store, tmp_path / "hand.parquet", sample=12) as server:
        browser.open(server.address)
        drawn, saved = [], []
        for _ in range(8):
            mark(browser, 40, 45, "1")
            drawn.append(float(browser.run("document.documentElement.dataset.drawMs")))
            saved.append(float(browser.run("document.documentElement.dataset.savedMs")))
            time.sleep(0.02)
        # Far more than they take, far less than anybody would wait for.
        assert sorted(drawn)[4] < 100
        assert sorted(saved)[4] < 500
