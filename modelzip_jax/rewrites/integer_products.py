"""Quantized activations: a model's own products computed on rounded or integer operands.

The model is not touched: its jaxpr is evaluated with other arithmetic in the chosen `dot_general` and
`conv_general_dilated` equations, which `trace.uses` has found.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.errors import TraceError, TransformError
from modelzip_jax.naming import nearest_name
from modelzip_jax.packed import is_packed
from modelzip_jax.packing import unpack
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.trace.jaxpr.evaluator import Evaluator, Visitor, bind
from modelzip_jax.trace.jaxpr.programs import Equation, program
from modelzip_jax.trace.measures.input_statistics import scans_around
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.tree import PyTree

__all__ = ["ARITHMETIC", "RANGES", "quantize_activations"]

ARITHMETIC = ("fake", "integer")
RANGES = ("tensor", "row", "static")


@dataclasses.dataclass(frozen=True)
class _Product:
    """How one product is computed.

    operand: which of the equation's two operands is the weight. bits: of both operands' codes.
    """

    operand: int
    bits: int
    arithmetic: str
    ranges: str

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1


def quantize_activations(
    apply_fn: Callable[..., Any],
    *,
    bits: int = 8,
    arithmetic: str = "integer",
    ranges: str = "row",
    stats: PyTree = None,
    only: str | Sequence[str] = "**",
) -> Callable[..., Any]:
    """The model with quantized operands in its products with parameters; same signature.

    Codes are symmetric, q = clip(round(x / s), ±(2^(bits-1) - 1)). The weights of a chosen product are
    quantized, too, with a step for each output channel, max |w| / (2^(bits-1) - 1); weights that `mz.quantize`
    has rounded so already keep their codes. Products of two activations, and of *derived* weights (LoRA's
    W + A B), stay as they are.

    Gradients are straight-through: those of the product at the rounded operands, zero where a static range
    clips. The result is pure, jittable, and works under `vmap`, `scan` and `remat` inside the model.

    Args:
      apply_fn: called as `apply_fn(params, *inputs)`. `params` may hold packed arrays, which are unpacked
        inside: weights stay packed in device memory.
      bits: 2 to 8, of activations and weights.
      arithmetic: "integer": int8 operands and int32 sums, scaled afterwards; "fake": the same rounding, then
        a product of floats, for training and for devices without fast integer products.
        Convolutions on a GPU sum integer codes in float32, exact up to 2**24.
      ranges: of activations. "row": a step for each output row (each token; each image of a convolution);
        "tensor": one for the batch, both from the data at hand; "static": from `stats`.
      stats: for "static", what `trace.statistics` gives with the kind "range".
      only: path patterns of the leaves whose products are quantized.

    Raises:
      TransformError: an unknown option; bits outside 2 to 8; static ranges without `stats`.
      PatternError (at the first call): a pattern matches no leaf.
      TraceError (at the first call): no product to quantize, or `stats` lack a use.

    Jacob et al. 2018, arXiv:1712.05877; per-token ranges: Yao et al. 2022 (ZeroQuant), arXiv:2206.01861.

    >>> params = {"kernel": jnp.array([[1.0, 0.5], [-1.0, 0.25]])}
    >>> model = quantize_activations(lambda p, x: x @ p["kernel"])
    >>> model(params, jnp.array([[2.0, 1.0]]))
    Array([[0.992126 , 1.2539525]], dtype=float32)
    """
    _check(bits, arithmetic, ranges, stats)
    patterns = [only] if isinstance(only, str) else list(only)

    @functools.wraps(apply_fn)
    def quantized(params: PyTree, *inputs: Any) -> Any:
        if any(map(is_packed, jax.tree.leaves(params, is_leaf=is_packed))):
            params = unpack(params)
        traced = program(apply_fn, params, *inputs)
        require_matches(patterns, traced.names)
        chosen = _chosen(uses_of(traced), patterns)
        if not chosen:
            raise TraceError(f"the model has no product with a leaf that {patterns} matches")
        visitors = {
            use.path: _visitor(_Product(use.operand, bits, arithmetic, ranges)) for use in chosen.values()
        }
        feeds = _static(chosen, stats) if ranges == "static" else {}
        outputs, _ = Evaluator(visitors, _merge, _empty)(traced, jax.tree.leaves((params, inputs)), feeds)
        return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs)

    return quantized


def _check(bits: int, arithmetic: str, ranges: str, stats: PyTree) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise TransformError(f"bits must be an integer from 2 to 8, not {bits!r}")
    for field, value, known in (("arithmetic", arithmetic, ARITHMETIC), ("ranges", ranges, RANGES)):
        if value not in known:
            raise TransformError(f"{field} is {value!r}; {nearest_name(str(value), known)}")
    if (ranges == "static") != (stats is not None):
        raise TransformError("ranges='static' and stats go together: trace.statistics(..., kinds=('range',))")


def _chosen(uses: list[Use], patterns: list[str]) -> dict[str, Use]:
    """The uses to quantize by the path of their equation; leaves put together there count once."""
    found: dict[str, Use] = {}
    for use in uses:
        product = use.kind in ("dot", "conv") and not use.derived
        if product and any(matches(pattern, use.leaf) for pattern in patterns):
            found.setdefault(use.path, use)
    return found


def _static(chosen: dict[str, Use], stats: PyTree) -> dict[str, jax.Array]:
    """The largest |activation| at each use; inside scans, one for each iteration."""
    measured = {(m.use.leaf, m.use.index): m for m in jax.tree.leaves(stats, is_leaf=_is_measured)}
    feeds = {}
    for path, use in chosen.items():
        seen = measured.get((use.leaf, use.index))
        if seen is None or seen.inputs is None or seen.inputs.maximum is None:
            raise TraceError(f"stats have no range of the inputs of {use.leaf!r} at {path}")
        layers = len(use.view.layers)
        if len(scans_around(path)) != layers:
            raise TraceError(f"{use.leaf!r} is shared by the iterations of a scan: use ranges='row'")
        largest = jnp.maximum(jnp.abs(seen.inputs.minimum), jnp.abs(seen.inputs.maximum))
        feeds[path] = largest.max(axis=tuple(range(layers, largest.ndim)))
    return feeds


def _is_measured(x: Any) -> bool:
    return hasattr(x, "use") and hasattr(x, "inputs")


def _merge(a: PyTree, b: PyTree) -> PyTree:
    return a


def _empty(shapes: PyTree) -> PyTree:
    return shapes


def _visitor(how: _Product) -> Visitor:
    def visit(equation: Equation, operands: list[Any], largest: Any) -> tuple[list[Any], None]:
        weight, activation = operands[how.operand], operands[1 - how.operand]
        weight_step = _step(
            jnp.max(jnp.abs(weight), axis=_summed(equation, how.operand), keepdims=True), how.high
        )
        if how.ranges == "static":
            size = jnp.asarray(largest, activation.dtype).reshape((1,) * activation.ndim)
        else:
            axes = _summed(equation, 1 - how.operand) if how.ranges == "row" else None
            size = jnp.max(jnp.abs(activation), axis=axes, keepdims=True)
        step = _step(lax.stop_gradient(size), how.high)
        if how.ranges == "static":  # No gradient through what is clipped.
            inside = jnp.abs(activation) <= size
            activation = jnp.where(inside, activation, lax.stop_gradient(activation))
        return [_product(equation, how, activation, weight, step, lax.stop_gradient(weight_step))], None

    return visit


def _summed(equation: Equation, operand: int) -> tuple[int, ...]:
    """Axes of an operand over which its step must be one: those that an output element sums over."""
    numbers = equation.params["dimension_numbers"]
    if equation.primitive == "dot_general":
        return tuple(numbers[0][operand])
    kept = numbers.lhs_spec[0] if operand == 0 else numbers.rhs_spec[0]
    return tuple(i for i in range(len(equation.operand_shapes[operand])) if i != kept)


def _step(size: jax.Array, high: int) -> jax.Array:
    tiny = jnp.finfo(size.dtype).tiny
    return jnp.where(size > 0, jnp.maximum(size / high, tiny), 1.0).astype(size.dtype)


def _codes(x: jax.Array, step: jax.Array, high: int) -> jax.Array:
    # The barrier keeps a division by a constant a division, as in `quantization.rounding`.
    return jnp.clip(jnp.round(x / lax.optimization_barrier(step)), -high, high)


def _product(
    equation: Equation,
    how: _Product,
    activation: jax.Array,
    weight: jax.Array,
    step: jax.Array,
    weight_step: jax.Array,
) -> jax.Array:
    """The equation's result on rounded operands; its gradient is that of the float product at them."""

    def ordered(a: Any, w: Any) -> list[Any]:
        return [w, a] if how.operand == 0 else [a, w]

    def rounded(x: jax.Array, s: jax.Array) -> jax.Array:
        return (_codes(x, s, how.high) * s).astype(x.dtype)

    @jax.custom_vjp
    def compute(a: jax.Array, w: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        if how.arithmetic == "fake":
            return bind(equation.eqn, ordered(rounded(a, s), rounded(w, t)))[0]
        codes = ordered(_codes(a, s, how.high).astype(jnp.int8), _codes(w, t, how.high).astype(jnp.int8))
        dtype = equation.eqn.outvars[0].aval.dtype
        return (_sums(equation, codes) * _scales(equation, ordered(s, t))).astype(dtype)

    def forward(*x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return compute(*x), x

    def backward(saved: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, ...]:
        a, w, s, t = saved
        _, pull = jax.vjp(lambda a, w: bind(equation.eqn, ordered(a, w))[0], rounded(a, s), rounded(w, t))
        return (*pull(g), jnp.zeros_like(s), jnp.zeros_like(t))

    compute.defvjp(forward, backward)
    return compute(activation, weight, step, weight_step)


def _sums(equation: Equation, codes: list[jax.Array]) -> jax.Array:
    """The same product of int8 operands, in int32, then float32."""

    def bound(codes: Sequence[jax.Array], dtype: Any) -> jax.Array:
        params = {**equation.params, "preferred_element_type": jnp.dtype(dtype), "precision": None}
        if "out_sharding" in params:
            params["out_sharding"] = None
        return equation.eqn.primitive.bind(*codes, **params).astype(jnp.float32)

    def integers(*codes: jax.Array) -> jax.Array:
        return bound(codes, jnp.int32)

    def floats(*codes: jax.Array) -> jax.Array:
        return bound([c.astype(jnp.float32) for c in codes], jnp.float32)

    if equation.primitive == "dot_general":
        return integers(*codes)
    # cuDNN convolves integers of some shapes only. Codes are exact in TF32, too, and sums of them up to 2**24.
    return lax.platform_dependent(*codes, cpu=integers, tpu=integers, default=floats)


def _scales(equation: Equation, steps: list[jax.Array]) -> jax.Array:
    """The product of both operands' steps, laid out to broadcast against the equation's result."""
    numbers = equation.params["dimension_numbers"]
    left, right = (s.astype(jnp.float32) for s in steps)
    if equation.primitive == "dot_general":
        (_, _), (left_batch, right_batch) = numbers
        shape = [equation.operand_shapes[0][i] for i in left_batch]
        left = _widened(left, left_batch, shape)
        right = _widened(right, right_batch, shape)
        # Summed axes have length 1: the sum is the product.
        return lax.dot_general(left, right, numbers, precision=lax.Precision.HIGHEST)
    spatial = len(numbers.out_spec) - 2
    rows, features = left.reshape(-1), right.reshape(-1)
    shape = [1] * (spatial + 2)
    shape[numbers.out_spec[0]] = rows.size
    by_row = rows.reshape(shape)
    shape = [1] * (spatial + 2)
    shape[numbers.out_spec[1]] = features.size
    return by_row * features.reshape(shape)


def _widened(step: jax.Array, batch: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """The steps with all of the batch axes."""
    shape = list(step.shape)
    for axis, size in zip(batch, sizes, strict=True):
        shape[axis] = size
    return jnp.broadcast_to(step, shape)
