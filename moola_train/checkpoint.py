"""Checkpoints: tensors and plain types, written in one step, read without running anything."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moola_features.files import replaced_file
from moola_train.errors import CheckpointError

VERSION = 1

# What PyTorch raises for a file that is cut off, no checkpoint, or one that would run code.
_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError,
    KeyError, IndexError, AttributeError, TypeError, OverflowError, AssertionError,
)  # fmt: skip


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a reader finds the old one or the new one.

    Parameters
    ----------
    path
        The file.
    state
        Tensors and plain types, nested in dicts and lists.

    Raises
    ------
    OutputError
        A full disk, no permission.
    """
    # Not straight into the file: PyTorch makes a RuntimeError without a reason of a full disk.
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    with replaced_file(path) as beside:
        beside.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Only tensors and plain types are admitted: a file that would run code is refused unrun.

    Raises
    ------
    CheckpointError
        No such file, one that is cut off or hostile, or one of another version.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}; train first, or name another") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}; name a checkpoint file"
        ) from error
    except _UNREADABLE as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} is no checkpoint of moola: {first[:200]}; delete it, or name another"
        ) from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path} has version {found!r}, this moola reads {VERSION}; train again"
        )
    return state


def require_same_model(state: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another model.

    Parameters
    ----------
    state
        A checkpoint, with ``preset`` and ``settings`` among its parts.
    wanted
        The preset's name and the settings of the model that is to go on.
    path
        Where the checkpoint was read, for the message.

    Raises
    ------
    CheckpointError
        The first setting that differs.
    """
    settings = state.get("settings")
    saved = {"preset": state.get("preset"), **(settings if isinstance(settings, dict) else {})}
    for name, value in wanted.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{path} is of a model with {name} = {saved.get(name)!r}, not {value!r}; give the "
                "settings that it was trained with, or name another run folder"
            )


def require_same_shapes(found: object, wanted: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not, by name and shape, those of the model.

    Parameters
    ----------
    found
        What a checkpoint holds as the model's weights.
    wanted
        The model's own.
    path
        Where the checkpoint was read, for the message.

    Raises
    ------
    CheckpointError
        The first tensor that differs.
    """
    tensors = found if isinstance(found, dict) else {}
    for name in (*wanted, *tensors):
        shapes = [
            list(part[name].shape) if isinstance(part.get(name), Tensor) else None
            for part in (tensors, wanted)
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path}: {name} is {shapes[0]} there and {shapes[1]} in the model; put the run's "
                "own file back, or train again in another run folder"
            )
