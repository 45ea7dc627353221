"""A domain that carries `Labels` through the jaxpr. Primitives without a rule freeze their axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelzip_jax.trace.coupling.labels import AxisLabels, Labels, Reason
from modelzip_jax.trace.coupling.layout import Axes, Labelled, RuleContext
from modelzip_jax.trace.coupling.rules import rule_of
from modelzip_jax.trace.coupling.zeros import vanishing
from modelzip_jax.trace.jaxpr.interpreter import Domain
from modelzip_jax.trace.jaxpr.programs import Equation

__all__ = ["Couple"]


class Couple(Domain[Labelled]):
    """Records in `labels` what each equation couples.

    uncovered: equations that no rule covers. axes: labels of the axes of all results, each array once.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.axes: dict[int, AxisLabels] = {}
        self.uncovered: dict[str, Reason] = {}

    def new(self, shape: Sequence[int], reason: Reason, fixed: bool) -> Labelled:
        """A variable whose axes cannot shrink."""
        axes = tuple(self.labels.frozen(size, reason) for size in shape)
        return Labelled(axes, fixed, (False,) * len(axes))

    def constant(self, shape: tuple[int, ...]) -> Labelled:
        return self.new(shape, Reason("", "", "a constant of the model"), True)

    def primitive(self, equation: Equation, values: list[Labelled]) -> list[Labelled]:
        fixed = all(v.fixed for v in values)
        rule = rule_of(equation)
        made = rule(RuleContext(self.labels, equation, values)) if rule else None
        if made is None:
            made = self._give_up(equation, values)
        alone = Reason(equation.path, equation.primitive, "the only element of an axis")
        for axis in (axis for axes in made for axis in axes if axis.shape[0] == 1):
            self.labels.freeze(axis, alone)
        self.axes.update((id(axis), axis) for axes in made for axis in axes)
        flags = vanishing(equation, values)
        return [Labelled(tuple(axes), fixed, flag) for axes, flag in zip(made, flags, strict=True)]

    def _give_up(self, equation: Equation, values: list[Labelled]) -> list[Axes]:
        reason = Reason(equation.path, equation.primitive, "no rule for this primitive")
        if any(v.axes for v in values):
            self.uncovered[equation.path] = reason
        for value in values:
            for axis in value.axes:
                self.labels.freeze(axis, reason)
        return [[self.labels.frozen(size, reason) for size in shape] for shape in equation.result_shapes]

    def join(self, old: Labelled, new: Labelled, equation: Equation) -> Labelled:
        reason = Reason(equation.path, equation.primitive, "passes a loop or branch in two forms")
        for a, b in zip(old.axes, new.axes, strict=True):
            self.labels.equate([a, b], reason)
        flags = tuple(a and b for a, b in zip(old.vanishes, new.vanishes, strict=True))
        return Labelled(old.axes, old.fixed and new.fixed, flags)

    def layer(self, value: Labelled, equation: Equation) -> Labelled:
        self.labels.freeze(value.axes[0], Reason(equation.path, equation.primitive, "scanned over"))
        return Labelled(value.axes[1:], value.fixed, value.vanishes[1:])

    def stack(self, value: Labelled, length: int, equation: Equation) -> Labelled:
        reason = Reason(equation.path, equation.primitive, "scanned over")
        axes = (self.labels.frozen(length, reason), *value.axes)
        return Labelled(axes, value.fixed, (False, *value.vanishes))

    def shard(self, value: Labelled, parts: Sequence[int], equation: Equation) -> Labelled:
        """Every shard loses the same of its elements."""
        reason = Reason(equation.path, equation.primitive, "one element a shard")
        axes = []
        for axis, n in zip(value.axes, parts, strict=True):
            *shards, local = self.labels.split(axis, (n, axis.shape[0] // n), reason) if n > 1 else [axis]
            for shard in shards:
                self.labels.freeze(shard, reason)
            axes.append(local)
        return Labelled(tuple(axes), value.fixed, value.vanishes)

    def unshard(self, value: Labelled, parts: Sequence[int], equation: Equation) -> Labelled:
        axes = [np.tile(axis, (n, 1)) for axis, n in zip(value.axes, parts, strict=True)]
        return Labelled(tuple(axes), value.fixed, value.vanishes)
