"""Settings of JAX that a user has on for code of their own, and under which ours would stop or crawl.

`jax.transfer_guard("disallow")` stops what creates any array outside of `jit`, `jax.debug_infs` what masks by infinity,
`jax.disable_jit` decodes a file row by row in Python, and what it, `jax.numpy_rank_promotion("raise")` or strict dtypes
stop within a reader looks like a damaged file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

__all__ = ["as_compiled", "unwatched"]


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Whatever debugging settings the caller has on, arrays may be made, and be infinite on the way.

    A context, and by `@unwatched()` a decorator of what is called outside of `jit`.

    >>> with jax.transfer_guard("disallow"), unwatched():
    ...     jax.numpy.zeros(2)
    Array([0., 0.], dtype=float32)
    """
    with jax.transfer_guard("allow"), jax.debug_nans(False), jax.debug_infs(False):
        yield


@contextlib.contextmanager
def as_compiled() -> Iterator[None]:
    """Whatever settings the caller has on, one program is compiled, and gives the same integers.

    >>> with jax.disable_jit(), as_compiled():
    ...     jax.config.jax_disable_jit
    False
    """
    with (
        unwatched(),
        jax.disable_jit(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.enable_checks(False),
        jax.check_tracer_leaks(False),
    ):
        yield
