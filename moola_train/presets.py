"""What a model is made of, and the presets: settings that have a name."""

from __future__ import annotations

from dataclasses import dataclass

from moola_train.encoder import require_chances
from moola_train.errors import ModelError
from moola_train.heads import HEADS
from moola_train.pooling import Pool


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


@dataclass(frozen=True)
class Preset:
    """A model with a name: what it is for, and its settings."""

    what: str
    settings: ModelSettings


WITHOUT_LABELS = frozenset({"reconstruction", "expansion", "swing", "candle"})
"""Heads that learn from the bars alone, in pretraining."""

PRESETS: dict[str, Preset] = {
    "jade-compact": Preset(
        "small: type, pointers and countdown, and the span bar by bar",
        ModelSettings(
            # No dropout: with any of it the type collapsed on some draws of 174 labels, as
            # docs/benchmarks.md shows.
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
        ModelSettings(hidden_size=128, num_layers=2, heads=("reconstruction",), mask_vector=True),
    ),
    "multitask": Preset(
        "heads for the classes of every bar, which no objective teaches yet",
        ModelSettings(
            hidden_size=128,
            num_layers=2,
            layer_dropout=0.3,
            head_dropout=0.3,
            heads=("expansion", "swing", "candle"),
        ),
    ),
    "jade-span": Preset(
        "recommended: one distribution over all spans, and the type read where they are",
        ModelSettings(
            input_dropout=0.1, head_dropout=0.3, heads=("span_scores", "type_before_span")
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
