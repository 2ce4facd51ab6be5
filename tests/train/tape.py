"""A CPU's stand-in for a CUDA graph: operations recorded on fixed memory, and run again there.

Like a graph it repeats no Python: a number that was one at recording stays what it was, and what
asks for a value of a tensor cannot be recorded. Random numbers come from the generator as it is at
the replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from moola_train.graph import Run
from tests.train.dispatch import WAITING


class Tape(TorchDispatchMode):
    """Keeps every operation with its arguments and where its results lie."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, bool, list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        found = func(*args, **(kwargs or {}))
        # Lists are copied, since their owner may change them; tensors are the memory itself.
        given, named = (tree_map(lambda leaf: leaf, part) for part in (args, kwargs or {}))
        grad = torch.is_grad_enabled()  # some operations keep more if there are gradients to come
        self._calls.append((func, given, named, grad, list(tensors_in(found))))
        return found

    def replay(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, grad, kept in self._calls:
                with torch.set_grad_enabled(grad):
                    found = func(*args, **kwargs)
                for place, made in zip(kept, tensors_in(found), strict=True):
                    if place.data_ptr() != made.data_ptr():
                        place.copy_(made)


class TapeRecorder:
    """Records on a tape."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def warm_up(self, run: Run) -> None:
        for _ in range(2):
            run()

    def record(self, run: Run) -> Run:
        self.num_recorded += 1
        tape = Tape()
        with tape:
            run()
        return tape.replay


def tensors_in(values: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
