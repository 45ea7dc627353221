"""What a model costs: FLOPs and bytes of every product, by parameter and by path."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from modelzip_jax.trace.jaxpr.interpreter import Visit
from modelzip_jax.trace.jaxpr.primitives import (
    CUMULATIVE,
    ELEMENTWISE,
    IDENTITY,
    MOVES,
    REDUCTIONS,
    WINDOWS,
)
from modelzip_jax.trace.jaxpr.programs import Equation, Program, program
from modelzip_jax.trace.usage.use import uses_of
from modelzip_jax.tree import PyTree

__all__ = ["Cost", "EquationCost", "cost"]

_PRODUCTS = frozenset(["dot_general", "conv_general_dilated"])
_COUNTED = _PRODUCTS | ELEMENTWISE | REDUCTIONS | IDENTITY | MOVES | CUMULATIVE | WINDOWS


@dataclasses.dataclass(frozen=True)
class EquationCost:
    """What one equation costs in a call, all of its `trips` together.

    path, primitive: the equation, see `Equation.path`. leaves: the parameters in it.
    flops: two for each multiplication and addition that is needed, as XLA counts: products with padding are
      left out. flops_padded: those with padding, too, which most published figures include.
    elementwise: one for each element that an elementwise primitive makes or a reduction reads.
    weight_bytes: of the operands made from parameters. activation_bytes: of the other operands and results.
    trips: how often it runs; None inside a `while`, and it is counted once.

    >>> found = cost(lambda p, x: x @ p["w"], {"w": np.ones((8, 4), np.float32)}, np.ones((2, 8), np.float32))
    >>> product = found.equations[0]
    >>> product.primitive, product.leaves, product.flops, product.activation_bytes
    ('dot_general', ('w',), 128, 96)
    """

    path: str
    primitive: str
    leaves: tuple[str, ...]
    flops: int
    flops_padded: int
    elementwise: int
    weight_bytes: int
    activation_bytes: int
    trips: int | None


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model, equation by equation. See `cost`.

    unknown: paths of equations whose FLOPs nothing here can count, such as a `pallas_call` or an `fft`.

    >>> params = {"up": np.ones((8, 4), np.float32), "down": np.ones((4, 1), np.float32)}
    >>> found = cost(lambda p, x: x @ p["up"] @ p["down"], params, np.ones((2, 8), np.float32))
    >>> found.flops, found.by_leaf()
    (144, {'up': 128, 'down': 16})
    """

    equations: tuple[EquationCost, ...]
    unknown: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Of all products, as XLA counts."""
        return sum(e.flops for e in self.equations)

    @property
    def flops_padded(self) -> int:
        """Of all products, those with padding included."""
        return sum(e.flops_padded for e in self.equations)

    @property
    def elementwise(self) -> int:
        """Elements made or reduced outside of products."""
        return sum(e.elementwise for e in self.equations)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that products read; a weight that is used twice is read twice."""
        return sum(e.weight_bytes for e in self.equations)

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations that products read and write."""
        return sum(e.activation_bytes for e in self.equations)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Paths of equations in a `while`, counted as if it ran once."""
        return tuple(e.path for e in self.equations if e.trips is None)

    def by_leaf(self) -> dict[str, int]:
        """FLOPs of the products each parameter takes part in.

        A product with several of them, such as fused or derived weights, counts for each.
        """
        found: collections.Counter[str] = collections.Counter()
        for e in self.equations:
            for leaf in e.leaves:
                found[leaf] += e.flops
        return dict(found)


def cost(apply_fn: Callable[..., Any], params: PyTree, *inputs: Any) -> Cost:
    """FLOPs and bytes of one call of `apply_fn(params, *inputs)`, from its jaxpr.

    Products (`dot_general`, `conv_general_dilated`) are counted as XLA's cost analysis counts them, but the
    body of a `scan` as often as it runs. Of a `cond`'s branches the most expensive one is counted, and a
    `while` once, as nobody knows how often it runs: `Cost.uncounted` lists what is in one. Pooling and
    cumulative sums are not counted; what cannot be is in `Cost.unknown`.

    Args:
      apply_fn, params, *inputs: as for `uses`; shapes suffice.

    Raises:
      LeafError: a leaf is no array.

    >>> import jax, jax.numpy as jnp
    >>> w = jnp.ones((8, 4))
    >>> found = cost(lambda p, x: jnp.maximum(x @ p, 0), w, jnp.ones((2, 8)))
    >>> found.flops, found.elementwise, found.weight_bytes
    (128, 8, 128)
    """
    return cost_of(program(apply_fn, params, *inputs))


def cost_of(traced: Program) -> Cost:
    """`cost` of a model that is traced already."""
    met: dict[str, dict[int, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for use in uses_of(traced):
        met[use.path][use.operand].append(use.leaf)
    costs = _Costs(met)
    costs.over(traced)
    return Cost(tuple(_dearest_branches(costs.found)), tuple(costs.unknown))


class _Costs(Visit):
    """Counts each equation once."""

    def __init__(self, met: dict[str, dict[int, list[str]]]):
        self.met = met
        self.found: list[EquationCost] = []
        self.unknown: list[str] = []

    def visit(self, equation: Equation) -> None:
        if equation.primitive not in _COUNTED:
            self.unknown.append(equation.path)
        made = _cost(equation, self.met.get(equation.path, {}))
        if made.flops or made.elementwise:
            self.found.append(made)


def _cost(equation: Equation, met: dict[int, list[str]]) -> EquationCost:
    trips = 1 if equation.trips is None else equation.trips
    flops = padded = other = weights = activations = 0
    if equation.primitive == "dot_general":
        flops = padded = _dot_flops(equation)
    elif equation.primitive == "conv_general_dilated":
        flops, padded = _conv_flops(equation)
    elif equation.primitive in ELEMENTWISE:
        other = sum(map(math.prod, equation.result_shapes))
    elif equation.primitive in REDUCTIONS:
        other = math.prod(equation.operand_shapes[0])
    if flops:
        sizes = [_bytes(v.aval) for v in equation.eqn.invars]
        weights = sum(size for i, size in enumerate(sizes) if i in met)
        activations = sum(sizes) - weights + sum(_bytes(v.aval) for v in equation.eqn.outvars)
    leaves = tuple(dict.fromkeys(leaf for names in met.values() for leaf in names))
    return EquationCost(
        equation.path, equation.primitive, leaves, trips * flops, trips * padded, trips * other,
        trips * weights, trips * activations, equation.trips,
    )  # fmt: skip


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _dot_flops(equation: Equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.operand_shapes[0]
    return 2 * math.prod(equation.result_shapes[0]) * math.prod(left[i] for i in contracted)


def _conv_flops(equation: Equation) -> tuple[int, int]:
    """Of the products that are needed, and of those with padding too (not with dilation's zeros)."""
    p = equation.params
    numbers = p["dimension_numbers"]
    left, right = equation.operand_shapes
    result = equation.result_shapes[0]
    spatial = [
        (left[a], right[b], result[c])
        for a, b, c in zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ]
    settings = list(
        zip(spatial, p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"], strict=True)
    )
    features = right[numbers.rhs_spec[1]] * result[numbers.out_spec[1]] * result[numbers.out_spec[0]]
    needed = math.prod(_positions(*s, padded=False) for s in settings)
    padded = math.prod(_positions(*s, padded=True) for s in settings)
    return 2 * features * needed, 2 * features * padded


def _positions(
    sizes: tuple[int, int, int],
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    window_dilation: int,
    padded: bool,
) -> int:
    """Pairs of result and window positions along one axis that fall on elements of the input."""
    size, window, result = sizes
    place = np.arange(result)[:, None] * stride + np.arange(window) * window_dilation - padding[0]
    on_element = place % dilation == 0
    inside = (place >= 0) & (place < (size - 1) * dilation + 1)
    return int(np.sum(on_element & (inside | padded)))


def _dearest_branches(equations: Sequence[EquationCost]) -> Iterable[EquationCost]:
    """All equations but those in branches of a `cond` that cost less than another branch."""
    totals: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for e in equations:
        for outer, branch in _branches(e.path):
            totals[outer][branch] += e.flops + e.elementwise
    dearest = {outer: max(count, key=lambda b, c=count: c[b]) for outer, count in totals.items()}  # type: ignore[misc]
    return (e for e in equations if all(dearest[outer] == branch for outer, branch in _branches(e.path)))


def _branches(path: str) -> Iterable[tuple[str, str]]:
    """(path of a `cond`, branch) for each one around an equation."""
    steps = path.split("/")
    for i, step in enumerate(steps[:-1]):
        if step.endswith(":cond"):
            yield "/".join(steps[: i + 1]), steps[i + 1]
