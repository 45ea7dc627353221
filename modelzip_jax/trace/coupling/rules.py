"""Which axes of operands and results each primitive couples: arithmetic, products and reductions.

What mixes the elements of an axis (a norm, a softmax, a window) freezes it.
"""

from __future__ import annotations

from modelzip_jax.trace.coupling.labels import AxisLabels
from modelzip_jax.trace.coupling.layout import LAYOUT_RULES, Axes, Rule, RuleContext
from modelzip_jax.trace.jaxpr.primitives import CUMULATIVE, ELEMENTWISE, IDENTITY, REDUCTIONS, WINDOWS
from modelzip_jax.trace.jaxpr.programs import Equation

__all__ = ["rule_of"]


def _elementwise(r: RuleContext) -> list[Axes] | None:
    if len(r.equation.eqn.outvars) > 1:
        return _identity(r)
    axes: list[AxisLabels] = []
    for i, size in enumerate(r.shape):
        full = [v.axes[i] for v in r.values if len(v.axes) == len(r.shape) and v.axes[i].shape[0] == size]
        axes.append(r.same(*full))
    return [axes]


def _identity(r: RuleContext) -> list[Axes] | None:
    return [v.axes for v in r.values] if len(r.values) == len(r.equation.eqn.outvars) else None


def _reduce(r: RuleContext) -> list[Axes] | None:
    p = r.equation.params
    gone = p["axes"] if "axes" in p else p["dimensions"]
    operands = [v for v in r.values if v.axes]
    if len(r.equation.eqn.outvars) > 1 or len(operands) > 1:
        return None
    for i in gone:
        r.hold(operands[0].axes[i], "mixed by a reduction")
    return [[a for i, a in enumerate(operands[0].axes) if i not in gone]]


def _mix(r: RuleContext) -> list[Axes] | None:
    p = r.equation.params
    axis = p["axis"] if "axis" in p else p["dimension"]
    results: list[Axes] = []
    for value in r.values:
        held = r.hold(value.axes[axis], "mixed along the axis")
        results.append([held if i == axis else a for i, a in enumerate(value.axes)])
    if len(results) > 1:  # Sorted together.
        for i in range(len(results[0])):
            r.same(*(axes[i] for axes in results))
    return results if len(results) == len(r.equation.eqn.outvars) else None


def _window(r: RuleContext) -> list[Axes] | None:
    if len(r.equation.eqn.outvars) > 1:
        return None
    axes = []
    window = r.equation.params["window_dimensions"]
    for axis, width, size in zip(r.values[0].axes, window, r.shape, strict=True):
        if width == 1 and size == axis.shape[0]:
            axes.append(axis)
        else:
            r.hold(axis, "pooled over windows")
            axes.append(r.held(size, "pooled over windows"))
    return [axes]


def _dot_general(r: RuleContext) -> list[Axes]:
    (contract_a, contract_b), (batch_a, batch_b) = r.equation.params["dimension_numbers"]
    a, b = r.values
    for i, j in zip(contract_a, contract_b, strict=True):
        if (a.fixed and a.vanishes[i]) or (b.fixed and b.vanishes[j]):
            r.same(a.axes[i], b.axes[j])
            continue
        both = "contracted between two activations"
        why = "summed with a weight that is not zero where its leaves are" if a.fixed or b.fixed else both
        r.hold(a.axes[i], why)
        r.hold(b.axes[j], why)
    batch = [r.same(a.axes[i], b.axes[j]) for i, j in zip(batch_a, batch_b, strict=True)]
    free_a = [x for i, x in enumerate(a.axes) if i not in contract_a and i not in batch_a]
    free_b = [x for i, x in enumerate(b.axes) if i not in contract_b and i not in batch_b]
    return [[*batch, *free_a, *free_b]]


def _conv(r: RuleContext) -> list[Axes] | None:
    p = r.equation.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    left, right = r.values
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    alone = right.axes[rhs[1]].shape[0] == 1
    if p["batch_group_count"] != 1 or not right.fixed or not (right.vanishes[rhs[1]] or alone):
        return None
    for value, spec in ((left, lhs), (right, rhs)):
        for i in spec[2:]:
            r.hold(value.axes[i], "under a convolution's window")
    features, inner, made = left.axes[lhs[1]], right.axes[rhs[1]], right.axes[rhs[0]]
    if groups == 1:
        r.same(features, inner)
    else:
        why = r.why("one element a group")
        group, within = r.labels.split(features, (groups, features.shape[0] // groups), why)
        made_group, made_within = r.labels.split(made, (groups, made.shape[0] // groups), why)
        r.same(group, made_group)
        r.same(within, inner)
        made = r.labels.merge([made_group, made_within], why)
    axes: list[AxisLabels] = [r.held(size, "under a convolution's window") for size in r.shape]
    axes[out[0]], axes[out[1]] = left.axes[lhs[0]], made
    return [axes]


def _top_k(r: RuleContext) -> list[Axes]:
    axis = r.equation.params.get("axis", len(r.shape) - 1) % len(r.shape)
    r.hold(r.values[0].axes[axis], "mixed along the axis")
    held = r.held(r.shape[axis], "mixed along the axis")
    return [[held if i == axis else a for i, a in enumerate(r.values[0].axes)]] * 2


_RULES: dict[str, Rule] = {
    **LAYOUT_RULES,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "top_k": _top_k,
}
_FAMILIES: tuple[tuple[frozenset[str], Rule], ...] = (
    (ELEMENTWISE, _elementwise),
    (IDENTITY, _identity),
    (REDUCTIONS, _reduce),
    (CUMULATIVE, _mix),
    (WINDOWS, _window),
)


def rule_of(equation: Equation) -> Rule | None:
    """The rule for an equation's primitive, if there is one."""
    for family, rule in _FAMILIES:
        if equation.primitive in family:
            return rule
    return _RULES.get(equation.primitive)
