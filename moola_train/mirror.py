"""Windows turned upside down: a signed permutation of their columns, from the registry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moola_features.spec import Column
from moola_train.errors import ConfigError

RANGE_COLUMN = "range_z"  # above 0 just where a bar has a range


class MirrorImage:
    """What features become once prices are turned upside down, p -> c - p.

    An expansion upwards becomes one downwards, at the same bars and with the same type.

    Parameters
    ----------
    columns
        Of the features, in their order.

    Raises
    ------
    ConfigError
        No columns, or one whose mirror image is made of another that is not among them.

    Examples
    --------
    >>> import moola_features as mf
    >>> image = MirrorImage(mf.columns(mf.FeatureConfig()))
    >>> bar = torch.tensor([0.25, 1, 0.75, 0, 0.25, 1.5, 2, 1, 0, 0.5, -0.5])
    >>> image(bar)[:5].tolist()  # open_norm, close_norm, body_pct, upper and lower wick
    [0.75, 0.0, -0.75, 0.25, 0.0]
    >>> bool((image(image(bar)) == bar).all())
    True
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        if not columns:
            raise ConfigError(
                "augment.mirror is on, but the columns are not known; set augment.mirror = 0"
            )
        place = {column.name: index for index, column in enumerate(columns)}
        offsets = [column.mirror.offset for column in columns]
        needed = [column.mirror.column for column in columns] + [RANGE_COLUMN] * any(offsets)
        for name in needed:
            if name not in place:
                raise ConfigError(
                    f"augment.mirror needs the column {name!r}, which is not among "
                    f"{', '.join(place)}; set augment.mirror = 0"
                )
        self._range = place[RANGE_COLUMN] if any(offsets) else None
        self._host = (
            torch.tensor([place[column.mirror.column] for column in columns]),
            torch.tensor([float(column.mirror.sign) for column in columns]),
            torch.tensor([float(offset) for offset in offsets]),
        )
        self._tables = {torch.device("cpu"): self._host}

    def __call__(self, features: Tensor) -> Tensor:
        """Turn upside down: float ``[..., F]`` to another one."""
        device = features.device
        if device not in self._tables:  # copied once, so that no step waits for it
            source, sign, offset = self._host
            self._tables[device] = (source.to(device), sign.to(device), offset.to(device))
        source, sign, offset = self._tables[device]
        turned = features.index_select(-1, source) * sign
        if self._range is None:
            return turned
        return turned + offset * (features[..., self._range].unsqueeze(-1) > 0)
