"""Products with weights that stay in the wavelet domain: the input is transformed instead."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from modelzip_jax.errors import LeafError
from modelzip_jax.wavelets.bases import Basis

__all__ = ["coefficient_dot", "input_coefficients"]


def input_coefficients(
    x: Float[jax.Array, "*rows n"], basis: Basis, keep: int | None = None
) -> Float[jax.Array, "*rows m"]:
    """Inputs by the adjoint of the synthesis: what a row of coefficients is to be multiplied by.

    For an orthonormal basis these are the input's own wavelet coefficients.

    Args:
      x: `(..., n)`. basis: over one axis. keep: only the frequencies below it.

    Returns:
      `(..., m)`, m = n unless `keep` drops some.

    Raises:
      LeafError: the basis is over more than one axis.

    >>> input_coefficients(jnp.array([1.0, 3.0]), Basis("wavelet", "haar", 1, (0,))).round(4)
    Array([ 2.8284, -1.4142], dtype=float32)
    """
    if len(basis.axes) != 1:
        raise LeafError(f"a product sums over one axis, and this basis is over {basis.axes}")
    n = x.shape[-1]
    over_one = Basis(basis.kind, basis.filter, basis.size, (0,))
    shape = jax.ShapeDtypeStruct((n,), x.dtype)
    adjoint = jax.linear_transpose(over_one.synthesis, shape)
    rows = jax.vmap(lambda row: adjoint(row)[0])(x.reshape(-1, n))
    m = n if keep is None else over_one.corner((n,), keep)[0]
    return rows[:, :m].reshape(*x.shape[:-1], m)


def coefficient_dot(
    x: Float[jax.Array, "*rows n"], coefficients: Float[jax.Array, "m outputs"], basis: Basis
) -> Float[jax.Array, "*rows outputs"]:
    """y = (W 𝒲ᵀ)(𝒲 x): a layer's product, with its weights as coefficients along the input axis.

    Equal to `x @ basis.synthesis(coefficients)`. With fewer coefficients than inputs (`wavelet(keep=...)`) the
    product itself costs as much less: 2 m instead of 2 n FLOPs an output.

    Args:
      x: `(..., n)`. coefficients: `(m, outputs)`, the first m of the n along their axis 0.
      basis: over the one input axis.

    Returns:
      `(..., outputs)`.

    Raises:
      LeafError: more coefficients than inputs, or a basis over several axes.

    >>> basis = Basis("wavelet", "haar", 1, (0,))
    >>> w = jnp.array([[1.0], [2.0]])
    >>> coefficient_dot(jnp.array([3.0, 4.0]), basis.analysis(w), basis).round(4)
    Array([11.], dtype=float32)
    """
    m, n = coefficients.shape[0], x.shape[-1]
    if m > n:
        raise LeafError(f"{m} coefficients for {n} inputs")
    return jnp.matmul(
        input_coefficients(x, basis)[..., :m], coefficients, precision=jax.lax.Precision.HIGHEST
    )
