"""Mean average precision against cases worked by hand, a slow plain implementation, and what must not change it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.errors import EvaluationError, NonFiniteError
from modelzip_jax.evaluation import detection as d

WHOLE = [0, 0, 10, 10]
NONE = [0, 0, 0, 0, -1]


def found(*rows):
    """Detections of one scene: a box, a likelihood, and a class of 0 if none is given."""
    return [[[*box, likelihood, *(kind or [0])] for box, likelihood, *kind in rows]]


def test_overlaps_by_hand():
    boxes = [[0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 10, 5], [10, 0, 20, 10], [4, 4, 4, 9], [9, 9, 2, 2]]
    expected = [1, 50 / 150, 50 / 100, 0, 0, 0]
    np.testing.assert_allclose(d.box_overlaps([WHOLE], boxes)[0], expected)
    assert d.box_overlaps([[4, 4, 4, 9]], [[4, 4, 4, 9]]).item() == 0


def test_one_object_found_twice_counts_once():
    scores = d.score(found((WHOLE, 0.9), (WHOLE, 0.8), ([0, 0, 10, 9], 0.95)), [[[*WHOLE, 0]]])
    assert scores.hit.tolist() == [False, False, True]  # the likeliest, though another one lies better
    assert d.class_precisions(scores) == {0: 1.0}


def test_a_hit_needs_half_of_the_union():
    half, less = [0, 0, 10, 5], [0, 0, 10, 4.99]
    assert d.score(found((half, 0.9)), [[[*WHOLE, 0]]]).hit.tolist() == [True]
    assert d.score(found((less, 0.9)), [[[*WHOLE, 0]]]).hit.tolist() == [False]
    assert d.score(found((less, 0.9)), [[[*WHOLE, 0]]], overlap=0.4).hit.tolist() == [True]


def test_a_detection_belongs_to_the_object_that_it_overlaps_most():
    # As in VOC: it is no hit of the second object, though it overlaps that by half, too.
    objects = [[[0, 0, 10, 10, 0], [0, 0, 10, 14, 0]]]
    scores = d.score(found((WHOLE, 0.9), ([0, 0, 10, 10.5], 0.8)), objects)
    assert scores.hit.tolist() == [True, False]


def test_average_precision_by_hand():
    # Right, wrong, right, wrong, of three objects: recalls 1/3, 2/3 with precisions 1 and 2/3.
    objects = [[[0, 0, 10, 10, 0], [20, 0, 30, 10, 0], [40, 0, 50, 10, 0]]]
    rows = [(WHOLE, 0.9), ([60, 0, 70, 10], 0.8), ([20, 0, 30, 10], 0.7), ([60, 0, 70, 10], 0.6)]
    assert d.class_precisions(d.score(found(*rows), objects)) == {0: pytest.approx((1 + 2 / 3) / 3)}
    # Wrong, right, right: at recall 1/3 the best precision is that of recall 2/3.
    later = [(rows[1][0], 0.95), rows[0], rows[2]]
    assert d.class_precisions(d.score(found(*later), objects)) == {0: pytest.approx(4 / 9)}


def test_equal_likelihoods_are_one_point():
    objects = [[[*WHOLE, 0]]]
    for rows in ([(WHOLE, 0.5), ([20, 0, 30, 10], 0.5)], [([20, 0, 30, 10], 0.5), (WHOLE, 0.5)]):
        assert d.class_precisions(d.score(found(*rows), objects)) == {0: 0.5}


def test_the_mean_is_over_classes_that_have_an_object():
    objects = [[[*WHOLE, 0], [20, 0, 30, 10, 4]]]
    scores = d.score(found((WHOLE, 0.9, 0), (WHOLE, 0.9, 2)), objects)
    assert d.class_precisions(scores) == {0: 1.0, 4: 0.0}
    assert d.detection_precision(scores).value == 0.5


def test_nothing_found_and_rows_that_do_not_count():
    scores = d.score(found((WHOLE, 0.0), ([np.inf] * 4, 0.0)), [[[*WHOLE, 0], NONE]])
    assert len(scores.hit) == 0
    assert d.detection_precision(scores).value == 0


def test_bad_input():
    with pytest.raises(EvaluationError, match=r"detections \(n, k, 6\) and labels \(n, most, 5\)"):
        d.score(np.zeros((1, 2, 5)), np.zeros((1, 2, 5)))
    with pytest.raises(EvaluationError, match=r"\(2, 1, 6\) and \(1, 1, 5\)"):
        d.score(np.zeros((2, 1, 6)), np.zeros((1, 1, 5)))
    with pytest.raises(EvaluationError, match="whole numbers"):
        d.score(found((WHOLE, 0.9, 0.5)), [[[*WHOLE, 0]]])
    with pytest.raises(NonFiniteError):
        d.score(found(([0, 0, np.nan, 1], 0.9)), [[[*WHOLE, 0]]])
    with pytest.raises(EvaluationError, match="no objects to find"):
        d.detection_precision(d.score(found((WHOLE, 0.9)), [[NONE]]))


def drawn(seed, scenes=6, most=3, count=8):
    """Objects and detections near them, of three classes, with likelihoods that are often equal."""
    rng = np.random.default_rng(seed)
    corner, side = rng.integers(0, 20, (scenes, most, 2)), rng.integers(4, 9, (scenes, most, 2))
    kinds = rng.integers(-1, 3, (scenes, most, 1))
    labels = np.concatenate([corner, corner + side, kinds], axis=2)
    near = rng.integers(0, most, (scenes, count, 1))
    boxes = np.take_along_axis(labels[..., :4], near, axis=1) + rng.integers(-2, 3, (scenes, count, 4))
    own = np.take_along_axis(labels[..., 4:], near, axis=1)
    kind = np.where(rng.random(own.shape) < 0.7, np.maximum(own, 0), rng.integers(0, 3, own.shape))
    return np.concatenate([boxes, rng.integers(0, 6, own.shape) / 5, kind], axis=2).astype(float), labels


def plainly(found, labels, kind):
    """Average precision by its definition, one threshold after the other."""
    rows = []
    objects = int(np.sum(labels[..., 4] == kind))
    for scene, (boxes, truths) in enumerate(zip(found, labels, strict=True)):
        truths = truths[truths[:, 4] == kind]
        for box in boxes[(boxes[:, 4] > 0) & (boxes[:, 5] == kind)]:
            overlaps = [d.box_overlaps(box[None, :4], truth[None, :4]).item() for truth in truths]
            best = int(np.argmax(overlaps)) if overlaps else -1
            rows.append((box[4], overlaps[best] if overlaps else 0.0, (scene, best)))
    rows.sort(key=lambda row: (-row[0], -row[1]))
    taken, hits = set(), []
    for _, overlap, target in rows:
        hits.append(overlap >= 0.5 and target not in taken)
        taken |= {target} if hits[-1] else set()
    points = [
        (sum(hits[:i]) / objects, sum(hits[:i]) / i)
        for i in range(1, len(rows) + 1)
        if i == len(rows) or rows[i][0] != rows[i - 1][0]
    ]
    recalls = sorted({recall for recall, _ in points})
    steps = np.diff([0, *recalls])
    return sum(
        step * max(p for r, p in points if r >= recall) for step, recall in zip(steps, recalls, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_as_by_the_definition(seed):
    found, labels = drawn(seed)
    for kind, value in d.class_precisions(d.score(found, labels)).items():
        assert value == pytest.approx(plainly(found, labels, kind))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_what_does_not_change_it(seed):
    found, labels = drawn(seed)
    rng = np.random.default_rng(seed)
    expected = d.class_precisions(d.score(found, labels))
    scenes, rows = rng.permutation(len(found)), rng.permutation(found.shape[1])
    assert d.class_precisions(d.score(found[scenes][:, rows], labels[scenes])) == pytest.approx(expected)
    surer = found.copy()
    surer[..., 4] **= 3  # only the order of likelihoods counts
    assert d.class_precisions(d.score(surer, labels)) == pytest.approx(expected)
    doubled = d.score(np.concatenate([found, found]), np.concatenate([labels, labels]))
    assert d.class_precisions(doubled) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_bounds_and_what_makes_it_worse(seed):
    found, labels = drawn(seed)
    before = d.class_precisions(d.score(found, labels))
    assert all(0 <= value <= 1 for value in before.values())
    stricter = d.class_precisions(d.score(found, labels, overlap=0.7))
    wrong = np.concatenate([found, np.tile([[[50, 50, 60, 60, 2.0, 0]]], (len(found), 1, 1))], axis=1)
    after = d.class_precisions(d.score(wrong, labels))
    for kind, value in before.items():
        assert after[kind] <= value + 1e-12
        assert stricter[kind] <= value + 1e-12
    perfect = np.concatenate([labels[..., :4], np.ones_like(labels[..., :1]), labels[..., 4:]], axis=2)
    perfect[..., 4] = labels[..., 4] >= 0
    perfect[..., 5] = np.maximum(perfect[..., 5], 0)
    if all(len({tuple(row) for row in scene if row[4] >= 0}) == sum(scene[:, 4] >= 0) for scene in labels):
        assert set(d.class_precisions(d.score(perfect, labels)).values()) <= {1.0}


def test_the_standard_error_is_about_that_of_new_scenes():
    values, errors = [], []
    for seed in range(60):
        estimate = d.detection_precision(d.score(*drawn(seed, scenes=100)))
        assert estimate.count == 100
        values.append(estimate.value)
        errors.append(estimate.standard_error)
    assert 0.6 < float(np.mean(errors)) / float(np.std(values)) < 1.6
    assert math.isnan(d.detection_precision(d.score(found((WHOLE, 0.9)), [[[*WHOLE, 0]]])).standard_error)


def test_evaluate_runs_in_batches():
    boxes, labels = drawn(3)
    numbers = d.evaluate(lambda x: x, boxes, labels, batch_size=4)
    assert numbers == {"map_50": d.detection_precision(d.score(boxes, labels))}
