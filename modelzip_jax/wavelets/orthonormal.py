"""Orthonormal transforms as linear primitives: the derivative of each is the other one's code.

The transpose that JAX derives of a synthesis adds up padded slices, which on a CPU takes several times as long as the
analysis that it equals. A primitive, since rules for gradients alone (`custom_vjp`) have no
forward mode, which second-order optimizers take.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["orthonormal_pair"]

ArrayMap = Callable[..., jax.Array]


def orthonormal_pair(analysis: ArrayMap, synthesis: ArrayMap, name: str) -> tuple[ArrayMap, ArrayMap]:
    """Both functions, each with the other as its transpose.

    Args:
      analysis, synthesis: `f(x, axes, **hyperparameters)`, inverse of one another and of one another's adjoint, with
        results of x's shape and dtype; axes: ascending, from 0; hyperparameters: hashable.
      name: of the primitive in a jaxpr.

    >>> roll = orthonormal_pair(lambda x, axes: jnp.roll(x, 1, axes), lambda x, axes: jnp.roll(x, -1, axes), "roll")
    >>> jax.grad(lambda x: roll[1](x, (0,))[0])(jnp.array([1.0, 2.0, 3.0]))
    Array([0., 1., 0.], dtype=float32)
    """
    primitive = Primitive(name)

    def bind(x: jax.Array, axes: tuple[int, ...], forward: bool, **given: Any) -> jax.Array:
        return primitive.bind(jnp.asarray(x), axes=axes, forward=forward, given=tuple(sorted(given.items())))

    def compute(x: jax.Array, *, axes: Any, forward: bool, given: Any) -> jax.Array:
        return (analysis if forward else synthesis)(x, axes, **dict(given))

    def transpose(cotangent: Any, _: Any, *, axes: Any, forward: bool, given: Any) -> list[Any]:
        if isinstance(cotangent, ad.Zero):
            return [cotangent]
        return [primitive.bind(cotangent, axes=axes, forward=not forward, given=given)]

    def batch(args: Any, dims: Any, *, axes: Any, forward: bool, given: Any) -> tuple[jax.Array, int]:
        moved = jnp.moveaxis(args[0], dims[0], 0)
        shifted = tuple(axis + 1 for axis in axes)
        return primitive.bind(moved, axes=shifted, forward=forward, given=given), 0

    primitive.def_impl(functools.partial(jax.jit, static_argnames=("axes", "forward", "given"))(compute))
    primitive.def_abstract_eval(lambda x, **_: x)
    ad.deflinear2(primitive, transpose)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return functools.partial(bind, forward=True), functools.partial(bind, forward=False)
