"""Image search by embeddings: find images of the query's class, nearest by cosine first.

The protocol of metric learning (Oh Song et al. 2016, https://arxiv.org/abs/1511.06452): each image of a
test set is searched among all the others, and images of its class are relevant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation.batching import predictions
from modelzip_jax.evaluation.estimate import Estimate, mean, proportion
from modelzip_jax.evaluation.ranking import average_precisions, relevance_blocks

__all__ = ["SearchScores", "evaluate", "mean_average_precision", "recall", "score"]


class SearchScores(NamedTuple):
    """What the metrics need to know of each of n queries.

    rank: int (n,), of the first image of the query's class, 1 the nearest.
    average_precision: float64 (n,), over the whole ranking.
    """

    rank: np.ndarray
    average_precision: np.ndarray


def score(
    embeddings: ArrayLike,
    labels: ArrayLike,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
) -> SearchScores:
    """Scores of searching each embedding in a gallery, or among the other embeddings, by cosine.

    Needs memory for a block of queries by the gallery (some 64 MiB), never for all of them. Among
    equal cosines what is relevant counts last; a zero embedding has cosine 0 with everything.

    Args:
      embeddings: float (n, d) queries, of any length.
      labels: (n,) classes.
      gallery: float (m, d) to search in; the queries themselves, each left out of its own search, without.
      gallery_labels: (m,) classes, given if and only if there is a gallery.

    Raises:
      EvaluationError: shapes that do not fit, or a query with no other image of its class.
      NonFiniteError: an embedding is not finite.

    >>> score([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]], [0, 0, 1, 1]).rank
    array([1, 1, 1, 3])
    """
    if (gallery is None) != (gallery_labels is None):
        raise EvaluationError("give gallery and gallery_labels together, or neither")
    documents = None if gallery is None else _unit(gallery)
    blocks = relevance_blocks(_unit(embeddings), labels, documents, gallery_labels)
    return SearchScores(*average_precisions(blocks))


def recall(scores: SearchScores, k: int) -> Estimate:
    """Share of the queries that have an image of their class among the `k` nearest (recall@k).

    >>> recall(score([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]], [0, 0, 1, 1]), k=2).value
    0.75
    """
    return proportion(int(np.sum(scores.rank <= k)), len(scores.rank))


def mean_average_precision(scores: SearchScores) -> Estimate:
    """Mean average precision over the queries; see `modelzip_jax.evaluation.ranking.average_precisions`.

    >>> mean_average_precision(score([[1.0], [2.0]], [0, 0])).value
    1.0
    """
    return mean(scores.average_precision)


def evaluate(
    embed: Callable[[Any], Any],
    images: Any,
    labels: ArrayLike,
    *,
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 256,
) -> dict[str, Estimate]:
    """Every metric here, each image searched among all the others: "recall_at_1", ..., "map".

    The standard errors take queries for independent, as is usual, though they share their gallery.

    Args:
      embed: jitted, from a batch of images to embeddings (batch_size, d).
      images: array or pytree of arrays, n on the first axis.
      labels: (n,) classes.
      ks: the k of each "recall_at_k".
      batch_size: images at a time.

    Raises:
      EvaluationError: shapes that do not fit, or an image that is the only one of its class.
      NonFiniteError: an embedding is not finite.

    >>> numbers = evaluate(lambda x: x, np.eye(4)[[0, 0, 1, 1]], [0, 0, 1, 1], ks=(1,))
    >>> {name: float(value) for name, value in numbers.items()}
    {'recall_at_1': 1.0, 'map': 1.0}
    """
    embeddings = np.concatenate([y for _, y in predictions(embed, images, batch_size)])
    scores = score(embeddings, labels)
    return {**{f"recall_at_{k}": recall(scores, k) for k in ks}, "map": mean_average_precision(scores)}


def _unit(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x, np.float32)
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)
