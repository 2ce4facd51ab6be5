"""Several instruments' stores below one place, by symbol: what folders and addresses share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from moola_features.errors import StoreError
from moola_features.times import TimeLike

if TYPE_CHECKING:
    from moola_features.universe.windows import UniverseWindows

_Store = TypeVar("_Store")

_SHOWN = 20  # symbols in a message


class Instruments(Mapping[str, _Store]):
    """Stores by symbol, each opened when it is asked for.

    Attributes
    ----------
    path
        Folder or address of the universe.
    attributes
        What is known of it: its instruments and their groups.
    """

    def __init__(self, path: Any, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        groups = attributes.get("instruments")
        if not isinstance(groups, dict):
            raise StoreError(
                f"{path}: the attributes list no instruments; "
                "rebuild it with `moola-features build ... --force`"
            )
        self._groups: dict[str, str] = groups
        self._opened: dict[str, _Store] = {}

    @abstractmethod
    def _open(self, symbol: str) -> _Store:
        """Open the store of an instrument, which must be the one that the universe tells of."""

    def _require_ours(self, symbol: str, path: Any, attributes: dict[str, Any]) -> None:
        """Refuse the store of another instrument, or of another configuration than the others."""
        found = attributes.get("symbol", symbol)
        if found != symbol:
            raise StoreError(
                f"{path} holds {found}, but {self.path} lists it as {symbol}; restore both from a "
                "copy, or rebuild with --force"
            )
        config = self.attributes.get("config", attributes["config"])
        if attributes["config"] != config:
            raise StoreError(
                f"{path} is of another configuration than {self.path}, which was rebuilt "
                "meanwhile, or is damaged; open it again, or rebuild it with --force"
            )

    @abstractmethod
    def windows(
        self,
        length: int | None = None,
        stride: int = 1,
        *,
        start: TimeLike | None = None,
        stop: TimeLike | None = None,
        symbols: Sequence[str] | None = None,
    ) -> UniverseWindows:
        """Index the valid windows of all instruments as one; none reaches across two of them.

        Parameters
        ----------
        length, stride, start, stop
            As for :meth:`Store.windows`.
        symbols
            Only these instruments, in this order.

        Returns
        -------
        UniverseWindows
            ``len()``, ``gather``, and which instrument each window is of.

        Raises
        ------
        WindowError
            A length or stride below 1, or a symbol that is not there.
        """

    def __getitem__(self, symbol: str) -> _Store:
        if symbol not in self._groups:
            listed = ", ".join(list(self._groups)[:_SHOWN])
            more = len(self._groups) - _SHOWN
            raise KeyError(
                f"no instrument {symbol!r} in {self.path}; there is {listed}"
                + (f" and {more:,} more" if more > 0 else "")
            )
        if symbol not in self._opened:
            self._opened[symbol] = self._open(symbol)
        return self._opened[symbol]

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._groups  # Mapping's own would open the store

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        name = str(self.path).rsplit("/", 1)[-1]
        return f"<{type(self).__name__} {name}: {len(self):,} instruments>"
