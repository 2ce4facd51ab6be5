"""Scale-free features of one-minute bars: computed fast, stored once, read as windows.

Nothing heavy is imported, and nothing compiled, until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moola_features.bars import Bars
    from moola_features.bars.sources import read_bars
    from moola_features.builder import build
    from moola_features.building.report import BuildReport
    from moola_features.config import FeatureConfig
    from moola_features.engine import Features, Swings, compute, swings, transform_windows
    from moola_features.errors import MoolaError
    from moola_features.spec import Column, columns
    from moola_features.store import Store, Universe, open_store
    from moola_features.stream import Stream
    from moola_features.synth import SyntheticMarket, synthesise
    from moola_features.verification import Verification, verify
    from moola_features.windows import Windows

_HOMES = {
    "Bars": "bars",
    "BuildReport": "building.report", "build": "builder",
    "FeatureConfig": "config",
    "Features": "engine", "Swings": "engine", "compute": "engine", "swings": "engine",
    "transform_windows": "engine",
    "MoolaError": "errors",
    "read_bars": "bars.sources",
    "Column": "spec", "columns": "spec",
    "Store": "store", "Universe": "store", "open_store": "store",
    "Stream": "stream",
    "SyntheticMarket": "synth", "synthesise": "synth",
    "Verification": "verification", "verify": "verification",
    "Windows": "windows",
}  # fmt: skip

__all__ = [
    "Bars", "BuildReport", "Column", "FeatureConfig", "Features", "MoolaError", "Store", "Stream",
    "Swings", "SyntheticMarket", "Universe", "Verification", "Windows", "build", "columns",
    "compute", "open_store", "read_bars", "swings", "synthesise", "transform_windows", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'moola_features' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"moola_features.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
