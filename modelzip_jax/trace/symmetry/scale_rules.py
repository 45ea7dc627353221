"""Scales through each primitive: what they have to be for its result to be scaled by one factor an element."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from modelzip_jax.trace.coupling.labels import Reason
from modelzip_jax.trace.jaxpr.primitives import COMPARISONS, IDENTITY, WINDOWS
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.symmetry.broadcasts import joined, moved, transposed_to, varying
from modelzip_jax.trace.symmetry.scale_domain import Scaled, ScaleDomain, ScaleRule

__all__ = ["scale_rule_of"]

_ORDER = frozenset(["max", "min", "clamp", "abs", "sign", "reduce_max", "reduce_min", "cummax", "cummin"])
"""What commutes with positive factors, and not with negative ones."""


def _identity(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled] | None:
    floating = all(
        jnp.issubdtype(v.aval.dtype, jnp.inexact)
        for v in (*e.eqn.invars, *e.eqn.outvars)
        if hasattr(v.aval, "dtype")
    )
    alike = len(values) == len(e.eqn.outvars)
    return list(values) if alike and (floating or not any(v.terms for v in values)) else None


def _same(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    ranked = [_ranked(v, shape, e) for v, shape in zip(values, e.operand_shapes, strict=True)]
    cases = ranked[1:] if e.primitive == "select_n" else ranked
    return [d.same(cases, e, f"meets what has another scale in {e.primitive}")]


def _ranked(value: Scaled, shape: Sequence[int], e: Equation) -> Scaled:
    """A scalar's labels with the axes of the result."""
    if shape or not e.result_shapes[0]:
        return value
    ones = [1] * len(e.result_shapes[0])
    return value._replace(terms=tuple(t.reshape(*t.shape, *ones) for t in value.terms))


def _compare(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    if e.primitive != "is_finite" and not (d.linear and any(v.terms for v in values)):
        _same(d, e, values)
    elif d.linear:
        d.hold(values, e, "is compared")
    return [Scaled(lead=values[0].lead)]


def _first(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    return [values[0]]


def _sign(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    return [Scaled(lead=values[0].lead)]


def _mul(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    a, b = (_ranked(v, s, e) for v, s in zip(values, e.operand_shapes, strict=True))
    if e.primitive == "div":
        b = b._replace(terms=tuple(-t for t in b.terms), zero=False)
    return [Scaled(d.product([*a.terms, *b.terms], a.lead), a.lead, a.zero or b.zero, a.fixed or b.fixed)]


def _move(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled] | None:
    found = [moved(e, t, values[0].lead) for t in values[0].terms]
    known = [t for t in found if t is not None]
    return [values[0]._replace(terms=tuple(known))] if len(known) == len(found) else None


def _split(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    axis, (value,) = e.params["axis"], values
    ends = np.cumsum(e.params["sizes"])[:-1]

    def parts(term: np.ndarray) -> list[np.ndarray]:
        at = value.lead + axis
        return np.split(term, ends, at) if term.shape[at] != 1 else [term] * (len(ends) + 1)

    cut = [parts(t) for t in value.terms]
    return [value._replace(terms=tuple(c[i] for c in cut)) for i in range(len(ends) + 1)]


def _concatenate(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled] | None:
    axis, lead, arrays = e.params["dimension"], values[0].lead, []
    if not any(v.terms for v in values):
        return [Scaled(lead=lead, zero=all(v.zero for v in values))]
    for value, shape in zip(values, e.operand_shapes, strict=True):
        one = d.single(value) if value.terms else np.zeros([1] * (lead + len(shape)), int)
        if one is None:
            return None
        arrays.append(d.facts.fresh(one.shape) if value.zero else one)
    return [Scaled((joined(arrays, axis, [s[axis] for s in e.operand_shapes], lead),), lead)]


def _pad(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled] | None:
    value, filling = values
    padded = [i for i, config in enumerate(e.params["padding_config"]) if any(config)]
    if not filling.zero:
        d.hold([value], e, "is padded with another number")
        return [Scaled(lead=value.lead)]
    terms = []
    for term in value.terms:
        for i in set(padded) & set(varying(term, value.lead)):
            low, high, interior = e.params["padding_config"][i]
            if min(low, high) < 0 or interior:
                return None
            at = value.lead + i
            ends = [d.facts.fresh((*term.shape[:at], n, *term.shape[at + 1 :])) for n in (low, high)]
            term = np.concatenate([ends[0], term, ends[1]], axis=at)
        terms.append(term)
    return [value._replace(terms=tuple(terms))]


def _reduce(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled] | None:
    if len(values) != 1 or len(e.eqn.outvars) != 1:
        return None
    gone = e.params["axes"]
    value = d.held_along(values[0], gone, e, "is reduced together with other channels")
    kept = [i for i in range(len(e.operand_shapes[0])) if i not in gone]
    return [value._replace(terms=tuple(transposed_to(t, value.lead, kept) for t in value.terms))]


def _along_axis(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    return [d.held_along(values[0], [e.params["axis"]], e, "is mixed with other channels")]


def _window(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled] | None:
    if len(values) > 1 or len(e.eqn.outvars) > 1:
        return None
    sizes = zip(e.params["window_dimensions"], e.operand_shapes[0], e.result_shapes[0], strict=True)
    pooled = [i for i, (width, old, new) in enumerate(sizes) if width != 1 or old != new]
    return [d.held_along(values[0], pooled, e, "is pooled with other channels")]


def _dot_general(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    contract, batch = e.params["dimension_numbers"]
    lead = values[0].lead
    free = [
        [i for i in range(len(s)) if i not in c and i not in b]
        for s, c, b in zip(e.operand_shapes, contract, batch, strict=True)
    ]
    passed: list[np.ndarray] = []
    summed: list[np.ndarray | None] = []
    for which, value in enumerate(values):
        # Products sum over scales that vary along nothing else.
        inner = [t for t in value.terms if set(varying(t, lead)) & set(contract[which])]
        value = value._replace(terms=tuple(inner))
        mixed = d.held_along(value, free[which], e, "is summed with other scales for each output")
        inner = [transposed_to(t, lead, [*batch[which], *contract[which]]) for t in mixed.terms]
        summed.append(functools.reduce(d.facts.add, inner) if inner else None)
        before: list[int | None] = [None] * len(free[0]) if which else []
        after: list[int | None] = [] if which else [None] * len(free[1])
        positions = [*batch[which], *before, *free[which], *after]
        passed += [
            transposed_to(t, lead, positions)
            for t in values[which].terms
            if not set(varying(t, lead)) & set(contract[which])
        ]
    left, right = summed
    reason = _summed(e, values[0] if left is None else values[1])
    if left is not None and right is not None:
        d.facts.equate(left, -right, reason)
    elif left is not None or right is not None:
        d.facts.zero(left if left is not None else right, reason)  # type: ignore[arg-type]
    return [Scaled(d.product(passed, lead), lead, any(v.zero for v in values))]


def _summed(e: Equation, other: Scaled) -> Reason:
    """Why what meets a factor in a sum of products keeps its scale: where the factor's was fixed, if that is known."""
    if other.fixed is None:
        return Reason(e.path, e.primitive, "is summed over with a factor that keeps its scale")
    why = f"is summed over with what {other.fixed.why}"
    return Reason(other.fixed.path or e.path, other.fixed.primitive or e.primitive, why)


def _conv(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled] | None:
    p, lead = e.params, values[0].lead
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    if p["batch_group_count"] != 1:
        return None
    left = d.held_along(values[0], lhs[2:], e, "is under a convolution's window")
    right = d.held_along(values[1], rhs[2:], e, "is in a convolution's window")
    width = e.operand_shapes[1][rhs[1]]
    read: list[list[np.ndarray]] = [[], []]
    passed: list[np.ndarray] = []
    for term in left.terms:
        axes = varying(term, lead)
        if lhs[1] not in axes:
            passed.append(_at(term, lead, {out[0]: lhs[0]}, len(out)))
            continue
        if lhs[0] in axes:
            return None
        channels = transposed_to(term, lead, [lhs[1]])
        if width == 1 and groups > 1:
            each = np.repeat(channels, e.operand_shapes[1][rhs[0]] // groups, axis=-1)
            passed.append(_at(each, lead, {out[1]: 0}, len(out)))
        else:
            read[0].append(channels.reshape(*channels.shape[:-1], groups, width))
    for term in right.terms:
        axes = varying(term, lead)
        if rhs[1] not in axes:
            passed.append(_at(transposed_to(term, lead, [rhs[0]]), lead, {out[1]: 0}, len(out)))
        elif rhs[0] in axes:
            return None
        else:
            read[1].append(transposed_to(term, lead, [None, rhs[1]]))
    reason = _summed(e, values[1] if read[0] else values[0])
    sums = [functools.reduce(d.facts.add, some) if some else np.zeros((), int) for some in read]
    d.facts.equate(sums[0], -sums[1], reason)
    return [Scaled(d.product(passed, lead), lead)]


def _at(term: np.ndarray, lead: int, places: dict[int, int], ndim: int) -> np.ndarray:
    return transposed_to(term, lead, [places.get(i) for i in range(ndim)])


def _gather(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    numbers, sizes = e.params["dimension_numbers"], e.params["slice_sizes"]
    d.hold(values[1:], e, "is an index")
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    shape = e.operand_shapes[0]
    picked = [i for i in range(len(shape)) if i in gone or sizes[i] != shape[i]]
    value = d.held_along(values[0], picked, e, "is picked by an index")
    kept = iter([i for i in range(len(shape)) if i not in gone])
    positions = [next(kept) if i in numbers.offset_dims else None for i in range(len(e.result_shapes[0]))]
    return [value._replace(terms=tuple(transposed_to(t, value.lead, positions) for t in value.terms))]


def _dynamic_slice(d: ScaleDomain, e: Equation, values: list[Scaled]) -> list[Scaled]:
    old, new = e.operand_shapes[0], e.result_shapes[0]
    cut = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    return [d.held_along(values[0], cut, e, "is sliced at an index that is computed")]


_RULES: dict[str, ScaleRule] = {
    **dict.fromkeys(IDENTITY, _identity),
    **dict.fromkeys(COMPARISONS, _compare),
    **dict.fromkeys(WINDOWS - {"select_and_gather_add"}, _window),
    **dict.fromkeys(["add", "add_any", "sub", "max", "min", "clamp", "select_n"], _same),
    **dict.fromkeys(["neg", "abs", "real", "imag"], _first),
    **dict.fromkeys(["reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "rev"], _move),
    **dict.fromkeys(["reduce_sum", "reduce_max", "reduce_min"], _reduce),
    **dict.fromkeys(["cumsum", "cummax", "cummin"], _along_axis),
    **dict.fromkeys(["mul", "div"], _mul),
    "sign": _sign,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
}


def scale_rule_of(equation: Equation, linear: bool) -> ScaleRule | None:
    """The rule for an equation's primitive, if there is one."""
    name = equation.primitive
    ordered = name in _ORDER or (name in WINDOWS and name != "reduce_window_sum")
    return None if linear and ordered else _RULES.get(name)
