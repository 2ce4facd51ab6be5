"""Every setting of a run: one tree of frozen dataclasses, in and out of TOML.

A run keeps the resolved tree. Flags of the command line name its leaves, such as
``--set optimiser.learning_rate=3e-4``, and override the file.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from moola_train.errors import ConfigError

BALANCES = ("kendall", "running-mean", "fixed")
SCHEDULES = ("cosine", "plateau", "constant")
PRECISIONS = ("fp32", "tf32", "bf16")
PLACEMENTS = ("auto", "device", "host")
SHUFFLES = ("auto", "full", "blocks")
DEVICES = ("auto", "cpu", "cuda")
TYPE_LOSSES = ("cross-entropy", "focal")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Batches: their size, where windows are gathered, and how they are drawn.

    ``balanced`` draws labelled windows with replacement, each with weight 1 / count of its class.
    ``shuffle`` "auto" shuffles all windows where their table fits in memory, and blocks of them
    where it does not and they are gathered on the host.
    ``classes`` names the labels that are learnt, in the order of the model's outputs.
    """

    batch_size: int = 29
    placement: str = "auto"
    balanced: bool = False
    shuffle: str = "auto"
    classes: str = "consolidation,retracement"

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ConfigError(
                f"data.classes is {self.classes!r}; name two classes or more, with commas between"
            )
        whole("data.batch_size", self.batch_size, 1, 1 << 20)
        choice("data.placement", self.placement, PLACEMENTS)
        choice("data.shuffle", self.shuffle, SHUFFLES)
        if self.shuffle == "blocks" and self.balanced:
            raise ConfigError(
                "data.shuffle = 'blocks' with data.balanced = true: draws with replacement come "
                "from all windows; leave out one of them"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes one by one."""
        return class_names("data.classes", self.classes)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A preset, and what of it to override; None keeps the preset's own value."""

    preset: str = "jade-span"
    hidden: int | None = None
    layers: int | None = None
    input_dropout: float | None = None
    head_dropout: float | None = None
    recurrent_dropout: float = 0.0
    position: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "layers"):
            if getattr(self, name) is not None:
                whole(f"model.{name}", getattr(self, name), 1, 4096)
        for name in ("input_dropout", "head_dropout", "recurrent_dropout"):
            if getattr(self, name) is not None:
                number(f"model.{name}", getattr(self, name), 0.0, 0.95)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the terms are balanced, and what they are.

    ``class_weights`` are the focal loss's, numbers with commas between them in the order of
    ``data.classes``; 1 for each class where it is empty.
    """

    balance: str = "kendall"
    type_loss: str = "cross-entropy"
    focal_gamma: float = 2.0
    class_weights: str = ""
    pcgrad: bool = False

    def __post_init__(self) -> None:
        choice("loss.balance", self.balance, BALANCES)
        choice("loss.type_loss", self.type_loss, TYPE_LOSSES)
        number("loss.focal_gamma", self.focal_gamma, 0.0, 10.0)
        if self.type_loss != "focal":
            for name in ("focal_gamma", "class_weights"):
                _require_default(self, "loss", name, "set loss.type_loss = 'focal'")
        for weight in self.weights:
            number("loss.class_weights", weight, 1e-6, 1e6)

    @property
    def weights(self) -> tuple[float, ...]:
        """The classes' weights one by one; none where each is 1."""
        if not self.class_weights:
            return ()
        try:
            return tuple(float(part) for part in self.class_weights.split(","))
        except ValueError:
            raise ConfigError(
                f"loss.class_weights is {self.class_weights!r}; give numbers with commas between "
                "them, such as '1, 1.17'"
            ) from None


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW, gradient clipping and the learning rate's course."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    final_share: float = 0.05
    plateau_patience: int = 5
    plateau_factor: float = 0.5
    ema_decay: float = 0.0
    freeze_epochs: int = 0
    unfreeze_lr_scale: float = 0.3

    def __post_init__(self) -> None:
        number("optimiser.learning_rate", self.learning_rate, 1e-9, 10.0)
        number("optimiser.weight_decay", self.weight_decay, 0.0, 1.0)
        number("optimiser.clip_norm", self.clip_norm, 1e-6, 1e6)
        choice("optimiser.schedule", self.schedule, SCHEDULES)
        number("optimiser.warmup_epochs", self.warmup_epochs, 0.0, 1e4)
        number("optimiser.final_share", self.final_share, 0.0, 1.0)
        whole("optimiser.plateau_patience", self.plateau_patience, 1, 10_000)
        number("optimiser.plateau_factor", self.plateau_factor, 0.01, 0.99)
        number("optimiser.ema_decay", self.ema_decay, 0.0, 0.99999)
        whole("optimiser.freeze_epochs", self.freeze_epochs, 0, 10_000)
        number("optimiser.unfreeze_lr_scale", self.unfreeze_lr_scale, 1e-4, 1.0)
        for name, schedule in (
            ("final_share", "cosine"), ("plateau_patience", "plateau"),
            ("plateau_factor", "plateau"),
        ):  # fmt: skip
            if self.schedule != schedule:
                _require_default(self, "optimiser", name, f"set optimiser.schedule = '{schedule}'")
        if self.freeze_epochs == 0:
            remedy = "set optimiser.freeze_epochs (--freeze-epochs) to 1 or more"
            _require_default(self, "optimiser", "unfreeze_lr_scale", remedy)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Probability of each augmentation for each training window; 0 leaves it out.

    Window warp and time warp move bars; the expansion moves along, to the nearest bar. ``mirror``
    turns prices upside down. ``shift`` is no probability but a number of bars: every window of a
    store begins up to so many bars earlier or later, each time anew.
    """

    mirror: float = 0.0
    shift: int = 0
    jitter: float = 0.0
    magnitude_warp: float = 0.0
    window_warp: float = 0.0
    mixup: float = 0.0
    time_warp: float = 0.0

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if entry.name != "shift":
                number(f"augment.{entry.name}", getattr(self, entry.name), 0.0, 1.0)
        whole("augment.shift", self.shift, 0, 10_000)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, where, and what is watched.

    ``cuda_graph`` records a whole training step once and replays it; for one GPU.
    """

    epochs: int = 20
    max_steps: int | None = None
    max_minutes: float | None = None
    seed: int = 17
    device: str = "auto"
    precision: str = "fp32"
    deterministic: bool = False
    cuda_graph: bool = False
    watch: str = "loss"
    patience: int | None = None
    validate_epochs: int = 1
    checkpoint_steps: int = 200
    log_steps: int = 20

    def __post_init__(self) -> None:
        whole("loop.epochs", self.epochs, 1, 1_000_000)
        if self.max_steps is not None:
            whole("loop.max_steps", self.max_steps, 1, 1 << 40)
        if self.max_minutes is not None:
            number("loop.max_minutes", self.max_minutes, 1e-3, 1e6)
        whole("loop.seed", self.seed, 0, 2**63 - 1)
        choice("loop.device", self.device, DEVICES)
        choice("loop.precision", self.precision, PRECISIONS)
        if self.patience is not None:
            whole("loop.patience", self.patience, 1, 1_000_000)
        whole("loop.validate_epochs", self.validate_epochs, 1, 1_000_000)
        whole("loop.checkpoint_steps", self.checkpoint_steps, 1, 1 << 40)
        whole("loop.log_steps", self.log_steps, 1, 1 << 40)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run.

    Examples
    --------
    >>> config = RunConfig.from_dict({"data": {"batch_size": 64}})
    >>> config.data.batch_size, config.loop.seed
    (64, 17)
    >>> config.override({"optimiser.learning_rate": "3e-4"}).optimiser.learning_rate
    0.0003
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        count, classes = len(self.loss.weights), self.data.class_names
        if count not in (0, len(classes)):
            raise ConfigError(
                f"loss.class_weights has {count} numbers; data.classes has {len(classes)}, give "
                f"one for each of {', '.join(classes)}"
            )
        if self.loss.pcgrad and self.loss.balance == "kendall":
            raise ConfigError(
                "loss.pcgrad = true with loss.balance = 'kendall': PCGrad needs one gradient a "
                "term, weights that are learned from their sum have none; choose running-mean"
            )
        if self.loss.pcgrad and self.loop.cuda_graph:
            raise ConfigError(
                "loss.pcgrad = true with loop.cuda_graph = true: PCGrad projects in another order "
                "at every step, and a graph repeats one; set either to false"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make the tree of nested plain values, refusing names that it does not have."""
        sections: dict[str, Any] = {}
        known = typing.get_type_hints(cls)
        for name, settings in values.items():
            if name not in known:
                raise ConfigError(f"unknown section [{name}]; the sections are {', '.join(known)}")
            if not isinstance(settings, dict):
                raise ConfigError(f"{name} is {settings!r}; it must be a section [{name}]")
            sections[name] = _section(known[name], name, settings)
        return cls(**sections)

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read the tree from a TOML file."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"config {path}: {error.strerror}; give a readable file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"config {path} is not TOML: {error}") from error
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as nested plain values."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """Return the tree as TOML that :meth:`from_toml` reads back; None is left out."""
        lines = []
        for section, settings in self.to_dict().items():
            lines.append(f"[{section}]")
            lines += [
                f"{name} = {_toml(value)}" for name, value in settings.items() if value is not None
            ]
            lines.append("")
        return "\n".join(lines)

    def override(self, values: dict[str, Any]) -> Self:
        """Return the tree with leaves replaced, given as ``{"section.name": value or text}``."""
        tree = self.to_dict()
        for path, value in values.items():
            section, _, name = path.partition(".")
            if section not in tree or name not in tree[section]:
                names = [f"{s}.{n}" for s, settings in tree.items() for n in settings]
                raise ConfigError(f"unknown setting {path!r}; the settings are {', '.join(names)}")
            tree[section][name] = _parsed(value) if isinstance(value, str) else value
        return self.from_dict(tree)


def _section(kind: Any, section: str, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(
                f"unknown setting {section}.{name}; the settings are {', '.join(hints)}"
            )
        if not _fits(value, hints[name]):
            raise ConfigError(f"{section}.{name} is {value!r}; it must be {_word(hints[name])}")
    # A whole number where a float belongs is one; stored as such, so that TOML round-trips.
    settled = {
        name: float(value) if _is_float(hints[name]) and value is not None else value
        for name, value in values.items()
    }
    return kind(**settled)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_float(hint: Any) -> bool:
    return float in _options(hint)


def _fits(value: Any, hint: Any) -> bool:
    if value is None:
        return type(None) in _options(hint)
    if isinstance(value, bool):
        return bool in _options(hint)
    if isinstance(value, int) and _is_float(hint):
        return True
    return any(isinstance(value, option) for option in _options(hint) if option is not type(None))


def _word(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return " or ".join(words[option] for option in _options(hint) if option in words)


def _parsed(text: str) -> Any:
    """Read a flag's text as TOML would read a value, bare words as text."""
    if text.lower() in {"none", "null"}:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON lets through.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def class_names(name: str, text: str) -> tuple[str, ...]:
    """Read names with commas between them, refusing an empty one and one that stands there twice.

    Examples
    --------
    >>> class_names("data.classes", "consolidation, none")
    ('consolidation', 'none')
    """
    names = tuple(part.strip() for part in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(f"{name} is {text!r}; give names that differ, with commas between them")
    if "macro" in names:
        raise ConfigError(f"{name} is {text!r}; f1_macro is the mean of all classes, rename macro")
    return names


def choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _require_default(settings: Any, section: str, name: str, remedy: str) -> None:
    """Refuse a setting that, as the others are, would do nothing."""
    value, default = getattr(settings, name), type(settings).__dataclass_fields__[name].default
    if value != default:
        raise ConfigError(
            f"{section}.{name} is {value!r}, which does nothing; {remedy}, or drop it"
        )


def require_watch(config: RunConfig, known: Iterable[str]) -> None:
    """Refuse to watch a metric that no validation will have."""
    if config.loop.watch not in (names := tuple(known)):
        raise ConfigError(f"loop.watch is {config.loop.watch!r}; choose one of {', '.join(names)}")


def whole(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is no whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def number(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is no number in [low, high]."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
