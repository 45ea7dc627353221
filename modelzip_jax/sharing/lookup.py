"""Reading a codebook, and what gradients make of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

__all__ = ["attention", "read", "soft_read"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def read(w: jax.Array, codebook: jax.Array, codes: jax.Array, through: bool) -> jax.Array:
    """`codebook[codes]`, in place of the latents `w` that were assigned those codes.

    The gradient of an entry is the sum over the weights that share it (Han et al. 2016, eq. 3). That of the
    latents is passed through if `through` is set, so that a later assignment can differ, else it is 0.

    Args:
      w: latents, floats. codebook: `(k,)` or `(k, block)`. codes: integers, such that `codebook[codes]`
        has the shape of `w`.

    >>> w, codes = jnp.zeros(3), jnp.array([0, 1, 1])
    >>> jax.grad(lambda book: read(w, book, codes, False).sum())(jnp.array([2.0, 4.0]))
    Array([1., 2.], dtype=float32)
    """
    return codebook[codes]


def _read_forward(w, codebook, codes, through):  # type: ignore[no-untyped-def]
    return codebook[codes], (codebook, codes)


def _read_backward(through, saved, g):  # type: ignore[no-untyped-def]
    codebook, codes = saved
    summed = jnp.zeros_like(codebook).at[codes].add(g, mode="promise_in_bounds")
    return (g if through else jnp.zeros_like(g)), summed, None


read.defvjp(_read_forward, _read_backward)


def attention(w: jax.Array, codebook: jax.Array, temperature: jax.Array) -> jax.Array:
    """DKM's soft assignment, softmax(-distance / temperature): `(n, k)` for `(n, block)` and `(k, block)`.

    Cho et al. 2022, arXiv:2108.12659, section 3.2. Takes n · k floats.
    """
    distance = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(w[:, None] - codebook), axis=-1), 1e-30))
    return jax.nn.softmax(-distance / temperature, axis=-1)


@jax.custom_vjp
def soft_read(w: jax.Array, codebook: jax.Array, codes: jax.Array, temperature: jax.Array) -> jax.Array:
    """`codebook[codes]` with the gradient of DKM's layer with respect to the latents.

    The layer is A C with A = `attention(w, codebook)` and C the means of w under A: one iteration from
    the codebook, which follows the latents from step to step. Its value is replaced by the nearest entries, which
    are what is stored.

    Args:
      w: latents `(n, block)`. codebook: `(k, block)`. codes: `(n,)`. temperature: scalar.
    """
    return codebook[codes]


def soft_means(
    w: jax.Array, a: jax.Array, codebook: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Means of the latents under an assignment `(n, k)`; an entry that nothing is assigned to stays."""
    weights = jnp.ones_like(w) if weights is None else weights
    mass = a.T @ weights
    return jnp.where(mass > 1e-6, (a.T @ (weights * w)) / jnp.maximum(mass, 1e-6), codebook)


def _layer(w: jax.Array, codebook: jax.Array, temperature: jax.Array) -> jax.Array:
    a = attention(w, codebook, temperature)
    return a @ soft_means(w, a, codebook)


def _soft_forward(w, codebook, codes, temperature):  # type: ignore[no-untyped-def]
    return codebook[codes], (w, codebook, temperature)


def _soft_backward(saved, g):  # type: ignore[no-untyped-def]
    w, codebook, temperature = saved
    _, pull = jax.vjp(lambda w: _layer(w, codebook, temperature), w)
    return pull(g)[0], jnp.zeros_like(codebook), None, jnp.zeros_like(temperature)


soft_read.defvjp(_soft_forward, _soft_backward)
