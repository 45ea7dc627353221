"""Ranking metrics against definitions written out, for image search and for text retrieval."""

from __future__ import annotations

import numpy as np
import pytest

from modelzip_jax.errors import EvaluationError, NonFiniteError
from modelzip_jax.evaluation import image_search as s
from modelzip_jax.evaluation import ranking, retrieval

RNG = np.random.default_rng(2)  # whose cosines differ by more than float32 rounds
LABELS = RNG.integers(0, 5, 60)
IMAGES = (np.eye(5)[LABELS] + RNG.normal(size=(60, 5))).astype(np.float32)


def definition(scores, relevant):
    """(rank, average precision) of one query, item by item; what is relevant last among equals."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], relevant[i]))
    hits = [place for place, item in enumerate(order, 1) if relevant[item]]
    return hits[0], np.mean([i / place for i, place in enumerate(hits, 1)])


def cosines(a, b):
    a, b = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def test_leave_one_out_equals_the_definition():
    scores, found = cosines(IMAGES, IMAGES), s.score(IMAGES, LABELS)
    for i in range(60):
        others = np.arange(60) != i
        rank, precision = definition(scores[i, others], LABELS[others] == LABELS[i])
        assert found.rank[i] == rank
        assert found.average_precision[i] == pytest.approx(precision)


def test_a_gallery_equals_the_definition():
    found = s.score(IMAGES[:20], LABELS[:20], IMAGES[20:], LABELS[20:])
    scores = cosines(IMAGES[:20], IMAGES[20:])
    expected = [definition(row, LABELS[20:] == label) for row, label in zip(scores, LABELS, strict=False)]
    np.testing.assert_array_equal(found.rank, [rank for rank, _ in expected])
    np.testing.assert_allclose(found.average_precision, [precision for _, precision in expected])


def test_blocks_change_nothing_and_are_bounded():
    integers = np.round(IMAGES * 4)  # products of integers are exact whatever the shape of the block
    results = []
    for size in (1, 130, 10**6):
        blocks = list(ranking.relevance_blocks(integers, LABELS, block_scores=size))
        assert max(block.scores.size for block in blocks) <= max(size, 60)
        results.append(ranking.average_precisions(blocks))
        np.testing.assert_array_equal(ranking.first_relevant_ranks(blocks), results[-1][0])
    for ranks, precisions in results[1:]:
        np.testing.assert_array_equal(ranks, results[0][0])
        np.testing.assert_array_equal(precisions, results[0][1])


def test_ties_and_signed_zeros_count_against_the_encoder():
    scores = np.array([[0.0, -0.0, 0.0, -1.0], [-0.0, 0.0, -2.0, -3.0]], np.float32)
    relevant = np.array([[False, True, False, True], [True, True, False, False]])
    block = ranking.QueryBlock(scores, relevant)
    ranks, precisions = ranking.average_precisions([block])
    assert ranks.tolist() == ranking.first_relevant_ranks([block]).tolist() == [3, 1]
    np.testing.assert_allclose(precisions, [(1 / 3 + 2 / 4) / 2, 1.0])
    assert s.recall(s.score(np.ones((6, 2)), [0, 0, 1, 1, 2, 2]), 1).value == 0.0
    assert s.score(np.zeros((4, 2)), [0, 0, 1, 1]).rank.tolist() == [3, 3, 3, 3]


def test_text_retrieval_is_the_case_of_one_relevant_document():
    queries, documents = IMAGES, IMAGES[::-1]
    ranks, precisions = ranking.average_precisions(
        ranking.relevance_blocks(queries, np.arange(60), documents)
    )
    np.testing.assert_allclose(precisions, 1 / ranks)
    assert retrieval.recall_at(queries, documents, 5) == np.mean(ranks <= 5)
    assert retrieval.mrr_at(queries, documents, 60) == pytest.approx(np.mean(precisions))


def test_evaluate_takes_batches():
    numbers = s.evaluate(lambda x: x * 2, IMAGES, LABELS, ks=(1, 4), batch_size=32)
    found = s.score(IMAGES, LABELS)
    assert list(numbers) == ["recall_at_1", "recall_at_4", "map"]
    assert numbers["recall_at_4"].value == np.mean(found.rank <= 4)
    assert numbers["map"].value == pytest.approx(np.mean(found.average_precision))
    assert numbers["map"].standard_error == pytest.approx(found.average_precision.std(ddof=1) / 60**0.5)


def test_unusable_embeddings_are_refused():
    broken = IMAGES.copy()
    broken[3, 0] = np.nan
    with pytest.raises(NonFiniteError, match="1 of 60 queries are not finite, first row 3"):
        s.score(broken, LABELS)
    with pytest.raises(NonFiniteError, match="documents are not finite"):
        retrieval.recall_at(IMAGES, broken, 1)
    with pytest.raises(EvaluationError, match=r"query 2 \(label 7\) has no relevant document"):
        s.score(IMAGES[:3], [0, 0, 7])
    with pytest.raises(EvaluationError, match="expected queries"):
        s.score(IMAGES, LABELS[:-1])
    with pytest.raises(EvaluationError, match="differ in width"):
        s.score(IMAGES, LABELS, IMAGES[:, :2], LABELS)
    with pytest.raises(EvaluationError, match="together, or neither"):
        s.score(IMAGES, LABELS, IMAGES)
