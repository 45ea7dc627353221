"""Question–answer matching: the answer that belongs to a question, found among those to all the others.

Questions are first sentences of docstrings and answers the rest of them (`modelzip_jax.evaluation.retrieval`): pairs
that are installed already.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation import retrieval
from modelzip_jax.evaluation.docstring_calibration import encoder_of
from modelzip_jax.evaluation.ranking import first_relevant_ranks, relevance_blocks
from modelzip_jax.evaluation.task_scores import TaskScore
from modelzip_jax.models import sentence_encoder
from modelzip_jax.tree import PyTree

__all__ = ["matching_quality", "matching_scores"]

_LENGTH = 48  # tokens of a text that count


def matching_scores(questions: ArrayLike, answers: ArrayLike) -> dict[str, TaskScore]:
    """Scores of each question, by the dot products of embeddings, both (n, d); its answer is in the same row.

    "recall_at_1", whether its answer is the nearest of all, and "reciprocal_rank". Among equals its answer is last.

    Raises:
      EvaluationError: shapes that do not fit. NonFiniteError: an embedding is not finite.

    >>> found = matching_scores(np.eye(3), np.eye(3)[[0, 2, 1]])
    >>> found["recall_at_1"].tolist(), found["reciprocal_rank"].round(2).tolist()
    ([1.0, 0.0, 0.0], [1.0, 0.33, 0.33])
    """
    questions, answers = np.asarray(questions, np.float32), np.asarray(answers, np.float32)
    if questions.shape != answers.shape or questions.ndim != 2:
        raise EvaluationError(
            f"expected embeddings of one shape (n, d), got {questions.shape} and {answers.shape}"
        )
    ranks = first_relevant_ranks(relevance_blocks(questions, np.arange(len(questions)), answers))
    return {"recall_at_1": (ranks == 1).astype(np.float64), "reciprocal_rank": 1.0 / ranks}


def matching_quality(weights: PyTree, count: int = 500) -> dict[str, TaskScore]:
    """`matching_scores` of a MiniLM encoder on docstrings of three quarters of the packages there are.

    Args:
      weights: params of `SentenceEncoder`, or those of a Hugging Face `BertModel` as its checkpoint has them.
      count: pairs, at even distances.

    Raises:
      MissingExtraError: MiniLM's package or `tokenizers` is not installed. CheckpointError: params of neither.
    """
    model, _, tokenizer = sentence_encoder.load_minilm()
    pairs = retrieval.thin(retrieval.split_by_package(retrieval.docstring_pairs())[1], count)
    texts = [pair.query for pair in pairs] + [pair.document for pair in pairs]
    tokens = sentence_encoder.tokenize(tokenizer, texts, _LENGTH)
    encode = jax.jit(encoder_of(model))
    weights = jax.tree.map(jnp.asarray, weights)
    found = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for batch in sentence_encoder.batches(tokens):
        found[batch.rows] = np.asarray(encode(weights, batch.ids, batch.mask))[: len(batch.rows)]
    return matching_scores(*np.split(found, 2))
