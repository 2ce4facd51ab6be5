"""Which instruments a build is asked for: files, folders and patterns to names."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moola_features.bars.sources import BarSource
from moola_features.errors import BarsError, BarsNotFoundError
from moola_features.remote.objects import is_remote, local_path, matching, split_address

_KINDS = (".parquet", ".pq", ".csv", ".tsv", ".txt", ".arrow", ".feather", ".ipc")
_PACKED = (".gz", ".bz2", ".zst", ".lz4")


@dataclass(frozen=True)
class Member:
    """One instrument of a universe.

    Attributes
    ----------
    symbol
        Its name in the universe.
    source
        Its bars: the path of a file, or a source that is open.
    name
        What its store calls the input: the file alone, where that lies is nobody else's business.
    """

    symbol: str
    source: Any
    name: str


@dataclass(frozen=True)
class Input:
    """The instruments that a universe is to hold.

    Attributes
    ----------
    members
        One for each.
    source
        What the universe tells of its input.
    opened
        The source, where one holds all of them; None where each has a file of its own.
    """

    members: list[Member]
    source: dict[str, Any]
    opened: BarSource | None = None


def names_files(source: Any) -> bool:
    """Whether a source stands for any number of files: a list of paths, a folder, a pattern.

    Raises
    ------
    BarsNotFoundError
        Empty text, which a path would take for the current folder.
    """
    given = source if isinstance(source, list | tuple) else [source]
    if any(isinstance(one, str) and not one.strip() for one in given):
        raise BarsNotFoundError("a path of bars is empty text; name a file, a folder or a pattern")
    if isinstance(source, list | tuple):
        return bool(source) and all(isinstance(one, str | Path) for one in source)
    if not isinstance(source, str | Path):
        return False
    place = local_path(source)
    if is_remote(place):
        return str(place).endswith("/") or glob.has_magic(split_address(str(place))[1])
    source, path = place, Path(place)
    return path.is_dir() or (glob.has_magic(str(source)) and not path.exists())


def files_of(source: Any) -> Input:
    """List the instruments that files, folders and patterns stand for, in order of their names.

    Parameters
    ----------
    source
        A path, a pattern, or a list of them. Of a folder, whatever in it is named like bars.

    Returns
    -------
    Input
        Each named by its file's name without suffix.

    Raises
    ------
    BarsNotFoundError
        A pattern or a folder without files.
    BarsError
        Two files of one name.
    """
    parts: Sequence[Any] = source if isinstance(source, list | tuple) else [source]
    by_symbol: dict[str, Path | str] = {}
    for path in dict.fromkeys(path for part in parts for path in _files(str(part))):
        symbol = symbol_of(path)
        other = by_symbol.setdefault(symbol, path)
        if other != path:
            raise BarsError(
                f"{other} and {path} would both be instrument {symbol!r}; rename one, or build "
                "them into universes of their own"
            )
    members = [Member(symbol, path, Path(path).name) for symbol, path in by_symbol.items()]
    members.sort(key=lambda member: member.symbol)
    return Input(members, {"source": "several files"})


def symbol_of(path: Path | str) -> str:
    """Name an instrument by its file.

    Examples
    --------
    >>> symbol_of(Path("data/BRK.B.csv.gz")), symbol_of(Path("ETHUSD.parquet"))
    ('BRK.B', 'ETHUSD')
    """
    name = Path(path).name
    for suffixes in (_PACKED, _KINDS):
        suffix = next((one for one in suffixes if name.lower().endswith(one)), "")
        if len(suffix) < len(name):
            name = name[: len(name) - len(suffix)]
    return name


def _files(text: str) -> Sequence[Path | str]:
    place = local_path(text)
    if is_remote(place):
        return matching(text) if names_files(text) else [text]
    text, path = str(place), Path(place)
    if path.is_dir():
        found = sorted(entry for entry in _entries(path) if _is_named_like_bars(entry))
        if not found:
            kinds = ", ".join(_KINDS)
            raise BarsNotFoundError(f"{path}: no file in this folder ends in one of {kinds}")
        return found
    if path.exists() or not glob.has_magic(text):
        return [path]  # a file that is missing is reported like any other that will not do
    found = sorted(Path(name) for name in glob.glob(text, recursive=True))
    found = [entry for entry in found if entry.is_file()]
    if not found:
        raise BarsNotFoundError(f"{text}: no file has a name like this; give another pattern")
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise BarsNotFoundError(
            f"{folder} cannot be listed: {what}; name a folder that you may read"
        ) from error


def _is_named_like_bars(path: Path) -> bool:
    name = path.name.lower()
    packed = next((suffix for suffix in _PACKED if name.endswith(suffix)), "")
    kind = name.removesuffix(packed).endswith(_KINDS)
    return kind and not name.startswith(".") and path.is_file()
