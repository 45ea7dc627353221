"""How good weights are as the network of a config: tasks for `modelzip evaluate`, `report` and `compare`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation import features
from modelzip_jax.errors import ConfigError
from modelzip_jax.evaluation import classification, detection, generation, image_search
from modelzip_jax.evaluation.batching import predictions
from modelzip_jax.evaluation.task_scores import TaskScore
from modelzip_jax.models.detector import detections
from modelzip_jax.training import data
from modelzip_jax.training.starting import network_of, preparation_of
from modelzip_jax.tree import PyTree

__all__ = ["config_quality", "search_quality"]

Predict = Callable[[Any], Any]


def config_quality(
    config: Any, weights: PyTree, *, split: str = "test", count: int = 0
) -> dict[str, TaskScore]:
    """Scores of weights on a split of `config.data`.

    Of images "accuracy" and "cross_entropy", of text "bits_per_byte", a score for each example, so that two models are
    compared example by example; of scenes "map_50".

    Args:
      config: from `config.base` or a file in `configs/`; of its model and its data.
      weights: as a task is given them, the params, or `{"params": ..., "batch_stats": ...}`.
      split: of the data set.
      count: examples, at even distances; 0 for all of them.

    Raises:
      ConfigError, ModelError, DataError: the config cannot work, or the weights are not of its network.
    """
    kind, size = data.spec(config.data.name).kind, config.data.batch_size
    inputs, labels = _examples(config, split, count)

    def outputs(apply: Callable[..., jax.Array], params: PyTree, batch: jax.Array) -> jax.Array:
        found = apply(params, batch)
        return detections(found, batch.shape[1] // found.shape[1]) if kind == "scenes" else found

    predict = _predicting(config, weights, inputs, outputs)
    if kind == "scenes":
        return {**detection.evaluate(predict, inputs, labels, batch_size=size)}
    if kind == "text":
        tokens = generation.score(predict, inputs, labels, size)
        return {"bits_per_byte": tokens.nll / (tokens.tokens * math.log(2))}
    scores = classification.score_batches(predict, inputs, labels, size)
    return {"accuracy": (scores.rank == 1).astype(np.float64), "cross_entropy": scores.nll}


def search_quality(
    config: Any, weights: PyTree, layer: str, *, split: str = "test", count: int = 0
) -> dict[str, TaskScore]:
    """Scores of image search by what a layer is given: "recall_at_1" and "average_precision" of each image.

    Each image is searched among all the others of the split, those of its class being what is looked for
    (`evaluation.image_search`).

    Args:
      config, weights, split, count: as of `config_quality`.
      layer: by its name, as `distillation.features` takes it; that of the logits, as a rule.

    Raises:
      ConfigError, ModelError, DataError: the config cannot work, or the weights are not of its network.
      PatternError, TraceError: there is no such layer.
    """
    inputs, labels = _examples(config, split, count)

    def embeddings(apply: Callable[..., jax.Array], params: PyTree, batch: jax.Array) -> jax.Array:
        return features(apply, params, batch, layers={layer: "inputs"})[1][layer].reshape(len(batch), -1)

    embed = _predicting(config, weights, inputs, embeddings)
    found = np.concatenate([y for _, y in predictions(embed, inputs, config.data.batch_size)])
    scores = image_search.score(found, labels)
    return {
        "recall_at_1": (scores.rank == 1).astype(np.float64),
        "average_precision": scores.average_precision,
    }


def _examples(config: Any, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    options = {**config.data.options, "data_dir": config.data.dir or None}
    arrays = data.load_split(config.data.name, split, **options)
    total = len(arrays["labels"])
    taken = min(count or total, total)
    rows = np.arange(taken) * total // taken
    return arrays["inputs"][rows], arrays["labels"][rows]


def _predicting(
    config: Any, weights: PyTree, inputs: np.ndarray, outputs: Callable[..., jax.Array]
) -> Predict:
    """outputs: `(apply, params, batch)`, with `apply(params, batch)` the network on inputs as the data set has them."""
    prepare = preparation_of(data.spec(config.data.name), "none")
    network = network_of(config, inputs)
    split_up = isinstance(weights, dict) and "params" in weights
    params = weights["params"] if split_up else weights
    variables = {name: tree for name, tree in weights.items() if name != "params"} if split_up else {}

    def prepared(batch: jax.Array) -> jax.Array:
        return prepare({"inputs": batch}, None)["inputs"]

    example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    wanted, _ = jax.eval_shape(lambda x: network.init(jax.random.key(0), prepared(x)), example)
    if _shapes(wanted) != _shapes(params):
        raise ConfigError(
            "the weights are not those of the config's network: they differ in names or shapes; look at config.model"
        )

    @jax.jit
    def run(params: PyTree, variables: PyTree, batch: jax.Array) -> jax.Array:
        return outputs(lambda p, x: network.predict(p, variables, prepared(x)), params, batch)

    params, variables = jax.tree.map(jnp.asarray, (params, variables))
    return lambda batch: run(params, variables, batch)


def _shapes(tree: PyTree) -> Any:
    return jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
