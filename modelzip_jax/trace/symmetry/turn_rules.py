"""Vectors, squares and flat values through each primitive, axis by axis (see `TurnDomain`)."""

from __future__ import annotations

import jax.numpy as jnp

from modelzip_jax.trace.coupling.labels import Reason
from modelzip_jax.trace.jaxpr.primitives import IDENTITY
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.symmetry.turn_domain import FLAT, ZERO, Mark, TurnDomain, Turned, TurnRule, gains_of
from modelzip_jax.trace.usage.views import blocks

__all__ = ["turn_rule_of"]


def _why(e: Equation, text: str) -> Reason:
    return Reason(e.path, e.primitive, text)


def _wide(value: Turned, e: Equation) -> tuple[Mark, ...]:
    if value.marks or not e.result_shapes[0]:
        return value.marks
    return (ZERO if value.zero else FLAT,) * len(e.result_shapes[0])


def _identity(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned] | None:
    dtypes = [getattr(v.aval, "dtype", None) for v in (*e.eqn.invars, *e.eqn.outvars)]
    floating = all(t is not None and jnp.issubdtype(t, jnp.inexact) for t in dtypes)
    return list(values) if floating and len(values) == len(e.eqn.outvars) else None


def _add(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    columns = zip(*(_wide(v, e) for v in values), strict=True)
    return [Turned(tuple(d.same(c, _why(e, "meets a square")) for c in columns), all(v.zero for v in values))]


def _mul(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    if e.eqn.invars[0] is e.eqn.invars[1]:
        return _square(d, e, values)
    columns = zip(*(_wide(v, e) for v in values), strict=True)
    why = _why(e, "is multiplied with another vector")
    return [Turned(tuple(d.times(a, b, why) for a, b in columns), any(v.zero for v in values))]


def _square(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    marks = [m._replace(form="square") if m.form == "vector" else m for m in values[0].marks]
    for mark in values[0].marks:
        if mark.form == "square":
            d.turns.block(mark, _why(e, "is a fourth power"))
    return [Turned(tuple(marks))]


def _div(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    why = _why(e, "is divided by another vector")
    marks = []
    for a, b in zip(*(_wide(v, e) for v in values), strict=True):
        if b.form not in ("flat", "zero"):
            d.turns.block(b, why)
        marks.append(d.times(a, b._replace(form="flat") if b.form == "zero" else b, why))
    return [Turned(tuple(marks))]


def _first(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    return [values[0]]


def _reduce_sum(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    gone = e.params["axes"]
    for i in gone:
        d.gone(values[0].marks[i])
    return [Turned(tuple(m for i, m in enumerate(values[0].marks) if i not in gone))]


def _select(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    """One case or the other is linear in both, along axes on which the choice does not depend."""
    (found,), why = _add(d, e, values[1:]), _why(e, "is chosen between, element by element")
    marks = list(found.marks)
    for i, own in enumerate(values[0].marks):
        if own.form not in ("flat", "zero"):
            d.turns.block(own, why)
            d.turns.block(marks[i], why)
            marks[i] = own if marks[i].node < 0 else marks[i]
    return [Turned(tuple(marks))]


def _transpose(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    return [Turned(tuple(values[0].marks[i] for i in e.params["permutation"]))]


def _squeeze(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    return [Turned(tuple(m for i, m in enumerate(values[0].marks) if i not in e.params["dimensions"]))]


def _broadcast_in_dim(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    places, (value,) = list(e.params["broadcast_dimensions"]), values[:1]
    new = ZERO if value.zero else FLAT
    size = range(len(e.result_shapes[0]))
    return [Turned(tuple(value.marks[places.index(i)] if i in places else new for i in size), value.zero)]


def _reshape(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned] | None:
    old, new = e.operand_shapes[0], e.result_shapes[0]
    if e.params.get("dimensions") is not None or 0 in new:
        return None
    kept, wide = ([i for i, n in enumerate(s) if n != 1] for s in (old, new))
    marks = [FLAT] * len(new)
    for before, after in blocks([old[i] for i in kept], [new[i] for i in wide]):
        own = [values[0].marks[kept[i]] for i in before]
        if len(before) == len(after) == 1:
            marks[wide[after[0]]] = own[0]
            continue
        if all(m.form == "zero" for m in own):
            made = [ZERO] * len(after)
        elif all(m.form in ("flat", "zero") for m in own):
            made = [Mark("flat", gains=gains_of(own))] * len(after)
        else:
            why = _why(e, "is split or merged by a reshape")
            for mark in own:
                d.turns.block(mark, why)
            made = list(d.stuck([new[wide[j]] for j in after], why))
        for j, mark in zip(after, made, strict=True):
            marks[wide[j]] = mark
    return [Turned(tuple(marks), values[0].zero)]


def _cut(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    """Slices: whole axes stay, and parts of flat ones are flat."""
    why, found = _why(e, "is cut into parts"), []
    for shape in e.result_shapes:
        marks = list(values[0].marks)
        for i, (old, size) in enumerate(zip(e.operand_shapes[0], shape, strict=True)):
            if old != size and marks[i].form not in ("flat", "zero"):
                d.turns.block(marks[i], why)
                (marks[i],) = d.stuck([size], why)
        found.append(Turned(tuple(marks)))
    return found


def _concatenate(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    axis, why = e.params["dimension"], _why(e, "is put beside others")
    columns = list(zip(*(v.marks for v in values), strict=True))
    for mark in columns[axis]:
        d.turns.block(mark, why)
    zero = all(m.form == "zero" for m in columns[axis])
    (made,) = [ZERO] if zero else d.stuck([e.result_shapes[0][axis]], why)
    return [Turned(tuple(made if i == axis else d.same(c, why) for i, c in enumerate(columns)))]


def _dot_general(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    contract, batch = e.params["dimension_numbers"]
    a, b = (v.marks for v in values)
    why = _why(e, "is summed with a square or another vector")
    for i, j in zip(*contract, strict=True):
        _summed(d, a[i], b[j], why)
    both = [d.times(a[i], b[j], why) for i, j in zip(*batch, strict=True)]
    free = [
        mark
        for marks, over, own in zip((a, b), contract, batch, strict=True)
        for i, mark in enumerate(marks)
        if i not in over and i not in own
    ]
    return [Turned((*both, *free))]


def _summed(d: TurnDomain, a: Mark, b: Mark, why: Reason) -> None:
    if a.form == b.form == "vector":
        d.turns.unite([a.node, b.node])
    else:
        d.gone(d.times(a, b, why))


def _conv(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned] | None:
    p = e.params
    lhs, rhs, out = (
        p["dimension_numbers"].lhs_spec,
        p["dimension_numbers"].rhs_spec,
        p["dimension_numbers"].out_spec,
    )
    if p["batch_group_count"] != 1 or p["feature_group_count"] != 1:
        return None
    left, right = (v.marks for v in values)
    why = _why(e, "is under a convolution's window")
    for mark in [*(left[i] for i in lhs[2:]), *(right[i] for i in rhs[2:])]:
        d.turns.block(mark, why)
    _summed(d, left[lhs[1]], right[rhs[1]], why)
    marks = list(d.stuck(e.result_shapes[0], why))
    marks[out[0]], marks[out[1]] = left[lhs[0]], right[rhs[0]]
    return [Turned(tuple(marks))]


def _gather(d: TurnDomain, e: Equation, values: list[Turned]) -> list[Turned]:
    numbers, sizes, why = (
        e.params["dimension_numbers"],
        e.params["slice_sizes"],
        _why(e, "is picked by an index"),
    )
    for mark in values[1].marks:
        d.turns.block(mark, why)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = []
    for i, (mark, size) in enumerate(zip(values[0].marks, e.operand_shapes[0], strict=True)):
        if i in gone or sizes[i] != size:
            d.turns.block(mark, why)
        if i not in gone:
            kept.append(mark if sizes[i] == size else d.stuck([sizes[i]], why)[0])
    rest = iter(kept)
    shape = e.result_shapes[0]
    made = [next(rest) if i in numbers.offset_dims else d.stuck([n], why)[0] for i, n in enumerate(shape)]
    return [Turned(tuple(made))]


_RULES: dict[str, TurnRule] = {
    **dict.fromkeys(IDENTITY, _identity),
    **dict.fromkeys(["add", "add_any", "sub"], _add),
    **dict.fromkeys(["square", "integer_pow"], _square),
    **dict.fromkeys(["neg", "real", "imag"], _first),
    **dict.fromkeys(["slice", "split", "dynamic_slice"], _cut),
    "mul": _mul,
    "div": _div,
    "reduce_sum": _reduce_sum,
    "select_n": _select,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": _gather,
}


def turn_rule_of(equation: Equation) -> TurnRule | None:
    """The rule for an equation's primitive, if there is one."""
    if equation.primitive == "integer_pow" and equation.params["y"] != 2:
        return None
    return _RULES.get(equation.primitive)
