"""Inputs brought to this machine, and finished stores brought to an object store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moola_features.remote.objects import Objects, is_remote, local_path, split_address
from moola_features.store.layout import METADATA

_AT_ONCE = 8  # uploads: more than that fill no faster line


@contextlib.contextmanager
def at_hand(source: Any) -> Iterator[Any]:
    """Give a source that can be opened: of a remote one a copy on the disk, for as long as needed.

    It is fetched once and whole: any format can be read from it, and its digest is that of the
    very bytes that are built.
    """
    if not is_remote(source):
        yield local_path(source)
        return
    folder, name = split_address(source)
    with tempfile.TemporaryDirectory(prefix="moola-") as scratch:
        path = Path(scratch) / name
        Objects(folder).fetch(name, path)
        yield path


def publish(folder: Path, objects: Objects) -> None:
    """Bring a finished group to an object store; for a reader it is there at once, or not at all.

    Its mark goes first and comes last. Whoever has an earlier store of the same address open
    notices by the checksums, and mixes nothing.

    Parameters
    ----------
    folder
        The group.
    objects
        Where it goes; whatever else lies there is removed.
    """
    old = set(objects.names())
    objects.remove([METADATA])
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    mark = names.pop(METADATA)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="moola-publish") as threads:
        for _ in threads.map(objects.write, names, names.values()):
            pass
    objects.write(METADATA, mark.read_bytes())
    objects.remove(sorted(old - names.keys() - {METADATA}))
