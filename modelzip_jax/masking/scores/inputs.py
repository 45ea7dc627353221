"""Scores that read the activations that a weight meets, from `trace.statistics`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError
from modelzip_jax.masking.scores.score import NOTHING, Score
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = [
    "NeuronActivity",
    "SampledFeatures",
    "Wanda",
    "neuron_activity",
    "sampled_features",
    "wanda",
]


@recordable
@dataclasses.dataclass(frozen=True)
class Wanda(Score):
    """See `wanda`."""

    needs = ("stats",)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        def score(name: str, w: jax.Array, measured: Any) -> jax.Array:
            use, channels = _seen(name, measured, "inputs", "second_moment")
            norms = jnp.sqrt(channels.second_moment)
            return jnp.abs(w) * _along(norms, w.ndim, (*use.layers, *use.batch, *use.contracted))

        return _map(score, weights, context.stats)


def wanda() -> Wanda:
    """|w| ‖x‖₂, x the inputs that the weight multiplies (Sun et al. 2024, arXiv:2306.11695, eq. 1).

    Needs `stats=trace.statistics(apply_fn, params, batches)`. The paper compares weights within an output:
    use it with `structure=mz.structures.n_of_m(...)` or per channel for that. For convolutions ‖x‖ is of the input
    channel, over all positions.

    >>> from modelzip_jax import trace
    >>> w, x = jnp.array([[1.0], [2.0]]), jnp.array([[6.0, 1.0], [8.0, 1.0]])
    >>> wanda()(w, Context(stats=trace.statistics(lambda p, x: x @ p, w, [x])))
    Array([[7.071068],
           [2.      ]], dtype=float32)
    """
    return Wanda()


@recordable
@dataclasses.dataclass(frozen=True)
class SampledFeatures(Score):
    """See `sampled_features`."""

    needs = ("stats",)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        def score(name: str, w: jax.Array, measured: Any) -> jax.Array:
            use, channels = _seen(name, measured, "inputs", "above_mean")
            return jnp.abs(w) * _along(
                channels.above_mean, w.ndim, (*use.layers, *use.batch, *use.contracted)
            )

        return _map(score, weights, context.stats)


def sampled_features() -> SampledFeatures:
    """|w| E[|z̃|], z̃ being what each sample keeps of the features z that the weight multiplies.

    A sample keeps the features that are at least as active as its mean feature, and the others are 0 to it: the
    survey's sparse–dense learning, steps 2 and 3, see `mz.sparse_dense_by_samples`. Unlike the norm of `wanda`, a
    feature that is weak in every sample scores 0. A convolution has a sample at each position of each example, and
    its features are the input channels there.

    Needs `stats=trace.statistics(apply_fn, params, batches, kinds=("above_mean",))`.

    >>> from modelzip_jax import trace
    >>> w, x = jnp.array([[1.0], [2.0], [2.0]]), jnp.array([[6.0, 0.0, 1.0], [8.0, 9.0, 1.0]])
    >>> stats = trace.statistics(lambda p, x: x @ p, w, [x], kinds=("above_mean",))
    >>> sampled_features()(w, Context(stats=stats))
    Array([[7.],
           [9.],
           [0.]], dtype=float32)
    """
    return SampledFeatures()


@recordable
@dataclasses.dataclass(frozen=True)
class NeuronActivity(Score):
    """See `neuron_activity`."""

    kind: str

    needs = ("stats",)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        def score(name: str, w: jax.Array, measured: Any) -> jax.Array:
            use, channels = _seen(name, measured, "activations", self.kind)
            seen = getattr(channels, self.kind)
            seen = 1.0 - seen if self.kind == "zeros" else seen
            return jnp.broadcast_to(_along(seen, w.ndim, (*use.layers, *use.batch, *use.output)), w.shape)

        return _map(score, weights, context.stats)


def neuron_activity(kind: str = "mean_abs") -> NeuronActivity:
    """The activation of the neuron that a weight leads to; all weights of a neuron score alike.

    Meant for `structure=mz.structures.channel()`: neurons that are rarely or weakly active go first.

    Args:
      kind: "mean_abs", the survey's sum of |activation|; or "zeros", one less the average percentage of
        zeros (APoZ, Hu et al. 2016, arXiv:1607.03250).

    Needs `stats=trace.statistics(apply_fn, params, batches, places=("activations",))`.

    >>> from modelzip_jax import trace
    >>> model = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
    >>> params = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.ones((2, 1))}
    >>> stats = trace.statistics(model, params, [jnp.array([[1.0], [3.0]])], places=("activations",), only="up")
    >>> neuron_activity()({"up": params["up"]}, Context(stats={"up": stats["up"]}))
    {'up': Array([[2., 0.]], dtype=float32)}
    """
    return NeuronActivity(kind)


def _map(function: Any, values: PyTree, stats: PyTree) -> PyTree:
    treedef = jax.tree.structure(values)
    named = trees.named_leaves(values)
    parts = treedef.flatten_up_to(stats)
    return treedef.unflatten([function(name, w, m) for (name, w), m in zip(named, parts, strict=True)])


def _seen(name: str, measured: Any, place: str, kind: str) -> tuple[Any, Any]:
    """The one use of a leaf that was measured, and its channels."""
    found = [m for m in measured if getattr(m, place) is not None]
    if len(found) != 1 or getattr(getattr(found[0], place), kind) is None:
        raise LeafError(
            f"stats have {len(found)} uses of leaf {name!r} with {place} and {kind!r}, expected one: select "
            f"kernels with mz.only, and ask trace.statistics for kinds=({kind!r},), places=({place!r},)"
        )
    return found[0].use, getattr(found[0], place)


def _along(channels: jax.Array, ndim: int, axes: tuple[int, ...]) -> jax.Array:
    """Channels in a shape that broadcasts against the leaf; of a convolution's window they know nothing."""
    axes = axes[len(axes) - channels.ndim :]
    shape = [1] * ndim
    for axis, size in zip(axes, channels.shape, strict=True):
        shape[axis] = size
    return channels.reshape(shape)
