"""Settings of a pretraining run: those of any run, and what is learnt without labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from moola_train.config import DataConfig, LoopConfig, ModelConfig, RunConfig, choice, number, whole
from moola_train.errors import ConfigError

OBJECTIVES = ("mae",)
MASKINGS = ("random", "block", "patch")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """The objective, its windows, and the share of them, the last in time, that validates.

    ``window_length`` None takes the store's own.
    """

    objective: str = "mae"
    masking: str = "random"
    mask_ratio: float = 0.15
    window_length: int | None = None
    stride: int = 52
    val_share: float = 0.1

    def __post_init__(self) -> None:
        choice("pretrain.objective", self.objective, OBJECTIVES)
        choice("pretrain.masking", self.masking, MASKINGS)
        number("pretrain.mask_ratio", self.mask_ratio, 0.01, 0.9)
        if self.window_length is not None:
            whole("pretrain.window_length", self.window_length, 2, 100_000)
        whole("pretrain.stride", self.stride, 1, 1_000_000)
        number("pretrain.val_share", self.val_share, 0.001, 0.5)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """All settings of a pretraining run.

    Examples
    --------
    >>> config = PretrainConfig.from_dict({"model": {"hidden": 96}, "pretrain": {"stride": 10}})
    >>> config.model.preset, config.data.batch_size, config.pretrain.stride
    ('jade-mae', 1024, 10)
    """

    data: DataConfig = field(default_factory=lambda: DataConfig(batch_size=1024))
    model: ModelConfig = field(default_factory=lambda: ModelConfig(preset="jade-mae"))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=50))
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = {
            "data.balanced = true": self.data.balanced,
            "loss.type_loss = 'focal'": self.loss.type_loss == "focal",
        }
        for setting, is_asked in asked.items():
            if is_asked:
                raise ConfigError(
                    f"{setting} does nothing in pretraining, which knows no types; drop it"
                )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make the tree of nested plain values; what a section leaves out has its default here."""
        defaults = cls().to_dict()
        filled = {
            name: {**defaults.get(name, {}), **settings} if isinstance(settings, dict) else settings
            for name, settings in values.items()
        }
        return super().from_dict(filled)
