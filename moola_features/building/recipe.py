"""What is to be made of any source of bars: what all instruments of a build have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from moola_features.bars import Bars
from moola_features.bars.checks import DroppedBars
from moola_features.bars.columns import BarColumns, require_column_map
from moola_features.config import FeatureConfig


class Source(Protocol):
    """One instrument's bars as a build reads them; :class:`BarSource` is one."""

    description: str
    columns: BarColumns
    batch_bars: int
    decoding_bytes: int
    num_rows: int | None
    rows_read: int
    dropped: dict[str | None, DroppedBars]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols that the source names."""

    def batches(self) -> Iterator[tuple[str | None, Bars]]:
        """Yield checked bars in order."""

    def sha256(self) -> str:
        """Digest of the input."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a build, apart from its input and its target.

    Attributes
    ----------
    config
        What to compute.
    column_map
        Column by field where names are not recognised.
    on_bad_bars
        ``"error"`` or ``"drop"``.
    force
        Whether a store of another input or configuration is replaced.
    append
        Whether bars go behind those that stand.

    Raises
    ------
    ConfigError
        A ``column_map`` that fits no input.
    """

    config: FeatureConfig
    column_map: Mapping[str, str] | None = None
    on_bad_bars: str = "error"
    force: bool = False
    append: bool = False

    def __post_init__(self) -> None:
        require_column_map(self.column_map)

    def input_of(self, opened: Source, name: str) -> dict[str, Any]:
        """Return what a store keeps of its input, but for the digest."""
        columns = {**asdict(opened.columns), "time": list(opened.columns.time)}
        return {"source": name, "columns": columns, "on_bad_bars": self.on_bad_bars}


def name_of(source: Any, opened: Source) -> str:
    """Name a source by its file: where that lies on this machine is nobody else's business."""
    return Path(source).name if isinstance(source, str | Path) else opened.description
