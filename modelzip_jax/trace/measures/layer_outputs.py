"""The activation of a layer: what its output has become when other layers read it.

Biases, batch normalisation and nonlinearities follow a product one element at a time. A domain follows
each product's output through them, to the last value that anything else reads.
"""

from __future__ import annotations

from typing import NamedTuple

from modelzip_jax.trace.jaxpr.interpreter import Domain, interpret
from modelzip_jax.trace.jaxpr.primitives import ELEMENTWISE, IDENTITY
from modelzip_jax.trace.jaxpr.programs import Equation, Program

__all__ = ["activation_paths"]

PRODUCTS = ("dot_general", "conv_general_dilated")


class _Value(NamedTuple):
    """fixed: made of parameters and constants only. layer: path of the product it follows. made: where."""

    fixed: bool
    layer: str | None = None
    made: str = ""


_FIXED, _OTHER = _Value(True), _Value(False)


def activation_paths(program: Program) -> dict[str, str]:
    """From the path of each product to that of the equation whose result is its layer's activation.

    Followed are elementwise equations whose other operands are parameters, constants or values of the
    same layer, so that GELU's product of x and Φ(x) is one of them and a residual addition is not.
    """
    domain = _Activations()
    weights = len(program.names)
    others = len(program.jaxpr.jaxpr.invars) - weights
    outputs = interpret(domain, program, [_FIXED] * weights + [_OTHER] * others)
    for value in outputs:
        domain.read(value)
    return domain.last


class _Activations(Domain[_Value]):
    def __init__(self) -> None:
        self.last: dict[str, str] = {}
        self.order: dict[str, int] = {}

    def read(self, value: _Value) -> None:
        """Something else than the layer itself reads this value; the last one made counts."""
        order = self.order
        if value.layer is not None and order[value.made] >= order[self.last[value.layer]]:
            self.last[value.layer] = value.made

    def constant(self, shape: tuple[int, ...]) -> _Value:
        return _FIXED

    def primitive(self, equation: Equation, values: list[_Value]) -> list[_Value]:
        results = len(equation.eqn.outvars)
        self.order.setdefault(equation.path, len(self.order))
        if all(v.fixed for v in values):
            return [_FIXED] * results
        layers = {v.layer for v in values if not v.fixed}
        follows = equation.primitive in ELEMENTWISE | IDENTITY and len(layers) == 1 and results == 1
        layer = layers.pop() if follows else None
        if layer is not None:
            return [_Value(False, layer, equation.path)]
        for value in values:
            self.read(value)
        if equation.primitive not in PRODUCTS:
            return [_OTHER] * results
        self.last[equation.path] = equation.path
        return [_Value(False, equation.path, equation.path)]

    def mutable(self, equation: Equation, values: list[_Value]) -> list[_Value]:
        for value in values:
            self.read(value)
        return [_OTHER]

    def join(self, old: _Value, new: _Value, equation: Equation) -> _Value:
        if old == new or (new.fixed and not old.fixed):
            return old
        self.read(old)
        self.read(new)
        return _OTHER

    def layer(self, value: _Value, equation: Equation) -> _Value:
        self.read(value)
        return _FIXED if value.fixed else _OTHER

    def stack(self, value: _Value, length: int, equation: Equation) -> _Value:
        return self.layer(value, equation)
