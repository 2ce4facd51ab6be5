"""Objects below an address such as ``s3://bucket/prefix``; the only module that knows obstore."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from moola_features.errors import BarsNotFoundError, ConfigError, RemoteError, StoreError

_SCHEMES = ("s3", "gs", "az", "https", "http")
_STREAM_BYTES = 8 << 20


def is_remote(place: Any) -> bool:
    """Whether a path is an address in an object store.

    Examples
    --------
    >>> is_remote("s3://bucket/bars.parquet"), is_remote("file:///data/bars.parquet")
    (True, False)
    """
    return isinstance(place, str) and urlsplit(place).scheme in _SCHEMES and "://" in place


def local_path(place: str | Path) -> str | Path:
    """Return the path that a ``file://`` address leads to, and anything else as it is.

    Examples
    --------
    >>> local_path("file:///data/my%20bars.parquet").as_posix()
    '/data/my bars.parquet'
    """
    if not isinstance(place, str) or not place.startswith("file://"):
        return place
    parts = urlsplit(place)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{place}: names another machine; write file:///path")
    return Path(unquote(parts.path))


def require_local(store: Any, what: str) -> None:
    """Refuse an address, or a store that was opened at one, for what reads files.

    Raises
    ------
    StoreError
        A store that is not on this machine.
    """
    place = getattr(store, "path", store)
    if is_remote(place):
        raise StoreError(
            f"{place} is an address, which {what} does not take; copy what is there to this machine"
        )


class Objects:
    """Objects below an address, by names relative to it.

    Credentials and endpoints come from the environment, as the provider's own tools read them.

    Parameters
    ----------
    address
        Such as ``s3://bucket/universe.zarr``.

    Raises
    ------
    RemoteError
        Here and in every method: a store that cannot be reached, or that refuses.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._prefix = ""
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise RemoteError(
                f"{address} needs the extra 'remote'; run pip install 'moola[remote]'"
            ) from error
        with _told(self.address):
            self._store: Any = from_url(self.address)

    def below(self, name: str) -> Objects:
        """Return the objects below a name, which is taken as it is, signs of per cent and all."""
        found = copy.copy(self)
        found.address = f"{self.address}/{name}"
        found._prefix = f"{self._prefix}{name}/"
        return found

    def read(self, name: str) -> bytes | None:
        """Return what an object holds, None where there is none."""
        import obstore

        with _told(f"{self.address}/{name}"):
            try:
                return bytes(obstore.get(self._store, self._prefix + name).bytes())
            except FileNotFoundError:
                return None

    def fetch(self, name: str, path: Path) -> None:
        """Write what an object holds into a new file, piece by piece."""
        import obstore

        with _told(f"{self.address}/{name}"):
            try:
                pieces = obstore.get(self._store, self._prefix + name).stream(
                    min_chunk_size=_STREAM_BYTES
                )
            except FileNotFoundError:
                raise BarsNotFoundError(
                    f"{self.address}/{name}: no such object; give the address of a file of bars"
                ) from None
            with open(path, "xb") as file:
                for piece in pieces:
                    file.write(piece)

    def write(self, name: str, content: bytes | Path) -> None:
        """Make or replace an object."""
        import obstore

        with _told(f"{self.address}/{name}"):
            obstore.put(self._store, self._prefix + name, content)

    def remove(self, names: list[str]) -> None:
        """Remove objects, as far as they are there."""
        import obstore

        with _told(self.address):
            if names:
                obstore.delete(self._store, [self._prefix + name for name in names])

    def names(self) -> Iterator[str]:
        """Yield the names of all objects."""
        import obstore

        with _told(self.address):
            for page in obstore.list(self._store, prefix=self._prefix or None):
                for found in page:
                    yield str(found["path"]).removeprefix(self._prefix)


def split_address(address: str) -> tuple[str, str]:
    """Split an address into that of the folder and a name.

    Examples
    --------
    >>> split_address("s3://bucket/data/nq.parquet")
    ('s3://bucket/data', 'nq.parquet')
    """
    folder, _, name = address.rstrip("/").rpartition("/")
    if not name or folder.endswith("/"):
        raise ConfigError(f"{address}: names no object; give an address such as s3://bucket/name")
    return folder, name


def matching(address: str) -> list[str]:
    """List the addresses that a pattern, or an address that ends in a slash, stands for.

    Only the last part may hold ``*``, ``?`` or ``[]``.

    Raises
    ------
    BarsNotFoundError
        None matches.
    """
    folder, name = (address.rstrip("/"), "*") if address.endswith("/") else split_address(address)
    found = sorted(
        f"{folder}/{name_}"
        for name_ in Objects(folder).names()
        if "/" not in name_ and fnmatch.fnmatchcase(name_, name)
    )
    if not found:
        raise BarsNotFoundError(f"{address}: no object has a name like this; give another pattern")
    return found


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn the errors of the object store into our own, in one line."""
    import obstore.exceptions

    try:
        yield
    except (obstore.exceptions.BaseError, PermissionError, ValueError) as error:
        text = " ".join(str(error).split("Debug source")[0].split())
        text = text if len(text) <= 300 else f"{text[:300]}..."
        raise RemoteError(
            f"{what} cannot be reached: {text}; check the address, the network and the credentials"
        ) from error
