"""Short vectors in compiled code: a few numbers side by side that the processor treats at once.

The compiler vectorises long loops by itself. A loop over the classes of one edge is short, and all arrays in it might
overlap as far as the compiler knows, so there it does not; `ShortVector` says it outright. For compiled code only:

    a = load(values, index, shape)                 # values[index : index + len(shape)] of a one-dimensional array
    store(values, index, add(a, mul(a, splat(factor, shape))))

where ``shape`` is a tuple whose length, which the compiler knows, is the number of lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model
from numpy.typing import NDArray

VECTOR = 64  # bytes of the widest vector, and of a cache line


def aligned(count: int, kind: Any) -> NDArray[Any]:
    """``count`` zeros that begin with a cache line, so that no vector lies across two of them."""
    spare = VECTOR // np.dtype(kind).itemsize
    whole = np.zeros(count + spare, kind)
    skipped = -whole.ctypes.data % VECTOR // whole.itemsize
    return whole[skipped : skipped + count]


_intrinsic: Callable[[Any], Any] = intrinsic  # its own type has the compiler's argument in every call
_FLAGS = ("contract", "reassoc", "nsz")
_INT32 = ir.IntType(32)


class ShortVector(types.Type):
    """``count`` numbers of the type ``kind``."""

    def __init__(self, kind: Any, count: int) -> None:
        self.kind = kind
        self.count = count
        super().__init__(name=f"ShortVector({kind}, {count})")

    @property
    def llvm(self) -> ir.VectorType:
        """What it is to LLVM."""
        return ir.VectorType(ir.FloatType() if self.kind == types.float32 else ir.DoubleType(), self.count)


@register_model(ShortVector)
class _ShortVectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: ShortVector) -> None:
        super().__init__(manager, kind, kind.llvm)  # type: ignore[no-untyped-call]


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@_intrinsic
def load(typing: Any, array: Any, index: Any, shape: Any) -> Any:
    """Numbers of a one-dimensional contiguous array, from ``index`` on."""
    vector = ShortVector(array.dtype, shape.count)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address = _address(context, builder, array, given[0], given[1])
        address = builder.bitcast(address, vector.llvm.as_pointer())
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp, shape), generate


@_intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Put numbers into a one-dimensional contiguous array, from ``index`` on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address = _address(context, builder, array, given[0], given[1])
        address = builder.bitcast(address, vector.llvm.as_pointer())
        builder.store(given[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@_intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Have the memory at ``index`` brought nearer; what is gathered from random places is waited for otherwise."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        address = builder.bitcast(_address(context, builder, array, given[0], given[1]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
        call = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(call, [address, _INT32(0), _INT32(3), _INT32(1)])  # for reading, to keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@_intrinsic
def splat(typing: Any, number: Any, shape: Any) -> Any:
    """The same number in all lanes."""
    vector = ShortVector(number, shape.count)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        nothing = ir.Constant(vector.llvm, ir.Undefined)
        first = builder.insert_element(nothing, given[0], _INT32(0))
        everywhere = ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count)
        return builder.shuffle_vector(first, nothing, everywhere)

    return vector(number, shape), generate


def _pairwise(instruction: str) -> Any:
    @_intrinsic
    def operation(typing: Any, first: Any, second: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return getattr(builder, instruction)(given[0], given[1], flags=_FLAGS)

        return first(first, second), generate

    return operation


add = _pairwise("fadd")
sub = _pairwise("fsub")
mul = _pairwise("fmul")
divide = _pairwise("fdiv")


@_intrinsic
def maximum(typing: Any, first: Any, second: Any) -> Any:
    """The larger of each two numbers."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", given[0], given[1]), given[0], given[1])

    return first(first, second), generate


@_intrinsic
def root(typing: Any, vector: Any) -> Any:
    """The square root of each number."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        # Older versions of the binding do not know the names of intrinsics over vectors.
        name = f"llvm.sqrt.v{vector.count}{'f32' if vector.kind == types.float32 else 'f64'}"
        kind = ir.FunctionType(vector.llvm, [vector.llvm])
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(function, [given[0]])

    return vector(vector), generate


@_intrinsic
def clip(typing: Any, vector: Any, low: Any, high: Any) -> Any:
    """Each number brought into [low, high]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        value, least, most = given
        value = builder.select(builder.fcmp_ordered("<", value, most), value, most)
        return builder.select(builder.fcmp_ordered(">", value, least), value, least)

    return vector(vector, low, high), generate


@_intrinsic
def total(typing: Any, vector: Any) -> Any:
    """Sum over the lanes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        value = builder.extract_element(given[0], _INT32(0))
        for lane in range(1, vector.count):
            value = builder.fadd(value, builder.extract_element(given[0], _INT32(lane)), flags=_FLAGS)
        return value

    return vector.kind(vector), generate
