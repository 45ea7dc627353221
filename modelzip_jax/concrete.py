"""Arrays whose values can be read where they lie: what may be computed without compiling for each shape.

XLA compiles a program for every shape, in some 0.1 s, and keeps it. What is done once for each tensor of a
network, as compression does, costs less on the host, or by programs for blocks of a few sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["any_nan", "host_view", "host_views", "placed", "traced_once", "zeros_like"]

Function = TypeVar("Function", bound=Callable[..., Any])


def host_view(x: Any) -> np.ndarray | None:
    """The values as a NumPy array that shares their memory; None where they cannot be read so.

    That is: of a tracer, of an array on another device than the default one, of one that is sharded, and wherever
    the default device is no CPU, so that what would be computed there is computed there.

    >>> host_view(jnp.ones(2)), jax.jit(lambda x: x + (host_view(x) is None))(1)
    (array([1., 1.], dtype=float32), Array(2, dtype=int32, weak_type=True))
    """
    if isinstance(x, jax.core.Tracer):
        return None
    device = _default_device()
    if device.platform != "cpu":
        return None
    if not isinstance(x, jax.Array):
        return np.asarray(x)
    return np.asarray(x) if x.is_fully_addressable and x.devices() == {device} else None


def host_views(*arrays: Any) -> tuple[np.ndarray, ...] | None:
    """The `host_view` of each, if there is one of all."""
    views = tuple(host_view(x) for x in arrays)
    return None if any(view is None for view in views) else views  # type: ignore[return-value]


def any_nan(x: Any) -> bool:
    """Whether a value is NaN; False of a tracer, which nobody can look at.

    >>> any_nan(jnp.array([1.0, jnp.nan])), any_nan(jnp.array([1.0, jnp.inf]))
    (True, False)
    """
    if isinstance(x, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return False
    seen = host_view(x)
    if seen is not None:
        return bool(np.isnan(seen).any())
    with jax.ensure_compile_time_eval():
        return bool(jnp.isnan(x).any())


def traced_once(*static: int) -> Callable[[Function], Function]:
    """A decorator for what is done to each leaf: of leaves of one shape it is traced and lowered once.

    Within a trace the function is under `jax.jit`, whose traces are kept; otherwise it runs as it is, as XLA would
    compile a program for every shape.

    Args:
      static: places of arguments that are no arrays, as in `jax.jit`.

    >>> @traced_once(1)
    ... def scaled(x, factor):
    ...     return factor * x
    >>> scaled(jnp.ones(1), 3.0), jax.jit(lambda x: scaled(x, 3.0))(jnp.ones(1))
    (Array([3.], dtype=float32), Array([3.], dtype=float32))
    """

    def decorate(function: Function) -> Function:
        jitted = jax.jit(function, static_argnums=static)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            traced = any(isinstance(x, jax.core.Tracer) for x in arguments)
            return (jitted if traced else function)(*arguments)

        return call  # type: ignore[return-value]

    return decorate


def placed(x: np.ndarray) -> jax.Array:
    """The values on the default device, without compiling anything; shares their memory where they are aligned."""
    return jax.device_put(x)


def zeros_like(x: Any, dtype: Any = None) -> jax.Array:
    """`jnp.zeros_like`, without compiling anything where `x` can be read."""
    seen = host_view(x)
    return jnp.zeros_like(x, dtype) if seen is None else placed(np.zeros_like(seen, dtype))


def _default_device() -> jax.Device:
    chosen = jax.config.jax_default_device
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return chosen
