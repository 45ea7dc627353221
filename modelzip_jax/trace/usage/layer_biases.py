"""Which bias follows a product: the leaf that is added to its result, or subtracted, before anything else."""

from __future__ import annotations

from typing import NamedTuple

from modelzip_jax.trace.jaxpr.interpreter import Domain, interpret
from modelzip_jax.trace.jaxpr.primitives import IDENTITY
from modelzip_jax.trace.jaxpr.programs import Equation, Program
from modelzip_jax.trace.measures.layer_outputs import PRODUCTS
from modelzip_jax.trace.usage.use import Use

__all__ = ["FollowingBias", "following_biases"]

_MOVES = IDENTITY | frozenset(["reshape", "transpose", "squeeze", "broadcast_in_dim"])


class FollowingBias(NamedTuple):
    """use: of the leaf, where it meets the product's result. sign: -1 where it is subtracted, as a running mean is."""

    use: Use
    sign: int


class _Result(NamedTuple):
    fixed: bool
    product: str | None = None


_FIXED, _OTHER = _Result(True), _Result(False)


def following_biases(traced: Program, uses: list[Use]) -> dict[str, FollowingBias]:
    """From the path of each product to its bias; without those whose result has none, or is read elsewhere, too.

    uses: of the model. A leaf that is used twice is no bias of one product.
    """
    domain = _Follow()
    weights = len(traced.names)
    others = len(traced.jaxpr.jaxpr.invars) - weights
    for i, value in enumerate(interpret(domain, traced, [_FIXED] * weights + [_OTHER] * others)):
        domain.read(value, f"output:{i}", None)
    at = {(use.path, use.operand): use for use in uses if use.kind == "elementwise" and not use.derived}
    times = [use.leaf for use in uses]
    found = {}
    for product, readers in domain.readers.items():
        if len(readers) != 1:
            continue
        ((path, place),) = readers.items()
        use = at.get((path, place[0])) if place else None
        if place and use is not None and times.count(use.leaf) == 1:
            found[product] = FollowingBias(use, place[1])
    return found


class _Follow(Domain[_Result]):
    """readers: of each product's result, by path; with the bias's operand and sign if there is one."""

    def __init__(self) -> None:
        self.readers: dict[str, dict[str, tuple[int, int] | None]] = {}

    def read(self, value: _Result, path: str, bias: tuple[int, int] | None) -> None:
        if value.product is not None:
            self.readers.setdefault(value.product, {})[path] = bias

    def constant(self, shape: tuple[int, ...]) -> _Result:
        return _FIXED

    def primitive(self, equation: Equation, values: list[_Result]) -> list[_Result]:
        results = len(equation.eqn.outvars)
        if all(v.fixed for v in values):
            return [_FIXED] * results
        if equation.primitive in _MOVES and len(values) == results == 1:
            return values
        for i, value in enumerate(values):
            bias = None
            if (
                equation.primitive in ("add", "sub")
                and values[1 - i].fixed
                and (i == 0 or equation.primitive == "add")
            ):
                bias = (1 - i, 1 if equation.primitive == "add" else -1)
            self.read(value, equation.path, bias)
        if equation.primitive in PRODUCTS and any(v.fixed for v in values):
            return [_Result(False, equation.path)]
        return [_OTHER] * results

    def join(self, old: _Result, new: _Result, equation: Equation) -> _Result:
        if old == new:
            return old
        for value in (old, new):
            self.read(value, equation.path, None)
        return _FIXED if old.fixed and new.fixed else _OTHER

    def layer(self, value: _Result, equation: Equation) -> _Result:
        self.read(value, equation.path, None)
        return _FIXED if value.fixed else _OTHER

    def stack(self, value: _Result, length: int, equation: Equation) -> _Result:
        return self.layer(value, equation)
