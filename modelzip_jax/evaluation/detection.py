"""Object detection: mean average precision at an overlap of one half, as the PASCAL VOC challenge has it since 2010.

Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective",
https://doi.org/10.1007/s11263-014-0733-5, §4.2: a detection is right if intersection over union with the object that
it overlaps most, of those of its class in its scene, is at least 0.5; of several of one object the likeliest is right
and the others are wrong. Average precision is the area under the curve of precision over recall, taken at every recall
there is (all-point interpolation), where the precision at a recall is the largest at this recall or a higher one. The
mean is over classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import EvaluationError, NonFiniteError
from modelzip_jax.evaluation.batching import predictions
from modelzip_jax.evaluation.estimate import Estimate

__all__ = ["DetectionScores", "box_overlaps", "class_precisions", "detection_precision", "evaluate", "score"]

_GROUPS = 20  # of scenes, of which the jackknife leaves out one at a time


class DetectionScores(NamedTuple):
    """What the metric needs to know of m detections in n scenes.

    likelihood: float64 (m,), larger is surer. kind: int (m,), the class. hit: bool (m,). scene: int (m,), 0 to n − 1.
    objects: int (n, classes), how many there are to be found.
    """

    likelihood: np.ndarray
    kind: np.ndarray
    hit: np.ndarray
    scene: np.ndarray
    objects: np.ndarray


def box_overlaps(some: ArrayLike, others: ArrayLike) -> np.ndarray:
    """Intersection over union, float64 (..., a, b), of boxes (..., a, 4) with boxes (..., b, 4).

    A box is its left, top, right and bottom edge; one whose right edge is not beyond its left one is empty and
    overlaps nothing.

    >>> box_overlaps([[0, 0, 2, 2]], [[1, 0, 3, 2], [2, 0, 3, 1], [0, 0, 2, 2]]).round(3).tolist()
    [[0.333, 0.0, 1.0]]
    """
    a, b = np.asarray(some, np.float64)[..., :, None, :], np.asarray(others, np.float64)[..., None, :, :]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.prod(np.maximum(sides, 0), axis=-1)
    one, other = (np.prod(np.maximum(x[..., 2:] - x[..., :2], 0), axis=-1) for x in (a, b))
    union = one + other - common
    return np.divide(common, union, out=np.zeros_like(union), where=union > 0)


def score(found: ArrayLike, labels: ArrayLike, overlap: float = 0.5) -> DetectionScores:
    """Which detections are right.

    Args:
      found: float (n, k, 6), in each scene left, top, right, bottom, likelihood, class; rows whose likelihood is not
        above 0 do not count. As `modelzip_jax.models.detector.detections` gives them.
      labels: (n, most, 5), left, top, right, bottom, class; rows of a negative class are no objects.
      overlap: the least intersection over union.

    Raises:
      EvaluationError: shapes that do not fit, or classes that are no whole numbers.
      NonFiniteError: a detection that counts is not finite.

    >>> objects = [[[0, 0, 8, 8, 1]]]
    >>> score([[[0, 0, 8, 7, 0.9, 1], [0, 0, 8, 8, 0.8, 1], [0, 0, 8, 8, 0.7, 0]]], objects).hit.tolist()
    [True, False, False]
    """
    found, labels = np.asarray(found, np.float64), np.asarray(labels)
    fits = found.ndim == labels.ndim == 3 and found.shape[2] == 6 and labels.shape[2] == 5
    if not fits or len(found) != len(labels) or not labels.size:
        raise EvaluationError(
            f"expected detections (n, k, 6) and labels (n, most, 5), got {found.shape} and {labels.shape}"
        )
    if np.isnan(found[..., 4]).any() or not np.isfinite(found[found[..., 4] > 0]).all():
        raise NonFiniteError("a detection is NaN or infinite")
    counted = found[..., 4] > 0
    kinds, true_kinds = found[..., 5][counted], labels[..., 4]
    if np.any(kinds != np.floor(kinds)) or np.any(kinds < 0) or np.any(true_kinds != np.floor(true_kinds)):
        raise EvaluationError("classes must be whole numbers, and those of detections not negative")
    overlaps = box_overlaps(np.where(counted[..., None], found[..., :4], 0.0), labels[..., :4])
    # VOC matches the detections of a class with the objects of that class.
    overlaps[found[..., 5][:, :, None] != true_kinds[:, None, :]] = -1.0
    scene = np.broadcast_to(np.arange(len(found))[:, None], counted.shape)[counted]
    target = scene * labels.shape[1] + overlaps.argmax(axis=2)[counted]
    extent, likelihood = overlaps.max(axis=2)[counted], found[..., 4][counted]
    # Of equally likely ones that with the larger overlap is the one, in whatever order they come.
    order = np.lexsort((-extent, -likelihood))
    order = order[extent[order] >= overlap]
    hit = np.zeros(len(scene), bool)
    hit[order[np.unique(target[order], return_index=True)[1]]] = True
    classes = int(max(true_kinds.max(initial=0), kinds.max(initial=0))) + 1
    objects = np.stack([np.sum(true_kinds == kind, axis=1) for kind in range(classes)], axis=1)
    return DetectionScores(likelihood, kinds.astype(int), hit, scene, objects)


def class_precisions(scores: DetectionScores) -> dict[int, float]:
    """Average precision of each class that has an object.

    Detections of one likelihood are one point of the curve, so that their order does not matter.

    >>> objects = [[[0, 0, 8, 8, 1], [8, 8, 16, 16, 1]]]
    >>> class_precisions(score([[[0, 0, 8, 8, 0.9, 1], [0, 9, 8, 16, 0.8, 1], [8, 8, 16, 16, 0.7, 1]]], objects))
    {1: 0.8333333333333333}
    """
    totals = scores.objects.sum(axis=0)
    return {
        int(kind): _average_precision(
            scores.likelihood[scores.kind == kind], scores.hit[scores.kind == kind], int(totals[kind])
        )
        for kind in np.flatnonzero(totals)
    }


def _average_precision(likelihood: np.ndarray, hit: np.ndarray, objects: int) -> float:
    order = np.argsort(-likelihood, kind="stable")
    last = np.append(np.diff(likelihood[order]) != 0, True)[: len(order)]
    hits, taken = np.cumsum(hit[order])[last], np.flatnonzero(last) + 1
    best_from_here = np.maximum.accumulate((hits / taken)[::-1])[::-1]
    return float(np.sum(np.diff(hits / objects, prepend=0.0) * best_from_here))


def detection_precision(scores: DetectionScores) -> Estimate:
    """Mean average precision over the classes that have an object.

    Its standard error is the jackknife's over 20 groups of scenes (Efron & Stein 1981), as it is no mean over examples;
    `count` is the number of scenes.

    Raises:
      EvaluationError: there is no object in any scene.

    >>> detection_precision(score([[[0, 0, 8, 8, 0.9, 0]]], [[[0, 0, 8, 8, 0], [8, 8, 16, 16, 1]]])).value
    0.5
    """
    scenes = len(scores.objects)
    if not scores.objects.sum():
        raise EvaluationError("there are no objects to find")
    groups = min(_GROUPS, scenes)
    group = np.arange(scenes) % groups
    without = [_mean_precision(_part(scores, group != number)) for number in range(groups)]
    known = [x for x in without if not math.isnan(x)]
    error = math.nan
    if len(known) > 1:
        error = math.sqrt((len(known) - 1) * float(np.var(known)))
    return Estimate(_mean_precision(scores), error, scenes)


def _mean_precision(scores: DetectionScores) -> float:
    found = class_precisions(scores)
    return sum(found.values()) / len(found) if found else math.nan


def _part(scores: DetectionScores, kept: np.ndarray) -> DetectionScores:
    rows = kept[scores.scene]
    found, kind, hit, scene, objects = scores
    return DetectionScores(found[rows], kind[rows], hit[rows], scene[rows], objects * kept[:, None])


def evaluate(
    detect: Callable[[Any], Any], images: Any, labels: ArrayLike, *, batch_size: int = 256
) -> dict[str, Estimate]:
    """ "map_50", the mean average precision at an overlap of one half.

    Args:
      detect: jitted, from a batch of images to detections (batch_size, k, 6), see `score`.
      images: array or pytree of arrays, n scenes on the first axis.
      labels: (n, most, 5), as of `modelzip_jax.training.data.make_scenes`.
      batch_size: scenes at a time.

    Raises:
      EvaluationError: no scenes, no objects, or shapes that do not fit.
      NonFiniteError: a detection is not finite.

    >>> evaluate(lambda x: x, np.array([[[0, 0, 8, 8, 0.9, 0]]]), [[[0, 0, 8, 8, 0]]])["map_50"].value
    1.0
    """
    found = np.concatenate([y for _, y in predictions(detect, images, batch_size)])
    return {"map_50": detection_precision(score(found, labels))}
