"""Scores before training: from the loss or the network at initialisation, as trees for `given`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.scores.score import NOTHING, Score
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = ["Given", "given", "grasp", "iterate", "snip", "synflow"]


@recordable
@dataclasses.dataclass(frozen=True)
class Given(Score):
    """See `given`."""

    needs = ("scores",)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return jax.tree.map(lambda w, s: jnp.asarray(s, jnp.float32), weights, context.scores)


def given() -> Given:
    """Scores that the caller passes as `scores=`, a tree like the weights, to `mz.compress` or `mz.start`.

    >>> import modelzip_jax as mz
    >>> params, scores = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, 4.0])}
    >>> packed = mz.compress(params, mz.prune(given(), sparsity=0.5), scores=scores)
    >>> mz.unpack(packed)
    {'w': Array([1., 0.], dtype=float32)}
    """
    return Given()


def snip(loss: Callable[[PyTree], jax.Array], params: PyTree) -> PyTree:
    """|w g| at these weights (Lee et al. 2019, arXiv:1810.02340).

    Args:
      loss: of the params alone: bind a batch.

    >>> snip(lambda w: jnp.sum(w**2), jnp.array([1.0, -3.0]))
    Array([ 2., 18.], dtype=float32)
    """
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, jax.grad(loss)(params))


def grasp(loss: Callable[[PyTree], jax.Array], params: PyTree) -> PyTree:
    """w (H g): weights whose removal lowers the gradient norm most are kept.

    Wang, Zhang & Grosse 2020 (GraSP, arXiv:2002.07376, eq. 8: S = -θ ⊙ Hg is removed where it is largest). One
    Hessian–vector product, forward over reverse.

    >>> grasp(lambda w: jnp.sum(w**2), jnp.array([1.0, -3.0]))
    Array([ 4., 36.], dtype=float32)
    """
    gradient = jax.grad(loss)
    g, hg = jax.jvp(gradient, (params,), (gradient(params),))
    del g
    return jax.tree.map(jnp.multiply, params, hg)


def synflow(apply_fn: Callable[..., Any], params: PyTree, *inputs: Any) -> PyTree:
    """Synaptic flow, without data: |θ| ∂R/∂|θ|, R the sum of the outputs of the network of |θ| on ones.

    Tanaka et al. 2020, arXiv:2006.05467, eq. 2 and algorithm 1. Use it with `iterate`: pruned at once it collapses
    layers, too.

    Args:
      apply_fn: `apply_fn(params, *inputs)`; with batch normalisation, in evaluation mode.
      *inputs: their shapes count; ones take their place.

    >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0], [1.0]])}
    >>> synflow(lambda p, x: x @ p["a"] @ p["b"], params, jnp.zeros((1, 1)))
    {'a': Array([[3., 2.]], dtype=float32), 'b': Array([[3.],
           [2.]], dtype=float32)}
    """
    ones = jax.tree.map(lambda x: jnp.ones(jnp.shape(x), jnp.result_type(x)), inputs)

    def flow(params: PyTree) -> jax.Array:
        return sum(jnp.sum(y) for y in jax.tree.leaves(apply_fn(params, *ones)))  # type: ignore[return-value]

    positive = jax.tree.map(jnp.abs, params)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), positive, jax.grad(flow)(positive))


def iterate(score: Callable[[PyTree], PyTree], params: PyTree, sparsity: float, rounds: int = 100) -> PyTree:
    """Scores found by pruning a little at a time and scoring what is left (arXiv:2006.05467, algorithm 1).

    In round k a share (1 - sparsity)^(k / rounds) of all weights is kept, by one threshold over the tree.

    Args:
      score: from weights, pruned ones zero, to scores: `functools.partial(synflow, apply_fn)`, with inputs bound.
      sparsity: the share that will be pruned in the end.
      rounds: 100 in the paper.

    Returns:
      The last round's scores; -1 for what was pruned before, so that `mz.prune(given(), sparsity=sparsity,
      allocation="global")` keeps what was left.

    Raises:
      TransformError: a sparsity outside [0, 1), fewer than one round.

    >>> score = lambda params: jax.tree.map(jnp.abs, params)
    >>> iterate(score, {"w": jnp.array([4.0, 0.5, 3.0, 2.0])}, sparsity=0.5, rounds=2)
    {'w': Array([ 4., -1.,  3.,  2.], dtype=float32)}
    """
    from modelzip_jax.masking.counting import count_kept
    from modelzip_jax.masking.threshold import keep_largest

    if not 0.0 <= sparsity < 1.0 or rounds < 1:
        raise TransformError(
            f"sparsity must be in [0, 1) and rounds positive, not {sparsity!r} and {rounds!r}"
        )
    leaves, treedef = jax.tree.flatten(params)
    total = sum(x.size for x in leaves)

    def scored(masks: list[jax.Array]) -> list[jax.Array]:
        kept = treedef.unflatten([jnp.where(m, x, 0) for m, x in zip(masks, leaves, strict=True)])
        found = jax.tree.leaves(score(kept))
        return [jnp.where(m, s.astype(jnp.float32), -1.0) for m, s in zip(masks, found, strict=True)]

    def turn(k: int, masks: list[jax.Array]) -> list[jax.Array]:
        density = jnp.exp(jnp.log1p(-jnp.float32(sparsity)) * (k + 1) / rounds)
        return keep_largest(scored(masks), count_kept(total, 1.0 - density))[0]

    masks = jax.lax.fori_loop(0, rounds - 1, turn, [jnp.ones(x.shape, bool) for x in leaves])
    return treedef.unflatten(scored(masks))
