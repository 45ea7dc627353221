"""Where each variable comes from: a domain that follows parameters to where they meet activations.

A variable is a constant, an activation (it depends on the inputs) or a weight: made from parameters
and constants only. Weights carry a `View` of every leaf in them; once arithmetic has changed them
they are *derived* and name the primitives that did it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modelzip_jax.trace.jaxpr.interpreter import Domain, interpret
from modelzip_jax.trace.jaxpr.primitives import IDENTITY
from modelzip_jax.trace.jaxpr.programs import Equation, Program
from modelzip_jax.trace.usage.views import whole
from modelzip_jax.trace.usage.weight_rules import (
    ACTIVATION,
    CONSTANT,
    Origin,
    Weight,
    changed_by,
    combined,
    derive,
    stacked_by_scan,
)

__all__ = ["Meeting", "meetings"]


class Meeting(NamedTuple):
    """A weight is an operand of an equation whose other operands are activations."""

    equation: Equation
    operand: int
    weight: Weight


def meetings(program: Program) -> list[Meeting]:
    """Every place where a weight meets an activation, in the order of the jaxpr."""
    domain = _Origins()
    leaves = [Weight((whole(n, s),)) for n, s in zip(program.names, program.shapes, strict=True)]
    others = len(program.jaxpr.jaxpr.invars) - len(leaves)
    arguments: list[Origin] = [*leaves, *[ACTIVATION] * others]
    outputs = interpret(domain, program, arguments)
    found = [m for group in domain.found.values() for m in group]
    return found + [Meeting(_returned(i), 0, w) for i, w in enumerate(outputs) if isinstance(w, Weight)]


def _returned(index: int) -> Equation:
    return Equation(f"output:{index}", None, 1)


class _Origins(Domain[Origin]):
    def __init__(self) -> None:
        self.found: dict[str, list[Meeting]] = {}

    def restart(self, path: str) -> None:
        self.found = {p: m for p, m in self.found.items() if not p.startswith(path + "/")}

    def constant(self, shape: tuple[int, ...]) -> Origin:
        return CONSTANT

    def primitive(self, equation: Equation, values: list[Origin]) -> list[Origin]:
        if all(v is CONSTANT for v in values):
            return [CONSTANT] * len(equation.eqn.outvars)
        if ACTIVATION not in values:
            return derive(equation, values)
        met = [Meeting(equation, i, v) for i, v in enumerate(values) if isinstance(v, Weight)]
        if met:
            self.found[equation.path] = met
        if equation.primitive in IDENTITY and len(values) == len(equation.eqn.outvars) > 1:
            self.found.pop(equation.path, None)  # An optimization barrier: operands do not mix.
            return values
        return [ACTIVATION] * len(equation.eqn.outvars)

    def mutable(self, equation: Equation, values: list[Origin]) -> list[Origin]:
        met = [Meeting(equation, i, v) for i, v in enumerate(values) if isinstance(v, Weight)]
        if met:
            self.found[equation.path] = met
        return [ACTIVATION]

    def join(self, old: Origin, new: Origin, equation: Equation) -> Origin:
        if old == new or new is CONSTANT:
            return old
        if old is CONSTANT and isinstance(new, Weight):
            return Weight(new.views, changed_by(new.through, equation.primitive))
        if ACTIVATION in (old, new):
            for value in (old, new):
                if isinstance(value, Weight):
                    group = self.found.setdefault(equation.path, [])
                    if all(m.weight != value for m in group):
                        group.append(Meeting(equation, len(group), value))
            return ACTIVATION
        # Nothing finer: a carry that moves at each iteration would never become stable.
        both = combined([old, new], equation.primitive)
        return both.unknown([axis.size for axis in both.views[0].axes])

    def layer(self, value: Origin, equation: Equation) -> Origin:
        return value.mapped(lambda v: v.layer(equation.path)) if isinstance(value, Weight) else value

    def stack(self, value: Origin, length: int, equation: Equation) -> Origin:
        return stacked_by_scan(value, length) if isinstance(value, Weight) else value

    def shard(self, value: Origin, parts: Sequence[int], equation: Equation) -> Origin:
        if not isinstance(value, Weight):
            return value
        return value.mapped(lambda v: v.counted([a.size // n for a, n in zip(v.axes, parts, strict=True)]))

    def unshard(self, value: Origin, parts: Sequence[int], equation: Equation) -> Origin:
        if not isinstance(value, Weight):
            return value
        shape = [a.size * n for a, n in zip(value.views[0].axes, parts, strict=True)]
        return Weight(value.unknown(shape).views, changed_by(value.through, "shard_map"))
