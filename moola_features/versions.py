"""The versions that a store is built with, which it keeps."""

from __future__ import annotations

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Versions of whatever has a say in the bits of a store."""
    from moola_features import __version__

    packages = ("numpy", "numba", "zarr", "polars", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"moola": __version__, "python": platform.python_version(), **found}
