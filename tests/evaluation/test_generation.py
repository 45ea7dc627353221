"""Perplexity and bits per byte against direct float64 computations, and samples."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import EvaluationError, ModelError, NonFiniteError
from modelzip_jax.evaluation import generation as g

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(5, 5)).astype(np.float32) * 2
TOKENS = RNG.integers(0, 5, (11, 9))
INPUTS, LABELS = TOKENS[:, :-1], TOKENS[:, 1:].copy()


@jax.jit
def bigram(tokens):
    return jnp.asarray(TABLE)[tokens]


def nll(labels):
    logits = TABLE.astype(np.float64)[INPUTS]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]


def test_metrics_equal_their_definitions():
    numbers, expected = g.evaluate(bigram, INPUTS, LABELS, batch_size=4, bytes_per_token=2), nll(LABELS)
    assert numbers["cross_entropy"].value == pytest.approx(expected.mean(), rel=1e-6)
    error = expected.mean(1).std(ddof=1) / math.sqrt(11)
    assert numbers["cross_entropy"].standard_error == pytest.approx(error, rel=1e-5)
    assert numbers["perplexity"].value == pytest.approx(np.exp(expected.mean()), rel=1e-6)
    assert numbers["perplexity"].standard_error == pytest.approx(np.exp(expected.mean()) * error, rel=1e-5)
    assert numbers["bits_per_byte"].value == pytest.approx(expected.mean() / math.log(2) / 2, rel=1e-6)
    assert numbers["bits_per_byte"].count == 11


def test_negative_labels_do_not_count():
    labels = LABELS.copy()
    labels[0], labels[1, 3:] = -1, -1
    value = g.cross_entropy(g.score(bigram, INPUTS, labels)).value
    assert value == pytest.approx(nll(labels)[labels >= 0].mean(), rel=1e-6)


def test_standard_error_covers_sequences_of_several_lengths():
    """The spread of the estimate over resampled data is what its standard error says."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 20, (2000, 50))
    sums = tokens * rng.gamma(4, 0.5, (2000, 50))
    estimates = [g.cross_entropy(g.TokenScores(s, t)) for s, t in zip(sums, tokens, strict=True)]
    spread = np.std([e.value for e in estimates])
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(spread, rel=0.05)


def test_a_diverged_model_has_infinite_perplexity():
    assert g.perplexity(g.TokenScores(np.array([1e4]), np.array([1]))).value == math.inf


@pytest.mark.parametrize(
    ("predict", "inputs", "labels", "error", "message"),
    [
        (bigram, INPUTS, LABELS[:, 1:], EvaluationError, "one shape"),
        (bigram, INPUTS, LABELS + 1, EvaluationError, "do not fit labels .* up to 5"),
        (lambda t: bigram(t)[:, 1:], INPUTS, LABELS, EvaluationError, "do not fit"),
        (lambda t: bigram(t) * jnp.nan, INPUTS, LABELS, NonFiniteError, "11 of 11 sequences .* row 0"),
        (bigram, INPUTS, np.full_like(LABELS, -1), EvaluationError, "no tokens"),
        (bigram, INPUTS[:0], LABELS[:0], EvaluationError, "above 0"),
    ],
)
def test_unusable_data_is_refused(predict, inputs, labels, error, message):
    with pytest.raises(error, match=message):
        g.evaluate(predict, inputs, labels)


def noise(params, tokens):
    return jnp.zeros((*tokens.shape, 256)).at[..., 97:123].set(9.0)


def test_samples_are_texts_determined_by_their_key():
    draw = lambda seed, **more: g.samples(  # noqa: E731
        noise, None, "ab", count=3, steps=4, key=jax.random.key(seed), **more
    )
    texts = draw(0)
    assert texts == draw(0) != draw(1)
    assert len(set(texts)) == 3
    assert all(text.startswith("ab") and len(text) == 6 for text in texts)
    assert draw(0, temperature=0.0) == ["abaaaa"] * 3
    assert draw(0, encode=lambda text: [7], decode=str, temperature=0.0)[0] == "[7, 97, 97, 97, 97]"
    with pytest.raises(ModelError, match="at least 1 token"):
        g.samples(noise, None, "", count=1, steps=1, key=jax.random.key(0))
