"""Encoders that outlive their run: weights as safetensors beside a card that says what they read.

``NAME.safetensors`` holds tensors only, ``NAME.json`` the card. Loading is strict, by name and
shape: a tensor is loaded, or refused with a reason, and none is left as it was by accident.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from moola_features.files import replaced_file
from moola_train.errors import CheckpointError, ModelError
from moola_train.models import Model

VERSION = 1
PREFIX = "encoder."  # how an encoder's tensors are called in a model


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """What an encoder was trained on and for.

    Parameters
    ----------
    objective
        What it was trained to do, such as ``"mae"``.
    columns
        Names of its input columns, in order.
    window_length
        Bars in a window.
    warm
        True if windows were cut from a store, so that features carry the history before them;
        False if each window started cold.
    data
        Fingerprint of the data, name to text.
    metrics
        What it reached, name to number.
    weights_sha256
        Of the file that the card belongs to; filled in when written.
    """

    objective: str
    columns: tuple[str, ...]
    window_length: int
    warm: bool
    data: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    weights_sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a card.

        Raises
        ------
        CheckpointError
            A card that is missing, damaged or of another version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); an encoder's weights come with a card "
                "of the same name, keep the two together"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{path} is no JSON: {error}; pretrain again") from error
        found = values.pop("version", None) if isinstance(values, dict) else None
        if found != VERSION:
            raise CheckpointError(f"{path} has version {found!r}, this moola reads {VERSION}")
        wanted: dict[str, Any] = {
            "objective": str, "columns": list, "window_length": int, "warm": bool,
            "data": dict, "metrics": dict, "weights_sha256": str,
        }  # fmt: skip
        for name, kind in wanted.items():
            if type(values.get(name)) is not kind:
                raise CheckpointError(
                    f"{path}: {name} is {values.get(name)!r}, not of type {kind.__name__}; "
                    "pretrain again"
                )
        kept = {name: values[name] for name in wanted}
        return cls(**{**kept, "columns": tuple(map(str, kept["columns"]))})

    def text(self) -> str:
        """The card as JSON."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"


@dataclass(frozen=True)
class TransferReport:
    """What became of each tensor of a file: loaded, or refused for a reason."""

    loaded: tuple[str, ...]
    refused: dict[str, str]

    def lines(self) -> list[str]:
        """The report as text, a tensor a line."""
        refused = [f"refused {name}: {reason}" for name, reason in self.refused.items()]
        return [f"loaded {name}" for name in self.loaded] + refused


def write_encoder(path: str | Path, model: Model, card: EncoderCard) -> EncoderCard:
    """Write a model's encoder, and its mask vector if it has one, with a card beside.

    Parameters
    ----------
    path
        A name that ends in ``.safetensors``; the card gets the same name with ``.json``.
    model
        The model.
    card
        What to say of it.

    Returns
    -------
    EncoderCard
        The card as written, with the digest of the weights.

    Raises
    ------
    CheckpointError
        Another suffix.
    OutputError
        A folder that is missing or cannot be written, a full disk.
    """
    from safetensors.torch import save

    target = encoder_path(path)
    kept = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(PREFIX) or name == "mask_vector"
    }
    content = save(kept)
    card = dataclasses.replace(card, weights_sha256=hashlib.sha256(content).hexdigest())
    # The card last: cut off in between, a new weights file and an old card do not match.
    for file, data in ((target, content), (card_path(target), card.text().encode())):
        with replaced_file(file) as beside:
            beside.write_bytes(data)
    return card


def read_encoder(path: str | Path) -> tuple[dict[str, Tensor], EncoderCard]:
    """Read an encoder file and its card; neither can run anything.

    Raises
    ------
    CheckpointError
        A file that is missing, damaged, no safetensors, or not the one its card belongs to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    source = encoder_path(path)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"encoder {source} cannot be read ({error.strerror}); give a file that "
            "`moola-train pretrain` wrote"
        ) from error
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise CheckpointError(
            f"encoder {source} is no safetensors file ({error}); give one that "
            "`moola-train pretrain` wrote"
        ) from error
    card = EncoderCard.read(card_path(source))
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise CheckpointError(
            f"encoder {source} is not the file that its card {card_path(source).name} belongs "
            "to; keep the two together, or pretrain again"
        )
    return tensors, card


def transfer(model: Model, tensors: Mapping[str, Tensor]) -> TransferReport:
    """Load an encoder's tensors into a model, all of them or none.

    Parameters
    ----------
    model
        Its encoder is overwritten in place; everything else stays.
    tensors
        By name, as `read_encoder` gives them, or the weights of a whole model.

    Returns
    -------
    TransferReport
        Tensors that are no encoder's, such as heads, are refused and no error.

    Raises
    ------
    ModelError
        A tensor of the encoder that is missing, unknown, of another shape or not finite. Nothing
        has been loaded then.

    Examples
    --------
    >>> from moola_train import models
    >>> pretrained = models.build("jade-mae")
    >>> report = transfer(models.build("jade"), pretrained.state_dict())
    >>> len(report.loaded), report.refused["mask_vector"]
    (16, 'no part of the encoder')
    """
    own = {PREFIX + name: tensor for name, tensor in model.encoder.state_dict().items()}
    # In the model's order: a safetensors file has none.
    others = [name for name in tensors if name.startswith(PREFIX) and name not in own]
    given = {name: tensors[name] for name in (*own, *others) if name in tensors}
    faults = [f"{name} is missing" for name in own if name not in given]
    for name, tensor in given.items():
        if name not in own:
            faults.append(f"{name} {_shape(tensor)} has no place in the model")
        elif tensor.shape != own[name].shape:
            faults.append(f"{name} is {_shape(tensor)}, the model's is {_shape(own[name])}")
        elif not bool(torch.isfinite(tensor).all()):
            faults.append(f"{name} holds values that are not finite")
    if faults:
        rest = f", and {len(faults) - 1} more tensors do not fit" if len(faults) > 1 else ""
        raise ModelError(
            f"the encoder does not fit: {faults[0]}{rest}; build the model with the encoder's "
            "hidden size, layers and columns"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    refused = {name: "no part of the encoder" for name in tensors if name not in given}
    return TransferReport(tuple(own), refused)


def check_card(card: EncoderCard, *, columns: tuple[str, ...], warm: bool, length: int) -> None:
    """Refuse an encoder that read other columns; warn of one that read other windows.

    Parameters
    ----------
    card
        The encoder's card.
    columns
        Names of the columns of this run, in order.
    warm
        Whether this run's windows come from a store.
    length
        Bars in a window of this run.

    Raises
    ------
    ModelError
        Columns that are missing, new, or in another order; the message names them.
    """
    if card.columns != columns:
        raise ModelError(
            f"the encoder read other columns: {_difference(card.columns, columns)}; use features "
            "with the encoder's columns, or pretrain on these"
        )
    if card.warm != warm:
        kinds = {True: "windows of a store", False: "windows from a cold start"}
        warnings.warn(
            f"the encoder was trained on {kinds[card.warm]} and now reads {kinds[warm]}, whose "
            "features are distributed differently; pretrain on the same kind",
            stacklevel=2,
        )
    if card.window_length != length:
        warnings.warn(
            f"the encoder was trained on windows of {card.window_length} bars and now reads "
            f"{length}; pretrain on the same length",
            stacklevel=2,
        )


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    parts = []
    if missing := [name for name in theirs if name not in ours]:
        parts.append(f"this run lacks {', '.join(missing)}")
    if new := [name for name in ours if name not in theirs]:
        parts.append(f"it never read {', '.join(new)}")
    if not parts:
        place = next(
            i for i, pair in enumerate(zip(theirs, ours, strict=False)) if len({*pair}) > 1
        )
        parts.append(f"column {place} was {theirs[place]} and is {ours[place]} here")
    return ", and ".join(parts)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def encoder_path(path: str | Path) -> Path:
    """Refuse a path that is no encoder file's, before anything is trained for it.

    Raises
    ------
    CheckpointError
        Another suffix than ``.safetensors``.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"encoder {target} must be a name that ends in .safetensors")
    return target


def card_path(weights: Path) -> Path:
    """Where the card of an encoder file is: ``NAME.json`` beside ``NAME.safetensors``."""
    return weights.with_suffix(".json")
