"""What leaves must be before they are encoded: arrays, floating-point, finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view
from modelzip_jax.errors import LeafError, NonFiniteError
from modelzip_jax.tree import PyTree, is_array, named_leaves

__all__ = ["all_finite", "check_arrays", "check_finite", "check_floating", "count_nonfinite"]


def check_arrays(tree: PyTree) -> None:
    """Raises `LeafError` naming the first leaf that is no array, such as a function or a `Ref`."""
    for name, leaf in named_leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
            raise LeafError(f"leaf {name!r} has been donated to a jitted function; pass what that returned")
        if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
            raise LeafError(
                f"leaf {name!r} has the byte order of other machines ({leaf.dtype.str}), which JAX does not read; "
                "pass leaf.astype(leaf.dtype.newbyteorder('='))"
            )
        if not is_array(leaf):
            raise LeafError(
                f"leaf {name!r} is a {type(leaf).__name__}, not an array; pass arrays only (for an "
                "equinox module `eqx.filter(model, eqx.is_array)`, for NNX `nnx.state(model, nnx.Param)`)"
            )


def check_floating(tree: PyTree, what: str) -> None:
    """Raises `LeafError` naming the first leaf that is no real floating-point array.

    >>> check_floating({"w": jnp.zeros(2), "ids": jnp.arange(2)}, "prune")
    Traceback (most recent call last):
    modelzip_jax.errors.LeafError: prune cannot encode leaf 'ids' of dtype int32; select ...
    """
    check_arrays(tree)
    for name, leaf in named_leaves(tree):
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise LeafError(
                f"{what} cannot encode leaf {name!r} of dtype {dtype}; select floating-point leaves, "
                "for example with mz.only('**/kernel', ...)"
            )


def check_finite(tree: PyTree, so: str = "a network that holds them cannot be compressed") -> None:
    """Raises `NonFiniteError` naming the first leaf with NaN or infinity. Tracers pass unread.

    Args:
      so: what follows from it, the end of the message.

    >>> check_finite({"w": jnp.array([1.0, jnp.nan])})
    Traceback (most recent call last):
    modelzip_jax.errors.NonFiniteError: leaf 'w' has 1 NaN or infinite values of 2; a network that holds them ...
    """
    for name, leaf in named_leaves(tree):
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            continue
        bad = count_nonfinite(leaf)
        if bad:
            raise NonFiniteError(f"leaf {name!r} has {bad} NaN or infinite values of {np.size(leaf)}; {so}")


def all_finite(tree: PyTree) -> jax.Array:
    """Whether all values are finite, boolean scalar; may be traced.

    >>> all_finite({"w": jnp.ones(2), "b": jnp.array(jnp.inf)})
    Array(False, dtype=bool)
    """
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    if not flags:
        return jnp.bool_(True)
    # By a product: XLA would compute a conjunction, as long as the network has leaves, within each loop that reads it.
    numbers = jnp.stack(flags).astype(jnp.float32)
    return jnp.dot(numbers, numbers, precision=jax.lax.Precision.HIGHEST) == len(flags)


@jax.jit
def _nonfinite(x: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.int32)


def count_nonfinite(leaf: Any) -> int:
    """How many values of an array are NaN or infinite.

    >>> count_nonfinite(jnp.array([1.0, jnp.nan, jnp.inf]))
    2
    """
    seen = leaf if isinstance(leaf, np.ndarray) else host_view(leaf)
    if seen is not None:  # nothing to compile for each shape
        return seen.size - int(np.count_nonzero(np.isfinite(seen)))
    with jax.ensure_compile_time_eval():  # within somebody's jit, a leaf it closes over is still known
        return int(_nonfinite(leaf))
