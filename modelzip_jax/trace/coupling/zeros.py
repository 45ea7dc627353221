"""Where a weight vanishes: along which axes zeroing a leaf's slices zeroes those of what is made of it.

A product may lose elements of the axis that it sums over only if their terms are zero once the group's
slices are: if the weight itself vanishes there. W + A B does; exp(W), or a constant of ones, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modelzip_jax.trace.coupling.layout import Labelled
from modelzip_jax.trace.jaxpr.primitives import IDENTITY
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.usage.views import blocks

__all__ = ["vanishing"]

Flags = tuple[bool, ...]

_ODD = frozenset(
    [
        "neg", "sign", "abs", "sqrt", "cbrt", "square", "tanh", "sin", "tan", "asin", "atan", "sinh", "asinh",
        "erf", "expm1", "log1p", "round", "floor", "ceil", "real", "imag", "conj", "slice", "rev",
        "dynamic_slice", "cumsum",
    ]
)  # fmt: skip
"""Zero where the first operand is."""
_ALL = frozenset(["add", "sub", "add_any", "max", "min", "concatenate", "select_n"])
"""Zero where all operands are."""


def vanishing(equation: Equation, values: Sequence[Labelled]) -> list[Flags]:
    """For each axis of each result, whether it vanishes with its labels; False where nothing is known."""
    shapes = equation.result_shapes
    unknown = [(False,) * len(shape) for shape in shapes]
    if not any(any(v.vanishes) for v in values) or not all(v.fixed for v in values):
        return unknown
    name = equation.primitive
    if name in IDENTITY and len(values) == len(shapes):
        return [v.vanishes for v in values]
    if len(shapes) != 1:
        return [values[0].vanishes] * len(shapes) if name == "split" else unknown
    if name in _ODD or (name == "integer_pow" and equation.params["y"] > 0):
        return [values[0].vanishes]
    if name in _ALL:
        return [_along_all(values[1:] if name == "select_n" else values, shapes[0])]
    rule = _RULES.get(name)
    return [rule(equation, values)] if rule else unknown


def _full(value: Labelled, axis: int, shape: tuple[int, ...]) -> bool:
    """Whether a value vanishes along an axis, and is not broadcast along it."""
    return len(value.axes) == len(shape) and value.vanishes[axis] and value.axes[axis].shape[0] != 1


def _along_all(values: Sequence[Labelled], shape: tuple[int, ...]) -> Flags:
    return tuple(all(_full(v, i, shape) for v in values) for i in range(len(shape)))


def _mul(equation: Equation, values: Sequence[Labelled]) -> Flags:
    shape = equation.result_shapes[0]
    return tuple(any(_full(v, i, shape) for v in values) for i in range(len(shape)))


def _div(equation: Equation, values: Sequence[Labelled]) -> Flags:
    shape = equation.result_shapes[0]
    return tuple(_full(values[0], i, shape) for i in range(len(shape)))


def _transpose(equation: Equation, values: Sequence[Labelled]) -> Flags:
    return tuple(values[0].vanishes[i] for i in equation.params["permutation"])


def _lost(equation: Equation, values: Sequence[Labelled]) -> Flags:
    """Of what loses axes: `squeeze`, `reduce_sum`."""
    p = equation.params
    gone = p["axes"] if "axes" in p else p["dimensions"]
    return tuple(flag for i, flag in enumerate(values[0].vanishes) if i not in gone)


def _broadcast_in_dim(equation: Equation, values: Sequence[Labelled]) -> Flags:
    places, shape = list(equation.params["broadcast_dimensions"]), equation.result_shapes[0]
    old = equation.operand_shapes[0]

    def flag(i: int) -> bool:
        return i in places and old[places.index(i)] == shape[i] and values[0].vanishes[places.index(i)]

    return tuple(flag(i) for i in range(len(shape)))


def _reshape(equation: Equation, values: Sequence[Labelled]) -> Flags:
    shape, old = equation.result_shapes[0], equation.operand_shapes[0]
    kept = [flag for flag, size in zip(values[0].vanishes, old, strict=True) if size != 1]
    made: list[bool] = []
    for before, after in blocks([n for n in old if n != 1], [n for n in shape if n != 1]):
        made += [all(kept[i] for i in before)] * len(after)
    flags = iter(made)
    return tuple(size != 1 and next(flags) for size in shape)


def _stack(equation: Equation, values: Sequence[Labelled]) -> Flags:
    axis = equation.params["axis"]
    flags = list(_along_all(values, equation.operand_shapes[0]))
    return (*flags[:axis], False, *flags[axis:])


def _dot_general(equation: Equation, values: Sequence[Labelled]) -> Flags:
    contract, batch = equation.params["dimension_numbers"]
    both = [values[0].vanishes[i] or values[1].vanishes[j] for i, j in zip(*batch, strict=True)]
    free = [
        flag
        for value, over, own in zip(values, contract, batch, strict=True)
        for i, flag in enumerate(value.vanishes)
        if i not in over and i not in own
    ]
    return (*both, *free)


_RULES: dict[str, Callable[[Equation, Sequence[Labelled]], Flags]] = {
    "mul": _mul,
    "div": _div,
    "transpose": _transpose,
    "squeeze": _lost,
    "reduce_sum": _lost,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "stack": _stack,
    "dot_general": _dot_general,
}
