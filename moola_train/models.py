"""Models: an encoder and a list of heads. A preset is a set of settings with a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moola_train.encoder import Encoder, require_chances
from moola_train.errors import ModelError
from moola_train.heads import HEADS, Batch, Head, HeadInput, HeadSettings
from moola_train.pooling import Pool, Summary
from moola_train.targets import TargetPriors


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Everything that decides a model's shape; a checkpoint keeps it whole.

    Parameters
    ----------
    num_features
        Columns of the input, F.
    num_classes
        Types of a window, C.
    window_length
        Bars in a window, T.
    hidden_size, num_layers
        Units per direction and layers of the LSTM.
    position
        Whether to append t / (T - 1) to the input.
    attention_heads
        Heads of the self-attention behind the LSTM; 0 for none.
    input_dropout, layer_dropout, recurrent_dropout, head_dropout
        Dropout of the input, between LSTM layers, of units in the recurrence, and in the heads.
    pool, summary_size
        How the window's summary is made: ``"mean"`` or ``"last"``, and the width of the projection
        behind it; 0 for none.
    heads
        Names of the heads, in `HEADS`.
    log_sigmas
        Whether the model holds a log sigma for each head that has one.
    mask_vector
        Whether it holds a vector [F] that stands for masked bars.
    focal_gamma, class_weights
        Loss of the type heads: gamma 0 and no weights are cross-entropy, others focal.
    span_threshold
        Probability above which the span head counts a bar as inside.

    Examples
    --------
    >>> ModelSettings(hidden_size=64, heads=("type", "pointers")).num_features
    11
    """

    num_features: int = 11
    num_classes: int = 3
    window_length: int = 105
    hidden_size: int = 96
    num_layers: int = 1
    position: bool = False
    attention_heads: int = 0
    input_dropout: float = 0.0
    layer_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    head_dropout: float = 0.0
    pool: Pool = "mean"
    summary_size: int = 64
    heads: tuple[str, ...] = ("type",)
    log_sigmas: bool = True
    mask_vector: bool = False
    focal_gamma: float = 0.0
    class_weights: tuple[float, ...] = ()
    span_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("num_classes", "window_length"):
            if getattr(self, name) < 2:
                raise ModelError(f"{name} is {getattr(self, name)}; it must be at least 2")
        if self.pool not in ("mean", "last"):
            raise ModelError(f"pool is {self.pool!r}; choose mean or last")
        if self.summary_size < 0 or self.focal_gamma < 0:
            name = "summary_size" if self.summary_size < 0 else "focal_gamma"
            raise ModelError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 < self.span_threshold < 1:
            raise ModelError(
                f"span_threshold is {self.span_threshold}; it must lie between 0 and 1"
            )
        require_chances(head_dropout=self.head_dropout)
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "class_weights", tuple(self.class_weights))
        _check_heads(self.heads)


@dataclass(frozen=True)
class Preset:
    """A model with a name: what it is for, and its settings."""

    what: str
    settings: ModelSettings


PRESETS: dict[str, Preset] = {
    "jade-compact": Preset(
        "small, for a few hundred labelled windows: type, pointers, span and countdown",
        ModelSettings(
            input_dropout=0.3,
            head_dropout=0.6,
            heads=("type", "pointers", "span", "countdown"),
        ),
    ),
    "jade": Preset(
        "two wide layers, type and pointers straight from the pool",
        ModelSettings(
            hidden_size=128,
            num_layers=2,
            layer_dropout=0.65,
            head_dropout=0.65,
            summary_size=0,
            heads=("type", "pointers"),
        ),
    ),
    "jade-mae": Preset(
        "pretraining: reconstructs masked bars",
        ModelSettings(
            hidden_size=128, num_layers=2, heads=("reconstruction",), mask_vector=True
        ),
    ),
    "multitask": Preset(
        "pretraining: classes of every bar",
        ModelSettings(
            hidden_size=128,
            num_layers=2,
            layer_dropout=0.3,
            head_dropout=0.3,
            heads=("expansion", "swing", "candle"),
        ),
    ),
    "jade-span": Preset(
        "edges as distributions over time, and the type read where they are",
        ModelSettings(
            input_dropout=0.1, head_dropout=0.3, heads=("span", "edges", "type_at_span")
        ),
    ),
    "simple-lstm": Preset(
        "the simple one to beat: attention over the bars, type from the last",
        ModelSettings(
            num_features=4,
            num_classes=2,
            hidden_size=128,
            attention_heads=2,
            head_dropout=0.3,
            pool="last",
            summary_size=32,
            heads=("type",),
            log_sigmas=False,
        ),
    ),
}


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
        self.heads = nn.ModuleDict(self._make_heads())
        sigmas = {name: HEADS[name].log_sigma for name in settings.heads if settings.log_sigmas}
        self.log_sigmas = nn.ParameterDict(
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
        encoded = self.encoder(self._masked(batch), batch.get("valid"))
        if self.summary is None:
            summary = encoded.steps.new_empty(encoded.steps.shape[1], 0)
        else:
            summary = self.summary(encoded)
        outputs: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            outputs[name] = head(HeadInput(encoded, summary, outputs)).float()
        return outputs

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Each head's loss by name, unweighted scalars."""
        return {name: head.loss(outputs[name], batch) for name, head in self._heads().items()}

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
        it best: CRF, else edges, else span, else pointers.
        """
        predictions: dict[str, Tensor] = {}
        for name, head in sorted(self._heads().items(), key=lambda item: item[1].span_priority):
            predictions.update(head.decode(outputs[name]))
        return predictions

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

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
    """Parameters and output shapes of every preset, read off models that hold no memory.

    Examples
    --------
    >>> description = describe()[0]
    >>> description.name, description.num_parameters, description.outputs["span"]
    ('jade-compact', 96779, ('B', 105))
    """
    descriptions = []
    for name, preset in PRESETS.items():
        settings = preset.settings
        with torch.device("meta"), torch.no_grad():
            model = Model(settings).eval()
            batch = {"features": torch.empty(settings.window_length, 1, settings.num_features)}
            outputs = model(batch)
        shapes = {head: ("B", *output.shape[1:]) for head, output in outputs.items()}
        num_tensors = len(list(model.encoder.parameters()))
        descriptions.append(
            Description(
                name, preset.what, model.num_parameters, num_tensors, settings.num_features, shapes
            )
        )
    return tuple(descriptions)


def _check_heads(names: tuple[str, ...]) -> None:
    if not names:
        raise ModelError(f"heads is empty; name at least one of {', '.join(sorted(HEADS))}")
    for position, name in enumerate(names):
        if name not in HEADS:
            raise ModelError(f"there is no head {name!r}; choose of {', '.join(sorted(HEADS))}")
        if name in names[:position]:
            raise ModelError(f"heads names {name!r} twice; name each once")
        for needed in HEADS[name].needs:
            if needed not in names[:position]:
                raise ModelError(
                    f"the head {name!r} reads the head {needed!r}; put {needed!r} before it"
                )
