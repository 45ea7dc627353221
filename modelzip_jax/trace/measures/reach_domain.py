"""How many elements of an input each variable's element depends on, axis by axis, followed through a jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from modelzip_jax.trace.jaxpr.interpreter import Domain
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.usage.views import Axis, Factor, repeated

__all__ = ["Reach", "ReachDomain", "ReachRule", "with_axis"]


class Reach(NamedTuple):
    """Of one element of a variable.

    sizes: along each axis of the input how many of its elements the element depends on; 0: on none.
    axes: of the variable: which axes of the input it walks along, in steps of so many of the input's elements
      (a fraction after an upsampling); `None` where every element depends on the same.
    """

    sizes: tuple[Fraction, ...]
    axes: tuple[Axis, ...]

    def mixed(self, positions: Sequence[int]) -> tuple[Fraction, ...]:
        """The sizes of what depends on all elements along some axes of the variable."""
        sizes = list(self.sizes)
        for factor in (f for p in positions for f in self.axes[p].factors):
            if factor.axis is not None:
                sizes[factor.axis] += (factor.size - 1) * abs(factor.step)
        return tuple(sizes)

    def windowed(self, position: int, width: int, stride: Any, count: int) -> Reach | None:
        """What depends on windows along an axis: `width` elements from first to last, `stride` apart, `count` of them.

        None where the axis walks along several of the input's at once.
        """
        factors = self.axes[position].factors
        if all(f.axis is None for f in factors):
            return self._replace(axes=with_axis(self.axes, position, repeated(count)))
        source, _, step = factors[0]
        if len(factors) > 1 or source is None:
            return None
        sizes = list(self.sizes)
        sizes[source] += (width - 1) * abs(step)
        made = Axis(count, 0, (Factor(source, count, step * stride),) if count > 1 else ())
        return Reach(tuple(sizes), with_axis(self.axes, position, made))


def with_axis(axes: Sequence[Axis], position: int, axis: Axis) -> tuple[Axis, ...]:
    """The axes with another one in a place."""
    return (*axes[:position], axis, *axes[position + 1 :])


class ReachDomain(Domain[Reach]):
    """Keeps what the results of each product reach, by path.

    extents: of the input. rule_of: the rule for an equation, if there is one.

    Upper bounds: what no rule covers is taken to depend on everything that its operands do, and a loop that reaches
    further in each iteration on everything.
    """

    def __init__(self, extents: tuple[int, ...], rule_of: Callable[[Equation], ReachRule | None]):
        self.extents, self.rule_of = extents, rule_of
        self.found: dict[str, tuple[Fraction, ...]] = {}

    def source(self, shape: tuple[int, ...]) -> Reach:
        """The input itself."""
        axes = tuple(Axis(n, 0, (Factor(i, n, 1),) if n > 1 else ()) for i, n in enumerate(shape))
        return Reach((Fraction(1),) * len(self.extents), axes)

    def constant(self, shape: tuple[int, ...]) -> Reach:
        return Reach((Fraction(0),) * len(self.extents), tuple(map(repeated, shape)))

    def primitive(self, equation: Equation, values: list[Reach]) -> list[Reach]:
        rule = self.rule_of(equation)
        results = rule(self, equation, values) if rule else None
        if results is None:
            sizes = self.most([v.mixed(range(len(v.axes))) for v in values])
            results = [Reach(sizes, tuple(map(repeated, shape))) for shape in equation.result_shapes]
        if equation.primitive in ("dot_general", "conv_general_dilated"):
            self.found[equation.path] = results[0].sizes
        return results

    def join(self, old: Reach, new: Reach, equation: Equation) -> Reach:
        joined = self.alike([old, new], [a.size for a in old.axes])
        if equation.primitive != "cond":
            rows = zip(old.sizes, joined.sizes, self.extents, strict=True)
            joined = joined._replace(sizes=tuple(_settled(*row) for row in rows))
        return old if joined == old else joined

    def layer(self, value: Reach, equation: Equation) -> Reach:
        return Reach(value.mixed([0]), value.axes[1:])

    def stack(self, value: Reach, length: int, equation: Equation) -> Reach:
        return Reach(value.sizes, (repeated(length), *value.axes))

    def most(self, values: Sequence[Sequence[Fraction]]) -> tuple[Fraction, ...]:
        """The largest of several sizes."""
        return tuple(max((v[i] for v in values), default=Fraction(0)) for i in range(len(self.extents)))

    def alike(self, values: Sequence[Reach], shape: Sequence[int]) -> Reach:
        """What depends on the same element of each of some variables; axes that walk differently are mixed."""
        axes, every = list[Axis](), [v.sizes for v in values]
        whole = [v for v in values if len(v.axes) == len(shape)]
        for i, size in enumerate(shape):
            here = [v.axes[i] for v in whole if v.axes[i].size == size]
            walked = [a for a in here if any(f.axis is not None for f in a.factors)]
            same = all(a == walked[0] for a in walked)
            axes.append(walked[0] if walked and same else repeated(size))
            every += [] if same else [v.mixed([i]) for v in whole]
        every += [v.mixed(range(len(v.axes))) for v in values if v not in whole]
        return Reach(self.most(every), tuple(axes))


def _settled(old: Fraction, new: Fraction, extent: int) -> Fraction:
    """What a loop's carry reaches along one axis: what it reaches at first, or everything if that grows."""
    if old == 0 or new <= old:
        return new
    return old if old >= extent else Fraction(extent)


ReachRule = Callable[[ReachDomain, Equation, list[Reach]], "list[Reach] | None"]
"""What the results of an equation reach, given its operands; None where it has no answer."""
