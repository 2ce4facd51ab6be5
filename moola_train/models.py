"""Models: an encoder and a list of heads, as their settings say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moola_train.encoder import Encoder
from moola_train.errors import ModelError
from moola_train.heads import HEADS, Batch, Head, HeadInput, HeadSettings
from moola_train.named import NamedModules, NamedParameters
from moola_train.pooling import Summary
from moola_train.presets import PRESETS, ModelSettings, Preset
from moola_train.targets import TargetPriors


class Model(nn.Module):
    """An encoder, its heads, and the log sigmas that weigh their losses.

    Parameters
    ----------
    settings
        What to build.

    Attributes
    ----------
    settings
        The same.
    encoder
        An `Encoder`.
    heads
        Its heads by name, in the order of the settings.
    log_sigmas
        One scalar a head, for ``balance.Kendall``; empty where the settings ask for none.
    mask_vector
        [F], or None.

    Examples
    --------
    >>> model = build("jade-compact")
    >>> outputs = model({"features": torch.zeros(105, 4, 11)})
    >>> {name: tuple(output.shape) for name, output in outputs.items()}
    {'type': (4, 3), 'pointers': (4, 2), 'span': (4, 105), 'countdown': (4, 105)}
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(
            num_features=settings.num_features,
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            window_length=settings.window_length,
            position=settings.position,
            attention_heads=settings.attention_heads,
            input_dropout=settings.input_dropout,
            layer_dropout=settings.layer_dropout,
            recurrent_dropout=settings.recurrent_dropout,
        )
        self.summary = self._make_summary()
        self.heads = NamedModules(self._make_heads())
        sigmas = {name: HEADS[name].log_sigma for name in settings.heads if settings.log_sigmas}
        self.log_sigmas = NamedParameters(
            {name: torch.tensor(start) for name, start in sigmas.items() if start is not None}
        )
        mask_vector = torch.zeros(settings.num_features)
        self.mask_vector = nn.Parameter(mask_vector) if settings.mask_vector else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Read a batch.

        Parameters
        ----------
        batch
            ``features`` float [T, B, F]; optionally ``valid`` bool [T, B], the bars that pools
            and attention may see, and ``mask`` bool [T, B], the bars that the mask vector
            replaces before anything reads them. Targets are passed over.

        Returns
        -------
        dict of Tensor
            Each head's output, float32, batch first.

        Raises
        ------
        ModelError
            Other features than the model's, or a mask for a model without a mask vector.
        """
        features = self._masked(batch)
        encoded = self.encoder(features, batch.get("valid"))
        if self.summary is None:
            summary = encoded.steps.new_empty(encoded.steps.shape[1], 0)
        else:
            summary = self.summary(encoded)
        outputs: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            outputs[name] = head(HeadInput(encoded, summary, outputs, features)).float()
        return outputs

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Each head's loss by name: scalars, not yet weighted."""
        return {name: head.loss(outputs[name], batch) for name, head in self._heads().items()}

    def num_labelled(self, batch: Batch) -> dict[str, Tensor]:
        """Number of items that each head's loss is a mean over, int64 scalars by name."""
        return {name: head.num_labelled(batch) for name, head in self._heads().items()}

    def initialise(self, priors: TargetPriors) -> None:
        """Let every head start at what the floor predicts; the encoder is left as it is."""
        with torch.no_grad():
            for head in self._heads().values():
                head.initialise(priors)

    @torch.no_grad()
    def decode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions by name.

        ``type_probability`` [B, C], ``start`` and ``end`` int64 [B] with -1 for none,
        ``countdown`` [B, T], and what else the heads say. The span comes from the head that knows
        it best: span scores, else CRF, else edges, else span, else pointers.
        """
        predictions: dict[str, Tensor] = {}
        for name, head in sorted(self._heads().items(), key=lambda item: item[1].span_priority):
            predictions.update(head.decode(outputs[name]))
        return predictions

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each head's output for one window."""
        settings = self.settings
        sizes = {"C": settings.num_classes, "T": settings.window_length, "F": settings.num_features}
        return {
            name: tuple(sizes[size] if isinstance(size, str) else size for size in head.shape)
            for name, head in self._heads().items()
        }

    def _heads(self) -> dict[str, Head]:
        return {name: head for name, head in self.heads.items() if isinstance(head, Head)}

    def _masked(self, batch: Batch) -> Tensor:
        features = batch["features"]
        if "mask" not in batch:
            return features
        if self.mask_vector is None:
            raise ModelError(
                "the batch has a mask but the model has no mask vector, so it would see what is "
                "masked; build it with mask_vector = true"
            )
        return torch.where(batch["mask"].unsqueeze(2), self.mask_vector, features)

    def _make_summary(self) -> Summary | None:
        settings = self.settings
        if not any(HEADS[name].reads_summary for name in settings.heads):
            return None
        return Summary(self.encoder.output_size, settings.summary_size, settings.pool)

    def _make_heads(self) -> dict[str, nn.Module]:
        settings = self.settings
        head_settings = HeadSettings(
            step_size=self.encoder.output_size,
            summary_size=0 if self.summary is None else self.summary.output_size,
            num_features=settings.num_features,
            num_classes=settings.num_classes,
            window_length=settings.window_length,
            dropout=settings.head_dropout,
            focal_gamma=settings.focal_gamma,
            class_weights=settings.class_weights,
            span_threshold=settings.span_threshold,
        )
        return {name: HEADS[name](head_settings) for name in settings.heads}


def build(name: str, **overrides: Any) -> Model:
    """Build a preset, with some of its settings replaced.

    Parameters
    ----------
    name
        A name in `PRESETS`.
    overrides
        Fields of `ModelSettings`.

    Raises
    ------
    ModelError
        No such preset or setting, or a value that is out of bounds.

    Examples
    --------
    >>> build("jade-compact", num_features=12).num_parameters
    97547
    """
    if name not in PRESETS:
        raise ModelError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    known = [field.name for field in dataclasses.fields(ModelSettings)]
    for setting in overrides:
        if setting not in known:
            raise ModelError(f"a model has no setting {setting!r}; it has {', '.join(known)}")
    return Model(dataclasses.replace(PRESETS[name].settings, **overrides))


@dataclass(frozen=True)
class Description:
    """A preset as a user sees it; in ``outputs``, B stands for the windows of a batch."""

    name: str
    what: str
    num_parameters: int
    num_encoder_tensors: int
    num_features: int
    outputs: dict[str, tuple[int | str, ...]]


def describe() -> tuple[Description, ...]:
    """Parameters and output shapes of every preset, read off models built for it.

    Examples
    --------
    >>> description = describe()[0]
    >>> description.name, description.num_parameters, description.outputs["span"]
    ('jade-compact', 96779, ('B', 105))
    """
    with torch.device("meta"):  # shapes without numbers
        return tuple(_describe(name, preset) for name, preset in PRESETS.items())


def _describe(name: str, preset: Preset) -> Description:
    model = Model(preset.settings)
    return Description(
        name=name,
        what=preset.what,
        num_parameters=model.num_parameters,
        num_encoder_tensors=len(list(model.encoder.parameters())),
        num_features=preset.settings.num_features,
        outputs={head: ("B", *shape) for head, shape in model.output_shapes.items()},
    )
