"""What the results of each primitive reach of an input: windows, reductions, products and moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from modelzip_jax.trace.jaxpr.primitives import CUMULATIVE, ELEMENTWISE, IDENTITY, REDUCTIONS, WINDOWS
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.measures.reach_domain import Reach, ReachDomain, ReachRule, with_axis
from modelzip_jax.trace.usage.views import Axis, Misaligned, blocks, merge_axes, repeated, split_axis

__all__ = ["reach_rule"]


def _elementwise(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach]:
    if len(values) == len(equation.result_shapes) > 1:
        return values
    return [domain.alike(values, shape) for shape in equation.result_shapes]


def _reduce(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach] | None:
    p = equation.params
    gone = tuple(p["axes"] if "axes" in p else p["dimensions"])
    whole = [v for v in values if len(v.axes) == len(equation.operand_shapes[0])]
    sizes = domain.most([v.mixed(gone) for v in whole])
    kept = tuple(a for i, a in enumerate(whole[0].axes) if i not in gone)
    return [Reach(sizes, kept)] * len(equation.result_shapes)


def _mix(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach]:
    p = equation.params
    axis = p["axis"] if "axis" in p else p["dimension"]
    sizes = domain.most([v.mixed([axis]) for v in values])
    return [Reach(sizes, with_axis(v.axes, axis, repeated(v.axes[axis].size))) for v in values]


def _window(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach] | None:
    p, value = equation.params, values[0]
    rank = len(value.axes)
    ones = (1,) * rank
    spread, base = p.get("window_dilation") or ones, p.get("base_dilation") or ones
    for i, count in enumerate(equation.result_shapes[0]):
        width = (p["window_dimensions"][i] - 1) * spread[i] + 1
        made = _on_grid(value, i, width, p["window_strides"][i], base[i], count)
        if made is None:
            return None
        value = made
    return [value] * len(equation.result_shapes)


def _on_grid(value: Reach, axis: int, width: int, stride: int, base: int, count: int) -> Reach | None:
    """Windows over an axis into which `base - 1` zeros were put between neighbours."""
    if (width, stride, base, count) == (1, 1, 1, value.axes[axis].size):
        return value
    return value.windowed(axis, math.ceil(Fraction(width, base)), Fraction(stride, base), count)


def _conv(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach] | None:
    p, (left, right) = equation.params, values
    if p["batch_group_count"] != 1 or any(right.sizes):
        return None
    numbers, kernel, made = p["dimension_numbers"], equation.operand_shapes[1], equation.result_shapes[0]
    axes, value = list(map(repeated, made)), left
    spatial = zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:],
        p["window_strides"], p["lhs_dilation"], p["rhs_dilation"], strict=True,
    )  # fmt: skip
    for place, window, out, stride, base, spread in spatial:
        width = (kernel[window] - 1) * spread + 1
        moved = _on_grid(value, place, width, stride, base, made[out])
        if moved is None:
            return None
        value, axes[out] = moved, moved.axes[place]
    axes[numbers.out_spec[0]] = value.axes[numbers.lhs_spec[0]]
    features = numbers.lhs_spec[1]
    alone = kernel[numbers.rhs_spec[1]] == 1 and value.axes[features].size == made[numbers.out_spec[1]]
    if alone:  # One input feature for each output feature.
        axes[numbers.out_spec[1]] = value.axes[features]
    return [Reach(value.sizes if alone else value.mixed([features]), tuple(axes))]


def _dot_general(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach]:
    contracted, batch = equation.params["dimension_numbers"]
    sizes = domain.most([v.mixed(c) for v, c in zip(values, contracted, strict=True)])
    shape = equation.result_shapes[0]
    shared = domain.alike(
        [v._replace(axes=tuple(v.axes[i] for i in b)) for v, b in zip(values, batch, strict=True)],
        shape[: len(batch[0])],
    )
    free = [
        a
        for v, c, b in zip(values, contracted, batch, strict=True)
        for i, a in enumerate(v.axes)
        if i not in c and i not in b
    ]
    return [Reach(domain.most([sizes, shared.sizes]), (*shared.axes, *free))]


def _reshape(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach] | None:
    (shape,) = equation.result_shapes
    if equation.params.get("dimensions") is not None or 0 in shape:
        return None
    kept, wide = [a for a in values[0].axes if a.size != 1], [n for n in shape if n != 1]
    made: list[Axis] = []
    try:
        for old, new in blocks([a.size for a in kept], wide):
            made += split_axis(merge_axes([kept[i] for i in old]), [wide[i] for i in new])
    except Misaligned:
        return None
    rest = iter(made)
    return [Reach(values[0].sizes, tuple(repeated(1) if n == 1 else next(rest) for n in shape))]


def _transpose(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach]:
    return [_picked(values[0], equation.params["permutation"])]


def _squeeze(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach]:
    gone = equation.params["dimensions"]
    return [_picked(values[0], [i for i in range(len(values[0].axes)) if i not in gone])]


def _picked(value: Reach, positions: Sequence[int]) -> Reach:
    return value._replace(axes=tuple(value.axes[i] for i in positions))


def _broadcast_in_dim(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach]:
    places, value = list(equation.params["broadcast_dimensions"]), values[0]
    axes = []
    for i, size in enumerate(equation.result_shapes[0]):
        old = value.axes[places.index(i)] if i in places else None
        axes.append(old if old is not None and old.size == size else repeated(size))
    return [Reach(value.sizes, tuple(axes))]


def _slice(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach] | None:
    value = values[0]
    strides = equation.params["strides"] or (1,) * len(value.axes)
    for i, (stride, count) in enumerate(zip(strides, equation.result_shapes[0], strict=True)):
        made = _on_grid(value, i, 1, stride, 1, count)
        if made is None:
            return None
        value = made
    return [value]


def _pad(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach] | None:
    value = values[0]
    settings = zip(equation.params["padding_config"], equation.result_shapes[0], strict=True)
    for i, ((_, _, interior), count) in enumerate(settings):
        made = _on_grid(value, i, 1, 1, interior + 1, count)
        if made is None:
            return None
        value = made
    return [value._replace(sizes=domain.most([value.sizes, values[1].sizes]))]


def _concatenate(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach]:
    axis, (shape,) = equation.params["dimension"], equation.result_shapes
    apart = [v.mixed([axis]) for v in values]
    level = [v._replace(axes=with_axis(v.axes, axis, repeated(shape[axis]))) for v in values]
    joined = domain.alike(level, shape)
    walked = any(f.axis is not None for v in values for f in v.axes[axis].factors)
    return [joined._replace(sizes=domain.most([joined.sizes, *(apart if walked else [])]))]


def _gather(domain: ReachDomain, equation: Equation, values: list[Reach]) -> list[Reach] | None:
    table, indices = values[:2]
    if any(table.sizes):
        return None
    offsets, rest = equation.params["dimension_numbers"].offset_dims, iter(indices.axes[:-1])
    shape = equation.result_shapes[0]
    axes = tuple(repeated(n) if i in offsets else next(rest) for i, n in enumerate(shape))
    return [Reach(indices.mixed([len(indices.axes) - 1]), axes)]


_RULES: dict[str, ReachRule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": lambda domain, equation, values: values,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
_FAMILIES: tuple[tuple[frozenset[str], ReachRule], ...] = (
    (ELEMENTWISE, _elementwise),
    (IDENTITY, _elementwise),
    (REDUCTIONS, _reduce),
    (CUMULATIVE, _mix),
    (WINDOWS, _window),
)


def reach_rule(equation: Equation) -> ReachRule | None:
    """The rule for an equation's primitive, if there is one."""
    family = next((rule for names, rule in _FAMILIES if equation.primitive in names), None)
    return family or _RULES.get(equation.primitive)
