"""Explicit code for many bytes at a time in compiled loops that LLVM does not vectorise well by itself.

Places are given as offsets into contiguous arrays, in elements; nothing checks them. LLVM splits the vectors into the
registers that a processor has.
"""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT_TILE, BYTE_TILE = 8, 16
"""Sides of the square that :func:`transpose_tile` turns over, for float32 and for uint8."""
WIDTH = 32
"""Numbers in a row of :func:`weighted_sum`."""
_LANES = 16

_WORD = ir.IntType(64)

_intrinsic = cast("Callable[..., Callable[..., Any]]", intrinsic)


@_intrinsic
def load_big_endian(typing: Any, array: Any, at: Any) -> Any:
    """Load 8 bytes of a uint8 array as one big-endian uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(_load(builder, _data(context, builder, signature, arguments, 0), arguments[1], _WORD))

    return types.uint64(array, types.intp), generate


@_intrinsic
def store_big_endian(typing: Any, array: Any, at: Any, word: Any) -> Any:
    """Store a uint64 as 8 big-endian bytes of a uint8 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store(builder, builder.bswap(arguments[2]), _data(context, builder, signature, arguments, 0), arguments[1])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), generate


@_intrinsic
def transpose_tile(
    typing: Any, source: Any, at: Any, stride: Any, target: Any, to: Any, target_stride: Any
) -> Any:  # fmt: skip
    """Write the transpose of a square of ``source`` (rows ``stride`` apart) to ``target`` (rows ``target_stride`` apart)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        is_byte = signature.args[0].dtype == types.uint8
        side = BYTE_TILE if is_byte else FLOAT_TILE
        vector = ir.VectorType(ir.IntType(8) if is_byte else ir.FloatType(), side)
        from_data, to_data = (_data(context, builder, signature, arguments, i) for i in (0, 3))
        rows = [_load(builder, from_data, _row(builder, arguments[1], arguments[2], i), vector) for i in range(side)]
        # Interleaving row i with row i + side / 2, as often as side can be halved, turns rows into columns.
        low = [lane // 2 + side * (lane % 2) for lane in range(side)]
        masks = [_mask(low), _mask([lane + side // 2 for lane in low])]
        for _ in range(side.bit_length() - 1):
            pairs = [(rows[i], rows[i + side // 2]) for i in range(side // 2)]
            rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
        for i, row in enumerate(rows):
            _store(builder, row, to_data, _row(builder, arguments[4], arguments[5], i))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate


@_intrinsic
def weighted_sum(
    typing: Any, block: Any, start: Any, weights: Any, first: Any, taps: Any, out: Any, to: Any
) -> Any:  # fmt: skip
    """Write to ``out`` the sum of ``taps`` neighbouring rows of 32 float32 of ``block``, each times its own of ``weights``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, start, _, first, taps, _, to = arguments
        vector = ir.VectorType(ir.FloatType(), _LANES)
        rows, factors, sums = (_data(context, builder, signature, arguments, i) for i in (0, 2, 5))
        parts = range(0, WIDTH, _LANES)
        totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * _LANES)) for _ in parts]
        with cgutils.for_range(builder, taps) as loop:
            factor = _splat(builder, builder.load(builder.gep(factors, [builder.add(first, loop.index)])))
            row = builder.add(start, builder.mul(loop.index, _integer(WIDTH)))
            for part, total in zip(parts, totals, strict=True):
                numbers = _load(builder, rows, builder.add(row, _integer(part)), vector)
                product = builder.fmul(numbers, factor, flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        for part, total in zip(parts, totals, strict=True):
            _store(builder, builder.load(total), sums, builder.add(to, _integer(part)))
        return context.get_dummy_value()

    place = types.intp
    return types.void(block, place, weights, place, place, out, place), generate


@_intrinsic
def put_bytes(typing: Any, numbers: Any, at: Any, weights: Any, row: Any, out: Any, to: Any) -> Any:
    """Write to ``out`` as uint8 a weighted sum of three rows of 32 float32, with a constant, clipped to 0..255.

    ``numbers`` float32 (3, w, 32) has the rows, the first one at ``at``; ``weights`` float32 (n, 4) the three factors
    and the constant, in its line ``row``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, at, _, row, _, to = arguments
        vector = ir.VectorType(ir.FloatType(), _LANES)
        data, factors, target = (_data(context, builder, signature, arguments, i) for i in (0, 2, 4))
        n = context.make_array(signature.args[0])(context, builder, arguments[0]).nitems
        third = builder.sdiv(n, _integer(3))
        line = builder.mul(row, _integer(4))
        *channels, constant = (
            _splat(builder, builder.load(builder.gep(factors, [builder.add(line, _integer(i))]))) for i in range(4)
        )
        zero, top = (ir.Constant(vector, [value] * _LANES) for value in (0.0, 255.0))
        for part in range(0, WIDTH, _LANES):
            total, place = constant, builder.add(at, _integer(part))
            for number, factor in enumerate(channels):
                row_of_channel = _load(builder, data, _row(builder, place, third, number), vector)
                product = builder.fmul(row_of_channel, factor, flags=("contract",))
                total = builder.fadd(total, product, flags=("contract",))
            total = builder.select(builder.fcmp_ordered(">", total, zero), total, zero)
            total = builder.select(builder.fcmp_ordered("<", total, top), total, top)
            integers = builder.fptosi(total, ir.VectorType(ir.IntType(32), _LANES))
            small = builder.trunc(integers, ir.VectorType(ir.IntType(8), _LANES))
            _store(builder, small, target, builder.add(to, _integer(part)))
        return context.get_dummy_value()

    return types.void(numbers, types.intp, weights, types.intp, out, types.intp), generate


def _splat(builder: Any, number: Any) -> Any:
    vector = ir.VectorType(ir.FloatType(), _LANES)
    alone = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(alone, alone, _mask([0] * _LANES))


def _data(context: Any, builder: Any, signature: Any, arguments: Any, number: int) -> Any:
    """Return the pointer to the first element of an array that is an argument."""
    return context.make_array(signature.args[number])(context, builder, arguments[number]).data


def _row(builder: Any, at: Any, stride: Any, number: int) -> Any:
    return builder.add(at, builder.mul(stride, _integer(number)))


def _integer(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _mask(lanes: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _load(builder: Any, data: Any, offset: Any, kind: Any) -> Any:
    loaded = builder.load(builder.bitcast(builder.gep(data, [offset]), kind.as_pointer()))
    loaded.align = 1
    return loaded


def _store(builder: Any, value: Any, data: Any, offset: Any) -> None:
    stored = builder.store(value, builder.bitcast(builder.gep(data, [offset]), value.type.as_pointer()))
    stored.align = 1
