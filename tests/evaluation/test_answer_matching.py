"""Answers to questions: scores by hand; MiniLM is tried where its package is."""

import jax
import numpy as np
import pytest

from modelzip_jax.errors import EvaluationError, MissingExtraError
from modelzip_jax.evaluation.answer_matching import matching_quality, matching_scores
from modelzip_jax.models import sentence_encoder


def test_scores_by_hand():
    questions = np.eye(4)[:3]
    answers = [[0.9, 0.1, 0, 0], [0.8, 0.5, 0, 0], [0, 0.6, 0, 0]]
    found = matching_scores(questions, answers)
    # The second question is nearer to the third answer; the third is as near to all, and its own counts last.
    assert found["recall_at_1"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(found["reciprocal_rank"], [1, 1 / 2, 1 / 3])


def test_embeddings_that_do_not_fit():
    with pytest.raises(EvaluationError, match=r"\(2, 3\) and \(3, 3\)"):
        matching_scores(np.zeros((2, 3)), np.zeros((3, 3)))


@pytest.mark.slow
def test_minilm_finds_most_answers():
    pytest.importorskip("tokenizers")
    try:
        params = sentence_encoder.load_minilm()[1]
    except MissingExtraError as error:
        pytest.skip(str(error))
    found = matching_quality(params, count=100)
    assert found["recall_at_1"].shape == (100,)
    assert found["recall_at_1"].mean() > 0.5
    random = jax.tree.map(lambda w: np.random.default_rng(0).normal(size=w.shape).astype(np.float32), params)
    assert matching_quality(random, count=100)["recall_at_1"].mean() < 0.2
