"""Text generation: perplexity and bits per byte with standard errors, and samples to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import EvaluationError, NonFiniteError
from modelzip_jax.evaluation.batching import predictions
from modelzip_jax.evaluation.estimate import Estimate

__all__ = ["TokenScores", "bits_per_byte", "cross_entropy", "evaluate", "perplexity", "samples", "score"]


class TokenScores(NamedTuple):
    """What the metrics need to know of each of n sequences.

    nll: float64 (n,), cross-entropy of a sequence's labels in nats, summed over its tokens.
    tokens: int (n,), labels that count.
    """

    nll: np.ndarray
    tokens: np.ndarray


def score(
    predict: Callable[[Any], Any], inputs: ArrayLike, labels: ArrayLike, batch_size: int = 32
) -> TokenScores:
    """Scores of a token model on windows of text, in batches of one size.

    A token's cross-entropy is computed in float32 on the device, sums over tokens in float64.

    Args:
      predict: jitted, from tokens int (batch_size, length) to logits (batch_size, length, vocabulary).
      inputs: int (n, length).
      labels: int (n, length), the token after each input; negative ones do not count.
      batch_size: sequences at a time.

    Raises:
      EvaluationError: shapes that do not fit, or labels outside the vocabulary.
      NonFiniteError: a cross-entropy is not finite.

    >>> score(lambda tokens: jnp.zeros((*tokens.shape, 2)), [[0, 1]], [[1, -1]]).tokens
    array([1])
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if labels.shape != inputs.shape or labels.ndim != 2:
        raise EvaluationError(
            f"expected inputs and labels of one shape (n, length), got {inputs.shape} and {labels.shape}"
        )
    nll, highest = np.zeros(labels.shape), labels.max(initial=-1)

    def losses(batch: tuple[np.ndarray, np.ndarray]) -> jax.Array:
        logits = jnp.asarray(predict(batch[0]))
        if logits.shape[:-1] != batch[1].shape or highest >= logits.shape[-1]:
            raise EvaluationError(f"logits {logits.shape} do not fit labels {batch[1].shape} up to {highest}")
        return _token_nll(logits, batch[1])

    for rows, values in predictions(losses, (inputs, labels), batch_size):
        nll[rows] = values
    counted = labels >= 0
    bad = np.flatnonzero(~np.all(np.isfinite(nll) | ~counted, axis=1))
    if bad.size:
        raise NonFiniteError(
            f"{bad.size} of {len(nll)} sequences have no finite cross-entropy, first row {bad[0]}"
        )
    return TokenScores(np.sum(nll, axis=1, where=counted), np.sum(counted, axis=1))


def cross_entropy(scores: TokenScores) -> Estimate:
    """Mean cross-entropy in nats a token.

    Tokens of one sequence are not independent: the standard error is over sequences, that of a ratio
    of sums (Cochran 1977, "Sampling Techniques", §2.11), and `count` is the number of sequences.

    Raises:
      EvaluationError: no token counts.

    >>> cross_entropy(TokenScores(np.array([2.0, 4.0]), np.array([2, 2])))
    Estimate(value=1.5, standard_error=0.5, count=2)
    """
    n, tokens = len(scores.tokens), int(np.sum(scores.tokens))
    if not tokens:
        raise EvaluationError("there are no tokens to measure")
    value = float(np.sum(scores.nll)) / tokens
    residuals = scores.nll - value * scores.tokens
    error = math.sqrt(n / (n - 1) * float(np.sum(residuals**2))) / tokens if n > 1 else math.nan
    return Estimate(value, error, n)


def perplexity(scores: TokenScores) -> Estimate:
    """The exponential of `cross_entropy`; its standard error to first order.

    >>> round(perplexity(TokenScores(np.array([2.0, 4.0]), np.array([2, 2]))).value, 3)
    4.482
    """
    nats = cross_entropy(scores)
    with np.errstate(over="ignore"):  # a diverged model has an infinite perplexity
        value = float(np.exp(nats.value))
    return Estimate(value, value * nats.standard_error, nats.count)


def bits_per_byte(scores: TokenScores, bytes_per_token: float = 1.0) -> Estimate:
    """`cross_entropy` in bits for each byte of text: comparable between tokenizers.

    Args:
      scores: of a model.
      bytes_per_token: bytes of the text divided by its tokens; 1 for models of bytes.

    >>> bits_per_byte(TokenScores(np.array([2 * np.log(2)]), np.array([1]))).value
    2.0
    """
    nats, scale = cross_entropy(scores), 1 / (math.log(2) * bytes_per_token)
    return Estimate(nats.value * scale, nats.standard_error * scale, nats.count)


def evaluate(
    predict: Callable[[Any], Any],
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    bytes_per_token: float = 1.0,
    batch_size: int = 32,
) -> dict[str, Estimate]:
    """Every metric here: "perplexity", "bits_per_byte" and "cross_entropy"; arguments and errors of `score`.

    >>> uniform = lambda tokens: jnp.zeros((*tokens.shape, 4))
    >>> round(float(evaluate(uniform, [[0, 1], [2, 3]], [[1, 2], [3, 0]])["perplexity"]), 4)
    4.0
    """
    scores = score(predict, inputs, labels, batch_size)
    return {
        "perplexity": perplexity(scores),
        "bits_per_byte": bits_per_byte(scores, bytes_per_token),
        "cross_entropy": cross_entropy(scores),
    }


def samples(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    prompt: str,
    *,
    count: int,
    steps: int,
    key: jax.Array,
    temperature: float = 1.0,
    encode: Callable[[str], Sequence[int]] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> list[str]:
    """`count` continuations of a prompt, each of `steps` tokens, prompt included.

    Args:
      apply: as in `modelzip_jax.models.language_model.generate`, which draws the tokens.
      params: its first argument.
      prompt: text of at least one token.
      count: texts to draw.
      steps: tokens to add to each.
      key: random key; the same key gives the same texts.
      temperature: divides the logits; 0 takes the likeliest token.
      encode: from text to tokens; its UTF-8 bytes by default.
      decode: from tokens to text; by default of bytes, with U+FFFD where they are not UTF-8.

    Raises:
      ModelError: an empty prompt, no steps, or more tokens than the model has positions.

    >>> following = lambda params, tokens: 1e9 * jax.nn.one_hot(tokens + 1, 256)
    >>> samples(following, None, "ab", count=1, steps=3, key=jax.random.key(0))
    ['abcde']
    """
    from modelzip_jax.models.language_model import generate

    encode = encode or (lambda text: list(text.encode()))
    decode = decode or (lambda tokens: bytes(tokens).decode(errors="replace"))
    prompts = np.tile(np.asarray(encode(prompt), np.int32), (count, 1))
    tokens = generate(apply, params, prompts, steps, key, temperature)
    return [decode(row) for row in np.asarray(tokens).tolist()]


@jax.jit
def _token_nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
