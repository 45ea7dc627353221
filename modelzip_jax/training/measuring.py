"""The numbers that a run watches, on a whole set of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from modelzip_jax.evaluation.detection import detection_precision, score
from modelzip_jax.models.detector import detections
from modelzip_jax.training.center_objective import center_losses
from modelzip_jax.training.distributed import Placement
from modelzip_jax.training.frameworks import Network
from modelzip_jax.tree import PyTree

__all__ = ["make_evaluate", "quality_name"]

Evaluate = Callable[[PyTree, PyTree], dict[str, float]]


def quality_name(kind: str) -> str:
    """What says how good a network is on data of a kind: "accuracy", or "map_50" on scenes.

    >>> quality_name("scenes")
    'map_50'
    """
    return "map_50" if kind == "scenes" else "accuracy"


def make_evaluate(
    network: Network,
    arrays: dict[str, np.ndarray],
    batch_size: int,
    place: Placement,
    prepare: Callable[..., Any],
    kind: str = "images",
) -> Evaluate:
    """A function `(params, variables) -> numbers` about the arrays.

    Numbers: "loss", mean cross-entropy in nats of each label, with its standard error "loss_se" over the
    examples; "accuracy" with the standard error "accuracy_se". An example of several labels (a
    sequence) counts as their mean. On scenes the mean loss of a scene (`center_losses`), and "map_50" with
    "map_50_se" (`evaluation.detection`).

    Args:
      arrays: "inputs" and "labels" of n examples; they are kept on the devices.
      batch_size: examples at a time; the last batch is filled up with examples that do not count.
      kind: of the data, as `training.data.DataSpec` has it.
    """
    count = len(arrays["labels"])
    batches = math.ceil(count / batch_size)
    order = np.arange(batches * batch_size, dtype=np.int32).reshape(batches, 1, batch_size)
    local = batch_size // jax.process_count()
    share = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
    items = [
        place.split((np.minimum(rows, count - 1), (rows < count).astype(np.float32)))
        for rows in order[:, :, share]
    ]
    data = place.replicate(arrays)
    if kind == "scenes":
        return _on_scenes(network, arrays["labels"], data, items, prepare)

    @jax.jit
    def sums(params: PyTree, variables: PyTree, data: PyTree, item: Any) -> jax.Array:
        indices, weights = (x[0] for x in item)
        batch = prepare(jax.tree.map(lambda array: array[indices], data), None)
        logits = network.predict(params, variables, batch["inputs"]).astype(jnp.float32)
        labels = batch["labels"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        a, b = (x.reshape(x.shape[0], -1).mean(axis=1) for x in (losses, correct))
        return jnp.stack([jnp.sum(weights * x) for x in (a, a * a, b, b * b)])

    def evaluate(params: PyTree, variables: PyTree) -> dict[str, float]:
        # Not a scan: see `loop.make_block`.
        totals = [sums(params, variables, data, item) for item in items]
        means = np.sum([np.asarray(x, np.float64) for x in totals], axis=0) / count
        errors = [math.sqrt(max(means[i + 1] - means[i] ** 2, 0.0) / count) for i in (0, 2)]
        numbers = {"loss": means[0], "loss_se": errors[0], "accuracy": means[2], "accuracy_se": errors[1]}
        return {name: float(x) for name, x in numbers.items()}

    return evaluate


def _on_scenes(
    network: Network, labels: np.ndarray, data: PyTree, items: list[Any], prepare: Callable[..., Any]
) -> Evaluate:
    count = len(labels)

    @jax.jit
    def one(params: PyTree, variables: PyTree, data: PyTree, item: Any) -> tuple[jax.Array, jax.Array]:
        batch = prepare(jax.tree.map(lambda array: array[item[0][0]], data), None)
        maps = network.predict(params, variables, batch["inputs"])
        stride = batch["inputs"].shape[1] // maps.shape[1]
        return center_losses(maps, batch), detections(maps, stride)

    def evaluate(params: PyTree, variables: PyTree) -> dict[str, float]:
        parts = [one(params, variables, data, item) for item in items]
        losses, found = (
            np.concatenate([np.asarray(x, np.float64) for x in column])[:count]
            for column in zip(*parts, strict=True)
        )
        precision = detection_precision(score(found, labels))
        return {
            "loss": float(losses.mean()),
            "loss_se": float(losses.std() / math.sqrt(count)),
            "map_50": precision.value,
            "map_50_se": precision.standard_error,
        }

    return evaluate
