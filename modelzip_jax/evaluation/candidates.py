"""Which of many ways to compress a model is best, before any of them is fine-tuned."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import EvaluationError, TreeError
from modelzip_jax.evaluation import recalibration
from modelzip_jax.evaluation.estimate import Estimate, proportion
from modelzip_jax.tree import PyTree

__all__ = ["Ranking", "rank_candidates"]


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """What `rank_candidates` found.

    hits: int (candidates,), right answers. count: examples. nll: float64 (candidates,), mean cross-entropy in nats
    an example; NaN where a candidate gave logits of NaN or +inf, which count as wrong.
    """

    hits: np.ndarray
    count: int
    nll: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """The candidates, best first: by accuracy, and of equal ones by cross-entropy."""
        return np.lexsort((np.nan_to_num(self.nll, nan=np.inf), -self.hits))

    @property
    def best(self) -> int:
        """The first in the order."""
        return int(self.order[0])

    @property
    def accuracies(self) -> list[Estimate]:
        """Of each candidate, with its standard error. All saw the same examples: differences have smaller ones."""
        return [proportion(int(hits), self.count) for hits in self.hits]


def rank_candidates(
    apply: Callable[..., Any],
    variables: PyTree,
    candidates: PyTree,
    batches: PyTree,
    inputs: PyTree,
    labels: ArrayLike,
    *,
    adapt: bool = True,
    batch_size: int = 256,
    at_once: int = 1,
) -> Ranking:
    """Accuracy of each candidate with batch statistics of its own: the search of EagleEye.

    For each candidate, batch normalisation is adapted to its weights (`adapt_batch_norm`) and accuracy measured on
    held-out examples, which tells how it will do after fine-tuning (Li et al. 2020, arXiv:2007.02491, §3). All are
    evaluated in one compiled call, one after the other, so that memory is that of one; calls with as many
    candidates of the same shapes compile nothing anew.

    Args:
      apply: `model.apply`, called with `train=True, mutable=["batch_stats"]` to adapt and with `train=False` to
        evaluate, where it gives logits (n, classes).
      variables: of the model: `{"params": ..., "batch_stats": ...}`.
      candidates: a tree like the params with the candidates along a new first axis. Boolean leaves are masks of the
        params, and may be of any shape that broadcasts to them, such as `(candidates, 1, 1, 1, filters)`; others
        take the place of the params. `jax.tree.map(lambda *x: jnp.stack(x), *trees)` stacks trees.
      batches: of training inputs, `(batches, n, ...)`.
      inputs: held-out inputs, an array or pytree of arrays (examples, ...); not those that `batches` are of.
      labels: int (examples,), their classes.
      adapt: False leaves the statistics as they are, for comparison; `batches` are not read then, and may be None.
      batch_size: examples at a time; the last batch is filled up, and what fills it does not count.
      at_once: candidates at a time, by `vmap`, for as many times the memory. It makes grouped convolutions of
        several kernels: on CPU four at a time took four times as long as one by one.

    Raises:
      EvaluationError: as `adapt_batch_norm`; other numbers of labels than of inputs, or labels outside the classes;
        no candidates, or different numbers of them; a batch size or `at_once` below 1.
      TreeError: candidates of another structure than the params, or of shapes that do not fit.

    >>> import flax.linen as nn
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         return nn.Dense(2, use_bias=False)(nn.BatchNorm(not train)(x))
    >>> model, x = Model(), 9.0 + jnp.array([[1.0], [-1.0], [2.0], [-2.0]])
    >>> variables = model.init(jax.random.key(0), x)
    >>> candidates = {
    ...     "BatchNorm_0": {"scale": jnp.ones((3, 1), bool), "bias": jnp.ones((3, 1), bool)},
    ...     "Dense_0": {"kernel": jnp.array([[[1.0, -1.0]], [[-1.0, 1.0]], [[1.0, 0.0]]])},
    ... }
    >>> ranking = rank_candidates(model.apply, variables, candidates, x[None], x, [0, 1, 0, 1])
    >>> ranking.hits.tolist(), ranking.order.tolist()
    ([4, 0, 4], [0, 2, 1])
    """
    if adapt:
        recalibration.check(variables, batches)
    if batch_size < 1 or at_once < 1:
        raise EvaluationError(f"batch_size and at_once must be at least 1, not {batch_size} and {at_once}")
    _check_candidates(variables["params"], candidates)
    examples = _Examples(*_padded(inputs, labels, batch_size))
    hits, nll, rates, classes = _evaluate(
        apply, variables, candidates, batches if adapt else None, examples, at_once
    )
    recalibration.check_rates(rates)
    labels = np.asarray(labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise EvaluationError(f"labels must be integers from 0 to {int(classes) - 1}")
    return Ranking(np.asarray(hits), len(labels), np.asarray(nll, np.float64) / len(labels))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["inputs", "labels", "counts"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class _Examples:
    """Held-out examples `(batches, batch_size, ...)`; `counts`: whether each is one, and not filling."""

    inputs: PyTree
    labels: Any
    counts: Any


@functools.partial(jax.jit, static_argnums=(0, 5))
def _evaluate(
    apply: Callable[..., Any],
    variables: PyTree,
    candidates: PyTree,
    batches: PyTree,
    examples: _Examples,
    at_once: int,
) -> tuple[jax.Array, jax.Array, PyTree, jax.Array]:
    def one(candidate: PyTree) -> tuple[jax.Array, jax.Array, PyTree, jax.Array]:
        own = {**variables, "params": jax.tree.map(_place, variables["params"], candidate)}
        rates: PyTree = {}
        if batches is not None:
            own, rates = recalibration.adapted(apply, own, batches)

        def batch(part: _Examples) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits = apply(own, part.inputs, train=False).astype(jnp.float32)
            right = (jnp.argmax(logits, axis=-1) == part.labels) & (logits < jnp.inf).all(-1)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), part.labels[:, None], axis=-1)[:, 0]
            hits = jnp.sum(right & part.counts, dtype=jnp.int32)
            return hits, -jnp.sum(jnp.where(part.counts, chosen, 0.0)), jnp.int32(logits.shape[-1])

        hits, nll, classes = jax.lax.map(batch, examples)
        return jnp.sum(hits), jnp.sum(nll), rates, classes[0]

    # `lax.map` makes another program of a batch of one.
    found = jax.lax.map(one, candidates, batch_size=at_once if at_once > 1 else None)
    return found[0], found[1], found[2], found[3][0]


def _place(leaf: jax.Array, candidate: jax.Array) -> jax.Array:
    """The candidate's leaf, or the model's where its mask is true."""
    if candidate.dtype == jnp.bool_:
        return jnp.where(candidate, leaf, jnp.zeros((), leaf.dtype))
    return candidate


def _check_candidates(params: PyTree, candidates: PyTree) -> None:
    if jax.tree.structure(params) != jax.tree.structure(candidates):
        raise TreeError(
            f"candidates must have the structure of the params, with one more axis; they have "
            f"{jax.tree.structure(candidates)}, the params {jax.tree.structure(params)}"
        )
    counts = {np.shape(c)[:1] for c in jax.tree.leaves(candidates)}
    if len(counts) != 1 or not all(count and count[0] for count in counts):
        raise EvaluationError(
            f"candidates are stacked along their first axis, at least one; got {sorted(counts)}"
        )
    for leaf, candidate in zip(jax.tree.leaves(params), jax.tree.leaves(candidates), strict=True):
        own, shape = np.shape(leaf), np.shape(candidate)[1:]
        fits = _broadcasts(shape, own) if jnp.result_type(candidate) == jnp.bool_ else shape == own
        if not fits:
            raise TreeError(f"a candidate's leaf of shape {shape} does not fit the params' of shape {own}")


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _padded(inputs: PyTree, labels: ArrayLike, batch_size: int) -> tuple[PyTree, np.ndarray, np.ndarray]:
    """Examples in whole batches, filled up with copies of the last, and which of them are no filling."""
    labels = np.asarray(labels)
    counts = {len(x) if np.ndim(x) else 0 for x in jax.tree.leaves(inputs)}
    if labels.ndim != 1 or not labels.size or counts != {labels.size}:
        raise EvaluationError(f"expected inputs and labels of one length, got {counts} and {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise EvaluationError(f"labels must be integers, not {labels.dtype}")
    batch_size = min(batch_size, labels.size)
    number = -(-labels.size // batch_size)
    index = np.arange(number * batch_size).reshape(number, batch_size)
    rows = np.minimum(index, labels.size - 1)
    stacked = jax.tree.map(lambda x: np.asarray(x)[rows], inputs)
    return stacked, labels[rows].astype(np.int32), index < labels.size
