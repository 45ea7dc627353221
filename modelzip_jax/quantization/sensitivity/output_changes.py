"""Sensitivities that run the network: what one leaf's change does to the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.sensitivity.sensitivities import LeafCost, Sensitivity
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, running_on, shapes_in
from modelzip_jax.tree import PyTree

__all__ = ["OutputSensitivity", "output_error", "output_kl"]


@dataclasses.dataclass(frozen=True, eq=False)
class OutputSensitivity(Sensitivity):
    """See `output_kl` and `output_error`. distance: from the outputs before and after to one number an example."""

    apply_fn: Callable[..., Any]
    batches: tuple[tuple[Any, ...], ...]
    distance: Callable[[jax.Array, jax.Array], jax.Array]

    def prepare(self, params: PyTree) -> LeafCost:
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
        place = {name: i for i, (name, _) in enumerate(trees.named_leaves(params))}
        outputs = jax.jit(self.apply_fn)
        before = []
        for number, inputs in enumerate(self.batches):
            with running_on(f"batch {number}", inputs):
                before.append(outputs(params, *inputs))

        # The weights are arguments: one program for all leaves and all candidates.
        @jax.jit
        def far(leaves: list[Any], inputs: tuple[Any, ...], before: PyTree) -> tuple[jax.Array, jax.Array]:
            after = self.apply_fn(treedef.unflatten(leaves), *inputs)
            pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
            each = [self.distance(b.astype(jnp.float32), a.astype(jnp.float32)) for b, a in pairs]
            return sum(jnp.sum(x) for x in each), jnp.float32(each[0].size)

        def measure(name: str, w: np.ndarray, changed: np.ndarray) -> float:
            i = place[name]
            own = [*leaves[:i], jnp.asarray(changed, leaves[i].dtype), *leaves[i + 1 :]]
            found = [far(own, inputs, b) for inputs, b in zip(self.batches, before, strict=True)]
            return sum(float(total) for total, _ in found) / sum(float(count) for _, count in found)

        return measure


def _measured_by(
    apply_fn: Callable[..., Any],
    batches: Sequence[Any],
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    name: str,
) -> OutputSensitivity:
    if not callable(apply_fn) or not hasattr(batches, "__iter__"):
        swapped = "the two the other way round" if callable(batches) else shapes_in((apply_fn, batches))
        raise TransformError(
            f"{name}() takes the model and its batches, {name}(apply_fn, [x, ...]), not {swapped}"
        )
    found = tuple(batch_inputs(batch, number) for number, batch in enumerate(batches))
    if not found:
        raise TransformError("a sensitivity of the outputs needs at least one batch of inputs")
    return OutputSensitivity(apply_fn, found, distance)


def _divergence(before: jax.Array, after: jax.Array) -> jax.Array:
    p, q = jax.nn.log_softmax(before), jax.nn.log_softmax(after)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _distance(before: jax.Array, after: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(before - after), axis=-1)


def output_kl(apply_fn: Callable[..., Any], batches: Sequence[Any]) -> OutputSensitivity:
    """The KL divergence from the network's class probabilities to those with one leaf changed; nats an example.

    One run of all batches for each leaf and candidate, by one program (one for each shape of batch). ZeroQ's measure
    (Cai et al. 2020, arXiv:2001.00281, eq. 3), which sees nonlinearities and large errors that a quadratic form misses,
    and no labels.

    Args:
      apply_fn: the model; logits `(..., classes)`, or a tree of them.
      batches: each a tuple of what `apply_fn` takes after `params`, or that one array; kept, and read repeatedly.

    Raises:
      TransformError: there are no batches, or the arguments are no model and batches. TraceError: a batch holds no
        example, or, when it is used, the model cannot be run on one.

    >>> x, w = np.float32([[1.0], [2.0]]), np.float32([[1.0, 0.0]])
    >>> measure = output_kl(lambda p, x: x @ p["w"], [x]).prepare({"w": w})
    >>> measure("w", w, w), round(measure("w", w, 0 * w), 4)
    (0.0, 0.2194)
    """
    return _measured_by(apply_fn, batches, _divergence, "output_kl")


def output_error(apply_fn: Callable[..., Any], batches: Sequence[Any]) -> OutputSensitivity:
    """The squared distance of the network's outputs to those with one leaf changed: a mean over examples.

    For outputs that are no classes, such as embeddings. Otherwise as `output_kl`.

    >>> x, w = np.float32([[1.0], [2.0]]), np.float32([[1.0, 0.0]])
    >>> output_error(lambda p, x: x @ p["w"], [x]).prepare({"w": w})("w", w, 0 * w)
    2.5
    """
    return _measured_by(apply_fn, batches, _distance, "output_error")
