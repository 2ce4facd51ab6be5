"""The server that pages of a review speak to: loopback only, and to its own pages only.

Its address holds a token that nobody can guess. Requests must name that address as their host, so
a page elsewhere that makes a browser resolve its own name to this machine is refused, and what
changes something must come from this address and be JSON, which no form of another page can send.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socketserver
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from moola_features.chart import theme
from moola_features.errors import MoolaError
from moola_train.errors import ConfigError
from moola_train.review.marks import RequestError
from moola_train.review.session import Session

ADDRESS = "127.0.0.1"
MAX_BODY = 16_384
_ASSETS = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "chart.js": ("chart.js", "text/javascript"),
    "marking.js": ("marking.js", "text/javascript"),
}
_ACTIONS = ("next", "answer", "skip", "undo", "reopen", "state", "leave")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves the page of a review and what it asks for.

    Parameters
    ----------
    session
        What the pages share.
    settings
        What a page is told once: names of the classes, of the store and of the labels file.
    port
        The port; any free one when 0.

    Raises
    ------
    ConfigError
        A port that cannot be had.

    Attributes
    ----------
    address
        What to open in a browser.
    """

    daemon_threads = True

    def __init__(self, session: Session, settings: dict[str, Any], port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.assets = _read_assets(settings)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"port is {port}: {reason.lower()}; choose another one, or leave it out"
            ) from error
        number = self.server_address[1]
        self.hosts = tuple(f"{name}:{number}" for name in (ADDRESS, "localhost"))
        self.address = f"http://{self.hosts[0]}/{self.token}/"

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that hung up."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version = "moola"
    sys_version = ""
    timeout = 120  # seconds that a connection may be silent
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body leave together

    def do_GET(self) -> None:
        """Send a file of the page."""
        try:
            content, kind = self.server.assets[self._path()]
        except KeyError:
            self._refuse(RequestError(HTTPStatus.NOT_FOUND, "there is no such page"))
        except RequestError as error:
            self._refuse(error)
        else:
            self._send(HTTPStatus.OK, content, f"{kind}; charset=utf-8")

    def do_POST(self) -> None:
        """Do what a page asks for."""
        try:
            reply = self._act()
        except RequestError as error:
            self._refuse(error)
        except (MoolaError, OSError) as error:
            self._refuse(RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, f"not saved: {error}"))
        else:
            status = HTTPStatus.CONFLICT if "error" in reply else HTTPStatus.OK
            self._send_json(status, reply)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the terminal free of a line for every request."""

    def _act(self) -> dict[str, Any]:
        folder, _, name = self._path().partition("/")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise RequestError(HTTPStatus.FORBIDDEN, f"origin {origin!r} is not this page")
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
        request = self._body()
        if folder != "api" or name not in _ACTIONS:
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is nothing called {name[:60]!r}")
        reply: dict[str, Any] = getattr(self.server.session, name)(request)
        return reply

    def _path(self) -> str:
        """Return the path below the token, once host and token are right."""
        host = self.headers.get("Host", "")
        if host not in self.server.hosts:
            raise RequestError(
                HTTPStatus.FORBIDDEN, f"host is {host[:60]!r}; open the address that was printed"
            )
        token, _, path = self.path.split("?")[0].removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            message = "the token is not that of this review; open the address that was printed"
            raise RequestError(HTTPStatus.FORBIDDEN, message)
        return path

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "say how long the request is")
        if int(length) > MAX_BODY:
            message = f"the request has {int(length):,} bytes; {MAX_BODY:,} fit"
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        try:
            request = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RequestError(HTTPStatus.BAD_REQUEST, "the request is no JSON") from None
        if not isinstance(request, dict):
            raise RequestError(HTTPStatus.BAD_REQUEST, "the request is no JSON object")
        return request

    def _refuse(self, error: RequestError) -> None:
        # What was not read of the request would be taken for the next one.
        self.close_connection = True
        self._send_json(error.status, {"error": str(error)})

    def _send_json(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value, separators=(",", ":")).encode()
        self._send(status, content, "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def _read_assets(settings: dict[str, Any]) -> dict[str, tuple[bytes, str]]:
    folder = files("moola_train.review")
    assets = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _ASSETS.items()}
    assets["settings.json"] = (json.dumps(settings).encode(), "application/json")
    colours = ";".join(f"--{key.replace('_', '-')}:{c}" for key, c in theme.COLOURS.items())
    assets["palette.css"] = (f":root{{{colours}}}".encode(), "text/css")
    return assets
