"""The BERT encoder in Flax Linen, read out as one vector per sentence; defaults of MiniLM-L6-v2.

The network is BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) in the small size
distilled by MiniLM (Wang et al. 2020, https://arxiv.org/abs/2002.10957), read out as in
Sentence-BERT (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084): the mean of the token
states, on the unit sphere.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["SentenceEncoder", "SentenceEncoderConfig"]


@dataclasses.dataclass(frozen=True)
class SentenceEncoderConfig:
    """Sizes of the encoder; the defaults are those of MiniLM-L6-v2.

    >>> SentenceEncoderConfig().hidden_size
    384
    """

    vocab_size: int = 30522
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 12
    intermediate_size: int = 1536
    max_positions: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, layer-normalised."""

    config: SentenceEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        c = self.config
        embed = functools.partial(nn.Embed, features=c.hidden_size, dtype=self.dtype)
        words = embed(c.vocab_size, name="word_embeddings")(ids)
        positions = embed(c.max_positions, name="position_embeddings")(jnp.arange(ids.shape[-1]))
        types = embed(c.type_vocab_size, name="token_type_embeddings")(jnp.zeros(1, jnp.int32))
        return _layer_norm(self, "layer_norm")(words + positions + types)


class SelfAttention(nn.Module):
    """Multi-head self-attention with its residual and layer norm (BERT's post-norm)."""

    config: SentenceEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        dense = functools.partial(nn.Dense, c.hidden_size, dtype=self.dtype)
        heads = (*x.shape[:-1], c.num_heads, c.hidden_size // c.num_heads)
        q, k, v = (dense(name=n)(x).reshape(heads) for n in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * heads[-1] ** -0.5, k).astype(jnp.float32)
        # The most negative finite number, not -inf: a row that is all padding must not become NaN.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return _layer_norm(self, "layer_norm")(x + dense(name="output")(mixed))


class BertLayer(nn.Module):
    """One transformer layer: attention, then the GELU (exact, by erf) feed-forward block."""

    config: SentenceEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        x = SelfAttention(c, self.dtype, name="attention")(x, mask)
        hidden = nn.Dense(c.intermediate_size, dtype=self.dtype, name="intermediate")(x)
        hidden = _gelu(hidden)
        hidden = nn.Dense(c.hidden_size, dtype=self.dtype, name="output")(hidden)
        return _layer_norm(self, "layer_norm")(x + hidden)


class Encoder(nn.Module):
    """The stack of layers, named `layer_0`, `layer_1`, ..."""

    config: SentenceEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        for i in range(self.config.num_layers):
            x = BertLayer(self.config, self.dtype, name=f"layer_{i}")(x, mask)
        return x


class SentenceEncoder(nn.Module):
    """Token ids to one unit vector per sentence.

    Called with `ids`, int (n, length), and `mask`, bool or int (n, length), true on tokens, it
    returns float32 (n, hidden_size) with rows of unit norm. What stands under padding changes
    nothing. `dtype` is that of the matrix products; softmax, layer-norm statistics and pooling stay
    in float32. `length` must not exceed `config.max_positions`.

    Raises:
      ValueError: `length` exceeds `config.max_positions`.

    >>> config = SentenceEncoderConfig(vocab_size=50, hidden_size=8, num_layers=1, num_heads=2,
    ...                                intermediate_size=16, max_positions=16)
    >>> model, ids = SentenceEncoder(config), jnp.array([[2, 7, 3, 0]])
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), ids, ids > 0)
    >>> sorted(variables["params"]["encoder"]["layer_0"])
    ['attention', 'intermediate', 'layer_norm', 'output']
    >>> jax.eval_shape(model.apply, variables, ids, ids > 0).shape
    (1, 8)
    """

    config: SentenceEncoderConfig = SentenceEncoderConfig()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Float32 (n, hidden_size) unit rows, from `ids` and `mask` of shape (n, length)."""
        if ids.shape[-1] > self.config.max_positions:
            # A gather would clamp to the last position and return plausible nonsense.
            raise ValueError(f"length {ids.shape[-1]} > max_positions {self.config.max_positions}")
        mask = mask.astype(bool)
        x = Embeddings(self.config, self.dtype, name="embeddings")(ids)
        x = Encoder(self.config, self.dtype, name="encoder")(x, mask).astype(jnp.float32)
        total = jnp.sum(x * mask[..., None], axis=1)
        # The mean's divisor cancels in the normalisation. The floor is inside the root, because the
        # root's gradient at the zero of a row that is all padding would be NaN.
        return total * jax.lax.rsqrt(jnp.maximum(jnp.sum(total**2, -1, keepdims=True), 1e-24))


def _gelu(x: jax.Array) -> jax.Array:
    # jax.nn.gelu(approximate=False) goes through erfc, which takes 2.4 times as long on XLA:CPU.
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _layer_norm(module: Any, name: str) -> nn.LayerNorm:
    # use_fast_variance computes E[x²] − E[x]², which loses digits that the 1e-5 parity test needs.
    return nn.LayerNorm(module.config.layer_norm_eps, module.dtype, use_fast_variance=False, name=name)
