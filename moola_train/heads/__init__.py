"""Heads: one file each, found by looking into this folder."""

from __future__ import annotations

import importlib
import pkgutil

from moola_train.heads.base import HEADS, Batch, Head, HeadInput, HeadSettings, register

__all__ = ["HEADS", "Batch", "Head", "HeadInput", "HeadSettings", "discover", "register"]


def discover() -> None:
    """Import every file of this folder; each registers its heads."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


discover()
