"""Modules and parameters by name, for names such as "type" that ``nn.Module`` uses itself."""

from __future__ import annotations

from typing import Any, cast

from torch import nn


class NamedModules(nn.ModuleDict):
    """An ``nn.ModuleDict`` that takes every name; by key, never by attribute.

    Examples
    --------
    >>> heads = NamedModules({"type": nn.Linear(2, 3)})
    >>> heads["type"].out_features, list(heads.state_dict())
    (3, ['type.weight', 'type.bias'])
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module, whatever other meaning its name has."""
        self._modules[name] = cast(nn.Module, module)


class NamedParameters(nn.ParameterDict):
    """An ``nn.ParameterDict`` that takes every name; by key, never by attribute.

    Examples
    --------
    >>> import torch
    >>> log_sigmas = NamedParameters({"type": nn.Parameter(torch.zeros(()))})
    >>> log_sigmas["type"].item(), list(log_sigmas.state_dict())
    (0.0, ['type'])
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, whatever other meaning its name has."""
        self._parameters[name] = param

    def __getitem__(self, key: str) -> Any:
        return self._parameters[key]
