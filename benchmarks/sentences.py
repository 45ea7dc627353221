"""Sentences for MiniLM: what calibrates it, what choices are made on, what is reported, and another domain.

Docstrings of installed packages, as in `modelzip_jax.evaluation.retrieval`; no package is in two parts. The domain
that no calibration has seen are verses of the King James Version (`python scripts/offline_datasets.py kjv`): a verse
is the query, the next one the document, which is hard to find even for the float model.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from modelzip_jax.evaluation import ranking, retrieval
from modelzip_jax.models import sentence_encoder
from modelzip_jax.training import data

__all__ = [
    "PARTS",
    "Agreement",
    "Difference",
    "Sentences",
    "agreement",
    "difference",
    "load",
    "pairs",
]

PARTS = ("calibration", "validation", "test", "unseen domain")
# Where two cores embed 4,000 texts in some twenty seconds.
MAX_LENGTH = 48


class Sentences(NamedTuple):
    """tokens: int32 ids of all queries, then of all documents. count: of each."""

    tokens: list[np.ndarray]
    count: int


class Agreement(NamedTuple):
    """Text by text, as float64.

    cosine: of each text's embedding with the float one, (2 · count,). found: 1.0 where a query's own document
    is the nearest of all, (count,).
    """

    cosine: np.ndarray
    found: np.ndarray


class Difference(NamedTuple):
    """Of means over the same examples, with the standard error of that difference."""

    mean: float
    error: float


def pairs(part: str, count: int) -> list[retrieval.Pair]:
    """`count` pairs of query and document at even distances; all there are if fewer.

    part: one of `PARTS`. Packages are drawn by a hash of their names: a quarter of them is for validation, a fifth
    of the rest for calibration, the others for the test.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}")
    return retrieval.thin(_verses() if part == "unseen domain" else _docstrings()[part], count)


@functools.cache
def _docstrings() -> dict[str, list[retrieval.Pair]]:
    validation, rest = retrieval.split_by_package(retrieval.docstring_pairs())
    # The hash is uniform below the first limit and above it, so a second limit parts what the first one left.
    below, test = retrieval.split_by_package(rest, 0.25 + 0.2 * 0.75)
    return {"calibration": below, "validation": validation, "test": test}


@functools.cache
def _verses() -> list[retrieval.Pair]:
    rows = data.load_split("kjv", "test", sequence_length=1 << 14)["inputs"]
    lines = bytes(rows.astype(np.uint8).reshape(-1)).decode("latin-1").splitlines()[1:-1]
    verses = [re.sub(r"^\w+:\w+\s+", "", line.strip()) for line in lines]
    return [retrieval.Pair(a, b, "kjv") for a, b in zip(verses[::2], verses[1::2], strict=False)]


def load(part: str, count: int, tokenizer: Any) -> Sentences:
    """The tokens of `pairs(part, count)`, cut at 48."""
    found = pairs(part, count)
    texts = [pair.query for pair in found] + [pair.document for pair in found]
    return Sentences(sentence_encoder.tokenize(tokenizer, texts, MAX_LENGTH), len(found))


def agreement(reference: np.ndarray, other: np.ndarray) -> Agreement:
    """Of embeddings of the queries and then of the documents, (2 · count, d), with the float model's, of norm 1."""
    queries, documents = np.split(other, 2)
    ranks = ranking.first_relevant_ranks(
        ranking.relevance_blocks(queries, np.arange(len(queries)), documents)
    )
    cosine = np.sum(reference * other, 1, dtype=np.float64)
    return Agreement(cosine, (ranks <= 1).astype(np.float64))


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Of two measurements of the same examples, example by example: `a` minus `b`.

    >>> difference(np.array([1.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0]))
    Difference(mean=0.3333333333333333, error=0.33333333333333337)
    """
    paired = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return Difference(float(np.mean(paired)), harness.standard_error(paired))
