"""Products of rounded operands: on integers, with zero points taken off exactly, or on floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.quantization.activations.operand import Coded, divided, straight_through
from modelzip_jax.trace.jaxpr.evaluator import bind
from modelzip_jax.trace.jaxpr.programs import Equation

__all__ = ["at_least_float32", "coded_weight", "integer_product", "summed_axes"]


def summed_axes(equation: Equation, operand: int) -> tuple[int, ...]:
    """Axes of an operand over which its step must be one: those that an output element sums over."""
    numbers = equation.params["dimension_numbers"]
    if equation.primitive == "dot_general":
        return tuple(numbers[0][operand])
    kept = numbers.lhs_spec[0] if operand == 0 else numbers.rhs_spec[0]
    return tuple(i for i in range(len(equation.operand_shapes[operand])) if i != kept)


def at_least_float32(x: jax.Array) -> jax.Array:
    """In float32, if it was narrower: codes are computed so."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def coded_weight(w: jax.Array, bits: int, axes: tuple[int, ...], step: jax.Array | None) -> Coded:
    """Symmetric codes of weights, with a step for each output channel, or with those that they are stored with.

    Stored weights are codes times steps, rounded once, so that dividing gives their codes back, every one.
    """
    if step is not None:
        return Coded(jnp.clip(jnp.round(divided(w, step.astype(w.dtype))), -128, 127), step.astype(w.dtype))
    high = (1 << (bits - 1)) - 1
    size = jnp.max(jnp.abs(w), axis=axes, keepdims=True, initial=0.0)
    step = jnp.where(size > 0, jnp.maximum(size / high, jnp.finfo(w.dtype).tiny), 1.0).astype(w.dtype)
    return Coded(jnp.clip(jnp.round(divided(w, step)), -high, high), step)


def integer_product(
    equation: Equation, operands: Sequence[jax.Array], codes: Sequence[Coded], weight: int
) -> jax.Array:
    """The equation's result from codes: int8 operands and int32 sums, scaled afterwards.

    Args:
      operands: what codes stand for, in the operands' dtypes: gradients are those of the product of them.
      codes: of both operands. weight: which of them is the weight; it has no zero point.
    """
    held = jax.tree.map(lax.stop_gradient, [Coded(c.codes, c.step, c.zero) for c in codes])

    @jax.custom_vjp
    def compute(operands: list[jax.Array], codes: list[Coded]) -> jax.Array:
        whole = [c.codes.astype(jnp.int8) for c in codes]
        sums, zero = _sums(equation, whole), codes[1 - weight].zero
        if zero is not None:
            sums = sums - _zeros_part(equation, whole, zero.astype(jnp.int32), weight)
        steps = [_keeping_axes(c.step, x).astype(jnp.float32) for c, x in zip(codes, operands, strict=True)]
        dtype = equation.eqn.outvars[0].aval.dtype
        return (sums.astype(jnp.float32) * _laid_out(equation, *steps)).astype(dtype)

    def forward(operands: list[jax.Array], codes: list[Coded]) -> tuple[jax.Array, Any]:
        return compute(operands, codes), (operands, codes)

    def backward(saved: Any, g: jax.Array) -> tuple[Any, Any]:
        operands, codes = saved
        _, pull = jax.vjp(lambda x: bind(equation.eqn, x)[0], operands)
        return (*pull(g), jax.tree.map(jnp.zeros_like, codes))

    compute.defvjp(forward, backward)
    return compute(list(operands), held)


def rounded_weight(w: jax.Array, codes: Coded) -> jax.Array:
    """What a weight's codes stand for; gradients go straight through."""
    return straight_through(w, lax.stop_gradient(codes.values()), None)


def _keeping_axes(x: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.reshape(x, (1,) * (like.ndim - jnp.ndim(x)) + jnp.shape(x))


def _sums(equation: Equation, codes: list[jax.Array]) -> jax.Array:
    """The same product of int8 operands, in int32."""

    def bound(codes: Sequence[jax.Array], dtype: Any) -> jax.Array:
        params = {**equation.params, "preferred_element_type": jnp.dtype(dtype), "precision": None}
        if "out_sharding" in params:
            params["out_sharding"] = None
        return equation.eqn.primitive.bind(*codes, **params).astype(jnp.int32)

    def integers(*codes: jax.Array) -> jax.Array:
        return bound(codes, jnp.int32)

    def floats(*codes: jax.Array) -> jax.Array:
        return bound([c.astype(jnp.float32) for c in codes], jnp.float32)

    if equation.primitive == "dot_general":
        return integers(*codes)
    # cuDNN convolves integers of some shapes only. Codes are exact in TF32, too, and sums of them up to 2**24.
    return lax.platform_dependent(*codes, cpu=integers, tpu=integers, default=floats)


def _zeros_part(equation: Equation, codes: list[jax.Array], zero: jax.Array, weight: int) -> jax.Array:
    """What zero points have added to the sums: each times the sum of the weight's codes that it met.

    Of a convolution these are fewer at the borders, where the padding has no code: a product with ones finds them.
    """
    zero = _keeping_axes(zero, codes[1 - weight])
    if equation.primitive == "dot_general":
        axes = summed_axes(equation, weight)
        total = jnp.sum(codes[weight].astype(jnp.int32), axis=axes, keepdims=True)
        return _laid_out(equation, *((total, zero) if weight == 0 else (zero, total)))
    rows = equation.params["dimension_numbers"].lhs_spec[0]
    shape = [1 if a == rows else n for a, n in enumerate(codes[0].shape)]
    met = _sums(equation, [jnp.ones(shape, jnp.int8), codes[1]])
    return _by_row(equation, zero) * met


def _by_row(equation: Equation, x: jax.Array) -> jax.Array:
    """A convolution's number for each image, or for all, as its result has its axes."""
    numbers = equation.params["dimension_numbers"]
    return x.reshape([x.size if a == numbers.out_spec[0] else 1 for a in range(len(numbers.out_spec))])


def _laid_out(equation: Equation, left: jax.Array, right: jax.Array) -> jax.Array:
    """The product of numbers of both operands' rows, 1 along summed axes, to broadcast against the result."""
    numbers = equation.params["dimension_numbers"]
    if equation.primitive != "dot_general":
        features = [right.size if a == numbers.out_spec[1] else 1 for a in range(len(numbers.out_spec))]
        return _by_row(equation, left) * right.reshape(features)
    batches = numbers[1]

    def arranged(x: jax.Array, side: int) -> jax.Array:
        contract, batch = numbers[0][side], batches[side]
        free = [a for a in range(x.ndim) if a not in contract and a not in batch]
        return x.transpose(*batch, *free, *contract).reshape([x.shape[a] for a in (*batch, *free)])

    left, right = arranged(left, 0), arranged(right, 1)
    shared, rows, columns = len(batches[0]), left.ndim, right.ndim
    left = left.reshape(*left.shape, *(1,) * (columns - shared))
    return left * right.reshape(*right.shape[:shared], *(1,) * (rows - shared), *right.shape[shared:])
