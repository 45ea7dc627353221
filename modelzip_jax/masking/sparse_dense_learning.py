"""Sparse–dense learning: a layer trains on some of its features, for a phase or for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from modelzip_jax.masking import scores as scoring
from modelzip_jax.masking.allocation import Allocation
from modelzip_jax.masking.pruning import Prune, prune
from modelzip_jax.masking.schedules import dense_sparse_dense
from modelzip_jax.masking.structures import Structure, channel

__all__ = ["sparse_dense", "sparse_dense_by_samples"]


def sparse_dense(
    sparsity: float,
    begin: int,
    end: int,
    *,
    score: scoring.Score | None = None,
    structure: Structure | None = None,
    allocation: str | Allocation = "uniform",
) -> Prune:
    """The survey's sparse–dense learning, as masks that come at one step and go at another.

    Its five steps for a layer with weights W, and what they are here:

    1. D is zero: what the layer adds up.
    2. z = f(x): its input features.
    3. Some elements of z are set to zero: m ⊙ z. Fixed for the whole phase, they are features that the layer does not
       have, and (m ⊙ z) W = z (diag(m) W): a mask on the rows of W, `structures.channel(-2)`. The features whose
       weights have the smallest norm go, or those that `score` ranks last.
    4. The others, times their weights, are added onto D, which gives the sparse S = D + (m ⊙ z) W.
    5. D w stands for W: the network trains with S, and afterwards the rows left out start from zero again in the
       dense layer.

    Steps 3 to 5 with single weights instead of features (`structure=mz.structures.unstructured()`) are the
    dense–sparse–dense training of Han et al. 2017, arXiv:1607.04381; what each buys is measured in
    docs/benchmarks.md ("Pruning: accuracy"). The result is dense: this regularises, it does not compress. What
    chooses features by samples and stays sparse is `sparse_dense_by_samples`.

    Args:
      sparsity: of the sparse phase, in [0, 1); 0.25 to 0.5 in Han et al.
      begin: the first step of the sparse phase; 0 starts sparse, from the first weights.
      end: the first step of the dense phase after it.

    Raises:
      TransformError: a sparsity outside [0, 1), or `end` not after `begin`.

    >>> import modelzip_jax as mz, jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, 2.0], [0.5, -0.1]])}
    >>> mz.decoded(params, sparse_dense(0.5, begin=0, end=100))["kernel"]
    Array([[1., 2.],
           [0., 0.]], dtype=float32)
    """
    return prune(
        score or scoring.magnitude(2),
        sparsity=dense_sparse_dense(sparsity, begin, end),
        structure=channel(-2) if structure is None else structure,
        allocation=allocation,
        every=1,
        remember=False,
    )


def sparse_dense_by_samples(
    sparsity: float | Callable[[Any], jax.Array],
    *,
    structure: Structure | None = None,
    allocation: str | Allocation = "uniform",
    every: int | None = None,
) -> Prune:
    """The survey's sparse–dense learning sample by sample: features that no sample needs go, and stay away.

    Its five steps for a layer with weights W, and what they are here:

    1. D is zero, of the shape of W: what the samples add up.
    2. z = f(x): the input features that each training sample x gives the layer, by `trace.statistics`.
    3. Elements of z that are less active than the sample's mean feature are set to zero: z̃(x), another set for each
       sample. Times their weights they are added to D: D_ij = Σ_x |z̃_i(x)| |W_ij|, which `scores.sampled_features`
       gives up to the number of samples. The features of largest D are the sparse S: a mask, as many as `sparsity`
       leaves.
    4. What S keeps of W stands for W, in training and in the file.
    5. The network trains with S, to the end. It is chosen at `init` from the samples given, once, or at each refresh
       (`every`, a schedule) from the newest that `tx.update(..., stats=...)` is told.

    Give `mz.compress`, or `mz.wrap(..., given={...})`, what the samples are:
    `stats=trace.statistics(apply_fn, params, batches, kinds=("above_mean",))`.

    Args:
      sparsity: share of the features without weights, in [0, 1), or a schedule.
      structure: what S is made of: whole features, `structures.channel(-2)`, the rows of a Flax kernel, if None;
        `mz.structures.unstructured()` for single weights.
      allocation, every: as in `prune`.

    Raises:
      TransformError: a sparsity outside [0, 1); (at `init`) no statistics are given.

    >>> import modelzip_jax as mz, jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
    >>> samples = jnp.array([[5.0, 0.5], [7.0, 0.1]])  # The second feature is under the mean of each.
    >>> stats = mz.trace.statistics(lambda p, x: x @ p["kernel"], params, [samples], kinds=("above_mean",))
    >>> mz.decoded(params, sparse_dense_by_samples(0.5), stats=stats)["kernel"]
    Array([[1., 2.],
           [0., 0.]], dtype=float32)
    """
    return prune(
        scoring.sampled_features(),
        sparsity=sparsity,
        structure=channel(-2) if structure is None else structure,
        allocation=allocation,
        every=every,
        remember=False,
    )
