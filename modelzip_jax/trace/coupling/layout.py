"""Which axes of operands and results each primitive couples: those that move elements without changing them.

A rule gives the axes of each result, in terms of those of the operands; None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from modelzip_jax.trace.coupling.labels import AxisLabels, Labels, Reason
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.usage.views import blocks

__all__ = ["LAYOUT_RULES", "Axes", "Labelled", "Rule", "RuleContext"]

Axes = Sequence[AxisLabels]


class Labelled(NamedTuple):
    """A variable.

    axes: the labels of each axis. fixed: whether it is made of parameters and constants only. vanishes:
    for each axis, whether its elements are zero once the slices of all leaves with their labels are.
    """

    axes: tuple[AxisLabels, ...]
    fixed: bool
    vanishes: tuple[bool, ...]


class RuleContext(NamedTuple):
    """What a rule works with: an equation and its operands."""

    labels: Labels
    equation: Equation
    values: list[Labelled]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.equation.result_shapes[0]

    def why(self, text: str) -> Reason:
        return Reason(self.equation.path, self.equation.primitive, text)

    def held(self, size: int, text: str) -> AxisLabels:
        return self.labels.frozen(size, self.why(text))

    def hold(self, axis: AxisLabels, text: str) -> AxisLabels:
        """Freezes an axis of an operand, and gives that of the result."""
        self.labels.freeze(axis, self.why(text))
        return self.held(axis.shape[0], text)

    def same(self, *axes: AxisLabels) -> AxisLabels:
        return self.labels.equate(axes, self.why("meets an axis that is split another way"))


Rule = Callable[[RuleContext], "list[Axes] | None"]


def _reshape(r: RuleContext) -> list[Axes] | None:
    if r.equation.params.get("dimensions") is not None or 0 in r.shape:
        return None
    why = r.why("split or merged by a reshape")
    kept = [a for a in r.values[0].axes if a.shape[0] != 1]
    wide = [size for size in r.shape if size != 1]
    made: list[AxisLabels] = []
    for old, new in blocks([a.shape[0] for a in kept], wide):
        merged = r.labels.merge([kept[i] for i in old], why)
        made += r.labels.split(merged, [wide[i] for i in new], why)
    rest = iter(made)
    return [[r.held(1, "of length 1") if size == 1 else next(rest) for size in r.shape]]


def _transpose(r: RuleContext) -> list[Axes]:
    return [[r.values[0].axes[i] for i in r.equation.params["permutation"]]]


def _squeeze(r: RuleContext) -> list[Axes]:
    gone = r.equation.params["dimensions"]
    return [[a for i, a in enumerate(r.values[0].axes) if i not in gone]]


def _broadcast_in_dim(r: RuleContext) -> list[Axes]:
    places = list(r.equation.params["broadcast_dimensions"])
    axes = []
    for i, size in enumerate(r.shape):
        old = r.values[0].axes[places.index(i)] if i in places else None
        axes.append(old if old is not None and old.shape[0] == size else r.labels.fresh(size))
    return [axes]


def _slice(r: RuleContext) -> list[Axes]:
    p = r.equation.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return [[a[i:j:k] for a, (i, j, k) in zip(r.values[0].axes, bounds, strict=True)]]


def _split(r: RuleContext) -> list[Axes]:
    axis, axes = r.equation.params["axis"], r.values[0].axes
    ends = np.cumsum(r.equation.params["sizes"])[:-1]
    return [[*axes[:axis], part, *axes[axis + 1 :]] for part in np.split(axes[axis], ends)]


def _rev(r: RuleContext) -> list[Axes]:
    turned = r.equation.params["dimensions"]
    return [[a[::-1] if i in turned else a for i, a in enumerate(r.values[0].axes)]]


def _concatenate(r: RuleContext) -> list[Axes]:
    axis = r.equation.params["dimension"]
    parts = [v.axes[axis] for v in r.values]
    wide = max(p.shape[1] for p in parts)
    # A label twice means the same as once.
    whole = np.concatenate([np.pad(p, ((0, 0), (0, wide - p.shape[1])), mode="edge") for p in parts])
    return [[whole if i == axis else r.same(*(v.axes[i] for v in r.values)) for i in range(len(r.shape))]]


def _stack(r: RuleContext) -> list[Axes]:
    axis = r.equation.params["axis"]
    axes = [r.same(*(v.axes[i] for v in r.values)) for i in range(len(r.values[0].axes))]
    return [[*axes[:axis], r.held(len(r.values), "stacked"), *axes[axis:]]]


def _unstack(r: RuleContext) -> list[Axes]:
    axis = r.equation.params["axis"]
    r.hold(r.values[0].axes[axis], "taken apart")
    return [[a for i, a in enumerate(r.values[0].axes) if i != axis]] * len(r.equation.eqn.outvars)


def _pad(r: RuleContext) -> list[Axes] | None:
    axes = []
    for axis, (low, high, interior), size in zip(
        r.values[0].axes, r.equation.params["padding_config"], r.shape, strict=True
    ):
        if min(low, high) < 0:
            return None
        padded = np.repeat(r.held(size, "padding"), axis.shape[1], axis=1)
        padded[low : size - high : interior + 1] = axis
        axes.append(padded)
    return [axes]


def _dynamic_slice(r: RuleContext) -> list[Axes]:
    axes = []
    for axis, size in zip(r.values[0].axes, r.shape, strict=True):
        if axis.shape[0] == size:
            axes.append(axis)
        else:
            r.hold(axis, "sliced at an index that is computed")
            axes.append(r.held(size, "sliced at an index that is computed"))
    return [axes]


def _dynamic_update_slice(r: RuleContext) -> list[Axes]:
    axes = []
    for axis, update in zip(r.values[0].axes, r.values[1].axes, strict=True):
        if axis.shape[0] == update.shape[0]:
            axes.append(r.same(axis, update))
        else:
            r.hold(update, "written at an index that is computed")
            axes.append(r.hold(axis, "written at an index that is computed"))
    return [axes]


def _gather(r: RuleContext) -> list[Axes]:
    p = r.equation.params
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    operand, indices = r.values[0].axes, r.values[1].axes
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    for axis in indices:
        r.labels.freeze(axis, r.why("of indices"))
    kept = []
    for i, (axis, size) in enumerate(zip(operand, sizes, strict=True)):
        if i in gone or axis.shape[0] != size:
            r.hold(axis, "indexed")
        if i not in gone:
            kept.append(axis if axis.shape[0] == size else r.held(size, "indexed"))
    rest = iter(kept)
    return [
        [next(rest) if i in numbers.offset_dims else r.held(s, "of indices") for i, s in enumerate(r.shape)]
    ]


def _iota(r: RuleContext) -> list[Axes]:
    own = r.equation.params["dimension"]
    return [[r.held(s, "numbered") if i == own else r.labels.fresh(s) for i, s in enumerate(r.shape)]]


LAYOUT_RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": _slice,
    "split": _split,
    "rev": _rev,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
}
