"""Merging of neurons that compute nearly the same: a smaller network, without data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.patterns import require_matches
from modelzip_jax.tree import PyTree

__all__ = ["merge_neurons"]


def merge_neurons(params: PyTree, incoming: str, outgoing: str, keep: int, bias: str | None = None) -> PyTree:
    """Removes the neurons of a layer that others can stand in for, and adds their outgoing weights to those.

    Again and again the pair (i, j) of least saliency ‖a_j‖² ‖(w_i, b_i) - (w_j, b_j)‖² is merged: j goes, and
    a_i becomes a_i + a_j. Exact for neurons of equal incoming weights, whatever the activation.

    Args:
      params: a tree of arrays.
      incoming: path of the layer's kernel, `(..., neurons)`.
      outgoing: path of the next layer's kernel, `(..., neurons, outputs)`.
      keep: neurons to keep, at least 1.
      bias: path of the layer's bias `(neurons,)`, if it has one.

    Returns:
      The tree with these leaves smaller; the others are the same arrays.

    Raises:
      PatternError: no leaf has one of the paths.
      LeafError: the shapes do not belong to one layer and the next.
      TransformError: `keep` is not between 1 and the number of neurons.

    Srinivas & Babu 2015, Data-free parameter pruning, arXiv:1507.06149, eq. 8.

    >>> params = {"first": jnp.array([[1.0, 2.0, 1.0]]), "second": jnp.array([[1.0], [5.0], [2.0]])}
    >>> jax.tree.map(lambda x: x.tolist(), merge_neurons(params, "first", "second", keep=2))
    {'first': [[1.0, 2.0]], 'second': [[3.0], [5.0]]}
    """
    check_float_params(params, "merge_neurons()")
    leaves = dict(trees.named_leaves(params))
    paths = [path for path in (incoming, outgoing, bias) if path is not None]
    require_matches(paths, list(leaves))
    w, a = jnp.asarray(leaves[incoming]), jnp.asarray(leaves[outgoing])
    b = None if bias is None else jnp.asarray(leaves[bias])
    neurons = w.shape[-1] if w.ndim else 0
    if w.ndim < 2 or a.ndim < 2 or a.shape[-2] != neurons or (b is not None and b.shape != (neurons,)):
        shapes = ", ".join(f"{path!r} {np.shape(leaves[path])}" for path in paths)
        raise LeafError(f"these are not a layer of neurons and the next one: {shapes}")
    if not 1 <= keep <= neurons:
        raise TransformError(f"keep must be from 1 to the {neurons} neurons of {incoming!r}, not {keep}")
    columns = w.reshape(-1, neurons) if b is None else jnp.vstack([w.reshape(-1, neurons), b])
    summed, alive = _merge(columns, jnp.moveaxis(a, -2, 0).reshape(neurons, -1), neurons - keep)
    kept = np.flatnonzero(alive)
    rows = summed.reshape(neurons, *np.delete(a.shape, -2))[kept]
    new = {incoming: w[..., kept], outgoing: jnp.moveaxis(rows, 0, -2).astype(a.dtype)}
    if bias is not None and b is not None:
        new[bias] = b[kept]
    return trees.map_named(lambda name, x: new.get(name, x), params)


@functools.partial(jax.jit, static_argnums=2)
def _merge(columns: jax.Array, outgoing: jax.Array, times: int) -> tuple[jax.Array, jax.Array]:
    """Outgoing weights `(neurons, outputs)` after some merges, and which neurons are left."""
    columns, outgoing = columns.astype(jnp.float32), outgoing.astype(jnp.float32)
    difference = jax.lax.map(lambda c: jnp.sum(jnp.square(columns - c[:, None]), axis=0), columns.T)
    difference = jnp.where(jnp.eye(len(difference), dtype=bool), jnp.inf, difference)

    def merge(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, alive = state
        saliency = difference * jnp.sum(jnp.square(a), axis=1)  # Row i stays, column j goes.
        saliency = jnp.where(alive[:, None] & alive & jnp.isfinite(difference), saliency, jnp.inf)
        i, j = jnp.unravel_index(jnp.argmin(saliency), saliency.shape)
        return a.at[i].add(a[j]).at[j].set(0.0), alive.at[j].set(False)

    return jax.lax.fori_loop(0, times, merge, (outgoing, jnp.ones(len(outgoing), bool)))
