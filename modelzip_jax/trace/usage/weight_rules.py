"""Weights as variables: what is known of them, and how primitives rearrange or change them.

The rules see only weights and constants. What a rule cannot express raises `Misaligned`; the result is
then a derived weight of which only the leaves are known, so that nothing is ever guessed.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence

from modelzip_jax.trace.jaxpr.primitives import ELEMENTWISE, IDENTITY, REDUCTIONS
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.usage.views import Misaligned, View, repeated

__all__ = ["ACTIVATION", "CONSTANT", "Origin", "Weight", "changed_by", "combined", "derive"]


class _Kind(enum.Enum):
    CONSTANT = "constant"
    ACTIVATION = "activation"


CONSTANT, ACTIVATION = _Kind.CONSTANT, _Kind.ACTIVATION


@dataclasses.dataclass(frozen=True)
class Weight:
    """A variable made from parameters and constants only.

    views: one for each leaf in it (several of one leaf that was taken apart and put together).
    through: the primitives that changed values on the way, in order; () for the leaf as it is.
    """

    views: tuple[View, ...]
    through: tuple[str, ...] = ()

    def unknown(self, shape: Sequence[int]) -> Weight:
        """The same leaves, and nothing known of where they are."""
        return Weight(tuple({v.unknown(shape): None for v in self.views}), self.through)

    def mapped(self, change: Callable[[View], View | None]) -> Origin:
        """Another arrangement of the same values; what holds nothing of any leaf is a constant."""
        views = tuple(v for v in map(change, self.views) if v is not None)
        return Weight(views, self.through) if views else CONSTANT


Origin = _Kind | Weight


def changed_by(through: tuple[str, ...], name: str) -> tuple[str, ...]:
    """A derived weight's history with one more primitive in it."""
    return through if name in through else (*through, name)


def combined(values: Sequence[Origin], name: str) -> Weight:
    """All weights in one, changed by a primitive."""
    views: list[View] = []
    through: tuple[str, ...] = ()
    for value in values:
        if isinstance(value, Weight):
            views += [v for v in value.views if v not in views]
            for step in value.through:
                through = changed_by(through, step)
    return Weight(tuple(views), changed_by(through, name))


def stacked_by_scan(weight: Weight, length: int) -> Weight:
    """What a scan returns of all of its iterations."""
    views = [dataclasses.replace(v, axes=(repeated(length), *v.axes)) for v in weight.views]
    return Weight(tuple(views), changed_by(weight.through, "scan"))


def derive(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    """The results of an equation of weights and constants."""
    rule = _RULES.get(equation.primitive, _unknown)
    if equation.primitive in IDENTITY:
        rule = _identity
    elif equation.primitive in ELEMENTWISE:
        rule = _elementwise
    elif equation.primitive in REDUCTIONS:
        rule = _reduce
    try:
        return rule(equation, values)
    except Misaligned:
        return _unknown(equation, values)


def _changed(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    return [combined(values, equation.primitive)] * len(equation.eqn.outvars)


def _unknown(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    """A derived weight of which only the leaves are known."""
    found = combined(values, equation.primitive)
    return [found.unknown(shape) for shape in equation.result_shapes]


def _identity(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    return list(values) if len(values) == len(equation.eqn.outvars) else _unknown(equation, values)


def _elementwise(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    shape = equation.result_shapes[0]
    wide = [_broadcast(v, shape) for v in values]
    return _changed(equation, wide)


def _broadcast(value: Origin, shape: Sequence[int]) -> Origin:
    if not isinstance(value, Weight):
        return value

    def widen(view: View) -> View:
        if len(view.axes) != len(shape):  # A scalar, as in `select_n` and `clamp`.
            return view.unknown(shape)
        return view.pick(range(len(shape)), shape)

    return value.mapped(widen)


def _reduce(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    gone = equation.params["axes" if "axes" in equation.params else "dimensions"]
    rank = len(equation.operand_shapes[0])
    if any(s not in ((), equation.operand_shapes[0]) for s in equation.operand_shapes):
        raise Misaligned
    kept = [i for i in range(rank) if i not in gone]
    shape = equation.result_shapes[0]
    pick = [v.mapped(lambda w: w.pick(kept, shape)) if isinstance(v, Weight) else v for v in values]
    return _changed(equation, pick)


def _only(values: Sequence[Origin]) -> Weight:
    """The first operand, where the rule is for it alone."""
    if not isinstance(values[0], Weight):
        raise Misaligned
    return values[0]


def _reshape(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    order, shape = equation.params.get("dimensions"), equation.operand_shapes[0]
    order = range(len(shape)) if order is None else order  # A vmapped convolution transposes as it reshapes.
    turned = [shape[i] for i in order]
    return [_only(values).mapped(lambda v: v.pick(order, turned).reshape(equation.result_shapes[0]))]


def _transpose(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    order, shape = equation.params["permutation"], equation.result_shapes[0]
    return [_only(values).mapped(lambda v: v.pick(order, shape))]


def _squeeze(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    gone = equation.params["dimensions"]
    kept = [i for i in range(len(equation.operand_shapes[0])) if i not in gone]
    return [_only(values).mapped(lambda v: v.pick(kept, equation.result_shapes[0]))]


def _broadcast_in_dim(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    shape, places = equation.result_shapes[0], list(equation.params["broadcast_dimensions"])
    positions = [places.index(i) if i in places else None for i in range(len(shape))]
    return [_only(values).mapped(lambda v: v.pick(positions, shape))]


def _slice(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    p = equation.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    bounds = list(zip(p["start_indices"], p["limit_indices"], strides, strict=True))

    def cut(view: View | None) -> View | None:
        for axis, (start, limit, stride) in enumerate(bounds):
            view = view and view.cut(axis, start, limit, stride)
        return view

    return [_only(values).mapped(cut)]


def _split(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    axis, start, found = equation.params["axis"], 0, []
    for size in map(int, equation.params["sizes"]):
        found.append(_only(values).mapped(lambda v, a=start, b=start + size: v.cut(axis, a, b)))  # type: ignore[misc]
        start += size
    return found


def _rev(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    return [_only(values).mapped(lambda v: v.reverse(equation.params["dimensions"]))]


def _together(values: Sequence[Origin]) -> list[Origin]:
    """Several leaves in one variable, each as it is."""
    weights = [v for v in values if isinstance(v, Weight)]
    through: tuple[str, ...] = ()
    for weight in weights:
        for step in weight.through:
            through = changed_by(through, step)
    return [Weight(tuple(view for w in weights for view in w.views), through)]


def _concatenate(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    axis, start = equation.params["dimension"], 0
    size = equation.result_shapes[0][axis]
    placed: list[Origin] = []
    for value, shape in zip(values, equation.operand_shapes, strict=True):
        if isinstance(value, Weight):
            placed.append(value.mapped(lambda v, at=start: v.shifted(axis, at, size)))  # type: ignore[misc]
        start += shape[axis]
    return _together(placed)


def _stack(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    axis, shape = equation.params["axis"], equation.result_shapes[0]

    def place(view: View, index: int) -> View:
        single = (*shape[:axis], 1, *shape[axis + 1 :])
        return view.reshape(single).shifted(axis, index, len(values))

    placed = [
        value.mapped(lambda v, i=i: place(v, i))  # type: ignore[misc]
        for i, value in enumerate(values)
        if isinstance(value, Weight)
    ]
    return _together(placed)


def _pad(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    if isinstance(values[1], Weight):
        raise Misaligned
    shape = equation.result_shapes[0]

    def place(view: View) -> View:
        for axis, (low, high, interior) in enumerate(equation.params["padding_config"]):
            if low < 0 or high < 0 or interior:
                raise Misaligned
            view = view.shifted(axis, low, shape[axis])
        return view

    found = _only(values).mapped(place)
    assert isinstance(found, Weight)
    return [Weight(found.views, changed_by(found.through, "pad"))]


def _dynamic_slice(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    if any(v is not CONSTANT for v in values[1:]):
        raise Misaligned
    return [_only(values).mapped(lambda v: v.counted(equation.result_shapes[0]))]


def _gather(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    """Rows that constants pick, such as the embeddings of positions."""
    if any(v is not CONSTANT for v in values[1:]):
        raise Misaligned
    numbers, shape = equation.params["dimension_numbers"], equation.result_shapes[0]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter([i for i in range(len(equation.operand_shapes[0])) if i not in gone])
    positions = [next(kept) if i in numbers.offset_dims else None for i in range(len(shape))]

    single = all(size == 1 for i, size in enumerate(shape) if i not in numbers.offset_dims)

    def pick(view: View) -> View:
        found = view.pick(positions, shape)
        gone = set(view.axes_of(range(len(view.axes)))) - set(found.axes_of(range(len(shape))))
        return found.lost(gone, "indexed" if single else "scattered")

    return [_only(values).mapped(pick)]


def _dot_general(equation: Equation, values: Sequence[Origin]) -> list[Origin]:
    """The product of two weights, such as LoRA's A B: each is seen through its own free axes."""
    contract, batch = equation.params["dimension_numbers"]
    shape, place, seen = equation.result_shapes[0], len(batch[0]), []
    for value, own, over, size in zip(values, contract, batch, equation.operand_shapes, strict=True):
        free = [i for i in range(len(size)) if i not in own and i not in over]
        positions: list[int | None] = [None] * len(shape)
        positions[: len(over)] = over
        positions[place : place + len(free)] = free
        place += len(free)
        seen.append(
            value.mapped(lambda v, p=positions: v.pick(p, shape)) if isinstance(value, Weight) else value  # type: ignore[misc]
        )
    return _changed(equation, seen)


_Rule = Callable[[Equation, Sequence[Origin]], list[Origin]]
_RULES: dict[str, _Rule] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": _slice,
    "split": _split,
    "rev": _rev,
    "concatenate": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "dot_general": _dot_general,
}
