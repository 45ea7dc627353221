"""MiniLM-L6-v2, a sentence encoder: how near embeddings stay to the float network's, in four kinds of text.

Docstrings of packages (validation and test share none with calibration), movie reviews (half of them may calibrate,
the other half is reported) and verses of the King James Version, which no calibration sees. Calibration on docstrings
alone is bound to them: a fair comparison of compressors reports the other texts, too.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sentences
from benchmarks.tasks import movie_reviews
from benchmarks.tasks.task import Batch, Measure, Task, chosen_rows
from modelzip_jax.models import sentence_encoder, token_batches
from modelzip_jax.tree import PyTree

__all__ = ["NAMES", "load"]

NAMES = ("minilm",)
# Pairs of a query and a document, and the part of `benchmarks.sentences` that they are of; movie reviews are no pairs.
_PAIRS = {"validation": ("validation", 500), "test": ("test", 2000), "verses": ("unseen domain", 500)}
_REVIEWS, _QUICK, _BATCH = 2000, 50, 32
COSINE, RECALL = Measure("cosine to the float embedding"), Measure("recall@1")


def load(name: str, quick: bool) -> Task:
    """The task. The embedding has unit norm, so that 1 - cosine is half the squared error."""
    model, params, tokenizer = sentence_encoder.load_minilm()

    @functools.cache
    def tokens(part: str) -> sentences.Sentences:
        if part in _PAIRS:
            source, count = _PAIRS[part]
            return sentences.load(source, _QUICK if quick else count, tokenizer)
        texts = movie_reviews.reported()[: _QUICK if quick else _REVIEWS]
        return sentences.Sentences(sentence_encoder.tokenize(tokenizer, texts, sentences.MAX_LENGTH), 0)

    @functools.cache
    def reference(part: str) -> np.ndarray:
        return sentence_encoder.embed_tokens(model, params, tokens(part).tokens)

    def scores(changed: PyTree, part: str) -> dict[str, np.ndarray]:
        # On the device once, not for every batch.
        changed = jax.tree.map(jnp.asarray, changed)
        found = sentence_encoder.embed_tokens(model, changed, tokens(part).tokens)
        if part not in _PAIRS:
            return {COSINE.name: np.einsum("nd,nd->n", reference(part), found, dtype=np.float64)}
        agreement = sentences.agreement(reference(part), found)
        return {COSINE.name: agreement.cosine, RECALL.name: agreement.found}

    def calibration(count: int, seed: int = 0, mixed: bool = True) -> list[Batch]:
        """mixed: half of the texts are movie reviews; otherwise all are docstrings, of which there are some 700."""
        pairs = sentences.pairs("calibration", 1 << 30)
        docstrings = [pair.query for pair in pairs] + [pair.document for pair in pairs]
        reviews = movie_reviews.sentences_for_calibration() if mixed else []
        # Batches are of one length: each length leaves a rest that fills none.
        enough = count + len(token_batches.LENGTHS) * _BATCH
        texts = _drawn(docstrings, enough // 2 if mixed else enough, seed)
        texts += _drawn(reviews, enough // 2, seed)
        known = sentence_encoder.tokenize(tokenizer, texts, sentences.MAX_LENGTH)
        made = token_batches.unpadded_batches(known, _BATCH)
        return [made[i] for i in chosen_rows(len(made), -(-count // _BATCH), seed)]

    def apply(changed: PyTree, ids: Any, mask: Any) -> Any:
        return model.apply({"params": changed}, ids, mask)

    return Task(
        name=name,
        params=jax.tree.map(np.asarray, params),
        apply=apply,
        likelihood="gaussian",
        calibration=calibration,
        scores=scores,
        measures=(COSINE, RECALL),
        parts=("validation", "test", "movie", "verses"),
    )


def _drawn(texts: list[str], count: int, seed: int) -> list[str]:
    return [texts[i] for i in chosen_rows(len(texts), count, seed)]
