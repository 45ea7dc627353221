"""Reading a codebook, and what gradients make of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from modelzip_jax.sharing.scaling import scaled, unit
from modelzip_jax.sharing.sums import matmul, summed_at

__all__ = ["attention", "look_up", "soft_means", "soft_read", "twins"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def look_up(w: jax.Array, codebook: jax.Array, codes: jax.Array, through: bool) -> jax.Array:
    """`codebook[codes]`, in place of the latents `w` that were assigned those codes.

    The gradient of an entry is the sum over the weights that share it (Han et al. 2016, eq. 3). That of the
    latents is passed through if `through` is set, so that a later assignment can differ, else it is 0.

    Args:
      w: latents, floats. codebook: `(k,)` or `(k, block)`. codes: integers, such that `codebook[codes]`
        has the shape of `w`.

    >>> w, codes = jnp.zeros(3), jnp.array([0, 1, 1])
    >>> jax.grad(lambda book: look_up(w, book, codes, False).sum())(jnp.array([2.0, 4.0]))
    Array([1., 2.], dtype=float32)
    """
    return codebook[codes]


def _read_forward(w, codebook, codes, through):  # type: ignore[no-untyped-def]
    return codebook[codes], (codebook, codes)


def _read_backward(through, saved, g):  # type: ignore[no-untyped-def]
    codebook, codes = saved
    summed = summed_at(codes, g, len(codebook))
    return (g if through else None), summed, None  # None: a zero that nothing is computed with.


look_up.defvjp(_read_forward, _read_backward)


def attention(
    w: Float[jax.Array, "n block"], codebook: Float[jax.Array, "k block"], temperature: jax.Array
) -> Float[jax.Array, "n k"]:
    """DKM's soft assignment, softmax(-distance / temperature): `(n, k)` for `(n, block)` and `(k, block)`.

    Cho et al. 2022, arXiv:2108.12659, section 3.2. Takes n · k floats. A temperature of 0 counts as the lowest above.
    """
    apart = w[:, None] - codebook[None]
    if w.shape[1] == 1:
        distance = jnp.abs(apart[:, :, 0])
    else:
        # Of the square root at 0 the gradient would be infinite.
        tiny = jnp.finfo(w.dtype).tiny
        distance = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(apart), axis=-1), tiny))
    # Only what is further than the nearest counts, and the division may give inf for that but not for all.
    least = jax.lax.stop_gradient(jnp.min(distance, axis=-1, keepdims=True))
    temperature = jnp.maximum(temperature, jnp.finfo(w.dtype).tiny)
    return jax.nn.softmax((least - distance) / temperature, axis=-1)


@jax.custom_vjp
def soft_read(w: jax.Array, codebook: jax.Array, codes: jax.Array, temperature: jax.Array) -> jax.Array:
    """`codebook[codes]` with the gradient of DKM's layer with respect to the latents.

    The layer is A C with A = `attention(w, codebook)` and C the means of w under A: one iteration from
    the codebook, which follows the latents from step to step. Its value is replaced by the nearest entries, which
    are what is stored. While entries are equal, as all are of a leaf that starts at zero, the gradient goes straight
    through: the layer's own would move latents that share an entry together, and no two could ever part.

    Args:
      w: latents `(n, block)`. codebook: `(k, block)`. codes: `(n,)`. temperature: scalar.
    """
    return codebook[codes]


def soft_means(
    w: Float[jax.Array, "n block"],
    a: Float[jax.Array, "n k"],
    codebook: Float[jax.Array, "k block"],
    weights: Float[jax.Array, "n block"] | None = None,
) -> Float[jax.Array, "k block"]:
    """Means of the latents under an assignment `(n, k)`; an entry that nothing is assigned to stays.

    weights: as `w`, the largest near 1, or None.
    """
    mass = matmul(a.T, jnp.ones_like(w) if weights is None else weights)
    first = matmul(a.T, w if weights is None else weights * w)
    return jnp.where(mass > 1e-6, first / jnp.maximum(mass, 1e-6), codebook)


def twins(codebook: Float[jax.Array, "k block"]) -> Bool[jax.Array, " k"]:
    """Whether each entry of `(k, block)` has an equal one before it: bools `(k,)`."""
    equal = jnp.all(codebook[:, None] == codebook[None], axis=-1)
    return jnp.any(jnp.tril(equal, -1), axis=1)


def _layer(w: jax.Array, codebook: jax.Array, temperature: jax.Array) -> jax.Array:
    a = attention(w, codebook, temperature)
    return matmul(a, soft_means(w, a, codebook))


def _soft_forward(w, codebook, codes, temperature):  # type: ignore[no-untyped-def]
    return codebook[codes], (w, codebook, temperature)


def _soft_backward(saved, g):  # type: ignore[no-untyped-def]
    w, codebook, temperature = saved
    # The layer has the unit of its arguments, its gradient has none.
    e = unit([w, codebook])
    w, entries = scaled(w, -e), scaled(codebook, -e)
    _, pull = jax.vjp(lambda w: _layer(w, entries, scaled(temperature, -e)), w)
    through = jnp.where(jnp.any(twins(codebook)), g, pull(g)[0])
    return through, jnp.zeros_like(codebook), None, jnp.zeros_like(temperature)


soft_read.defvjp(_soft_forward, _soft_backward)
