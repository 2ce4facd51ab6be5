"""The versions that a store is built with, which it keeps."""

from __future__ import annotations

import functools
import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Versions of whatever has a say in the bits of a store."""
    from moola_features import __version__

    return {"moola": __version__, "python": platform.python_version(), **_of_packages()}


@functools.cache
def _of_packages() -> dict[str, str]:
    """Versions of the packages below; reading them takes 20 ms, and they do not change."""
    packages = ("numpy", "numba", "zarr", "polars", "pyarrow")
    return {name: importlib.metadata.version(name) for name in packages}
