"""Asking for memory ahead of its use."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_READ, _MODERATE, _DATA = 0, 2, 1  # what LLVM's prefetch takes: for reading, how often, data


def prefetch(values: Any, index: int) -> None:
    """Ask for the cache line of the value at a flat index; interpreted, it does nothing."""


@overload(prefetch)
def _compiled(values: Any, index: Any) -> Any:
    def ask(values: Any, index: Any) -> None:
        _prefetch(values, index)  # type: ignore[call-arg]

    return ask


@intrinsic
def _prefetch(_context: Any, values: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        how = [ir.Constant(number, choice) for choice in (_READ, _MODERATE, _DATA)]
        builder.call(function, [builder.bitcast(place, byte), *how])
        return context.get_dummy_value()

    return types.void(values, index), generate
