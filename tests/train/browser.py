"""A browser without a window, driven through the WebDriver protocol of Debian's chromium-driver."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
MISSING = (
    "no chromium and chromedriver here; apt-get install chromium chromium-driver"
    if CHROMIUM is None or DRIVER is None
    else ""
)
KEYS = {
    "Enter": "\ue007", "Escape": "\ue00c", "Delete": "\ue017", "Tab": "\ue004", "Shift": "\ue008",
    "ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015",
}  # fmt: skip
_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--hide-scrollbars",
)  # fmt: skip
_STARTED = re.compile(r"started successfully on port (\d+)")


class Browser:
    """One browser; every tab of it is a page of its own."""

    def __init__(self, port: int, profile: Path) -> None:
        self._base = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self._base += "/" + self._send("POST", "", wanted)["sessionId"]

    def open(self, address: str) -> None:
        self._send("POST", "/url", {"url": address})
        self.wait("document.documentElement.dataset.ready === 'true'")

    def new_tab(self, address: str) -> str:
        """Open a page beside the others; gives the name to come back to it by."""
        handle: str = self._send("POST", "/window/new", {"type": "tab"})["handle"]
        self.to_tab(handle)
        self.open(address)
        return handle

    def tab(self) -> str:
        handle: str = self._send("GET", "/window")
        return handle

    def to_tab(self, handle: str) -> None:
        self._send("POST", "/window", {"handle": handle})

    def run(self, script: str) -> Any:
        """Evaluate an expression on the page."""
        return self._send("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Wait until an expression on the page holds."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition}: {self.run('document.body.innerText')}"
            time.sleep(0.01)

    def text(self, selector: str) -> str:
        found: str = self.run(f"document.querySelector({json.dumps(selector)}).textContent")
        return found

    def press(self, *names: str, held: str | None = None) -> None:
        """Press keys one after the other, while another one may be held."""
        downs = [{"type": "keyDown", "value": KEYS[held]}] if held else []
        ups = [{"type": "keyUp", "value": KEYS[held]}] if held else []
        taps = [
            {"type": kind, "value": KEYS.get(name, name)}
            for name in names
            for kind in ("keyDown", "keyUp")
        ]
        self._act({"type": "key", "id": "keys", "actions": [*downs, *taps, *ups]})

    def drag(
        self, start: tuple[float, float], end: tuple[float, float], *, up: bool = True
    ) -> None:
        """Drag with the mouse; without `up` the button stays down."""
        moves = [_move(start), {"type": "pointerDown", "button": 0}]
        moves += [_move(((start[0] + end[0]) / 2, end[1])), _move(end)]
        self.pointer(*moves, *([{"type": "pointerUp", "button": 0}] if up else []))

    def move(self, place: tuple[float, float]) -> None:
        self.pointer(_move(place))

    def release(self) -> None:
        self.pointer({"type": "pointerUp", "button": 0})

    def pointer(self, *actions: dict[str, Any]) -> None:
        mouse = {"pointerType": "mouse"}
        self._act({"type": "pointer", "id": "mouse", "parameters": mouse, "actions": [*actions]})

    def devtools(self, command: str, **values: Any) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": values})

    def size(self, width: int, height: int, ratio: float = 1.0) -> None:
        """Set the size of the page and how many pixels the screen has for each of its own."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=ratio, mobile=False,
        )  # fmt: skip

    def colour_scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def console(self) -> list[str]:
        """Errors and warnings that the page has written."""
        entries = self._send("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def close(self) -> None:
        self._send("DELETE", "")

    def _act(self, *sources: dict[str, Any]) -> None:
        self._send("POST", "/actions", {"actions": [*sources]})

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None


def _move(place: tuple[float, float]) -> dict[str, Any]:
    x, y = place
    return {"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)}


@contextlib.contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    """Start a driver and a browser whose profile lies in this folder."""
    assert DRIVER is not None
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        lines = iter(driver.stdout.readline, "")
        port = next(int(found[1]) for line in lines if (found := _STARTED.search(line)))
        browser = Browser(port, folder / "profile")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(timeout=20)
        driver.stdout.close()
