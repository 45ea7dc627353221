"""A small decoder-only transformer in Flax Linen, and sampling from any such model.

GPT-2's arrangement (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3, of
Vaswani et al. 2017, https://arxiv.org/abs/1706.03762): layer norm before attention and before the MLP,
a last layer norm, and initial weights of standard deviation 0.02, less by the root of the number of
residual additions where a layer adds to the residual stream.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from modelzip_jax.errors import ModelError
from modelzip_jax.models.input_checks import check_tokens

__all__ = ["CausalSelfAttention", "LanguageModel", "TransformerBlock", "generate", "rotary"]


def rotary(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864), first with second half.

    Args:
      x: queries or keys, (n, length, heads, head_dim) with an even head_dim; position is the index on axis 1.
      base: of the geometric series of wavelengths.

    Returns:
      `x` with component i and i + head_dim/2 rotated by position × base^(-2i/head_dim), in its dtype.

    >>> x = jnp.ones((1, 3, 1, 2))
    >>> bool(jnp.allclose(rotary(x)[0, 2, 0], jnp.array([jnp.cos(2) - jnp.sin(2), jnp.cos(2) + jnp.sin(2)])))
    True
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what is before it.

    (n, length, embed_dim) to the same. Kernels `query`, `key`, `value` and `output` are matrices
    (embed_dim, embed_dim); softmax is in float32.

    >>> attention, x = CausalSelfAttention(num_heads=2), jnp.ones((1, 3, 8))
    >>> sorted(jax.eval_shape(attention.init, jax.random.key(0), x)["params"])
    ['key', 'output', 'query', 'value']
    """

    num_heads: int
    rope: bool = False
    residual_stddev: float = 0.02
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    head_dim: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Floats (n, length, embed_dim) to the same shape."""
        head_dim = self.head_dim or x.shape[-1] // self.num_heads
        heads = (*x.shape[:-1], self.num_heads, head_dim)
        dense = functools.partial(_dense, dtype=self.dtype, param_dtype=self.param_dtype)
        names = ("query", "key", "value")
        q, k, v = (dense(self.num_heads * head_dim, name=name)(x).reshape(heads) for name in names)
        if self.rope:
            q, k = rotary(q), rotary(k)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(*x.shape[:-1], -1)
        return dense(x.shape[-1], stddev=self.residual_stddev, name="output")(mixed)


class TransformerBlock(nn.Module):
    """One pre-norm layer: attention, then an MLP with GELU, each added to its input.

    (n, length, embed_dim) to the same; fields as in `LanguageModel`. `residual_stddev` is the initial
    standard deviation of the two kernels that write into the residual stream.

    >>> block, x = TransformerBlock(num_heads=2), jnp.ones((1, 3, 8))
    >>> sorted(jax.eval_shape(block.init, jax.random.key(0), x)["params"])
    ['attention', 'attention_norm', 'mlp_in', 'mlp_norm', 'mlp_out']
    """

    num_heads: int
    mlp_ratio: int = 4
    rope: bool = False
    residual_stddev: float = 0.02
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    head_dim: int | None = None
    mlp_dim: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Floats (n, length, embed_dim) to the same shape."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = CausalSelfAttention(
            self.num_heads,
            self.rope,
            self.residual_stddev,
            **dtypes,
            head_dim=self.head_dim,
            name="attention",
        )
        x = x + attention(nn.LayerNorm(**dtypes, name="attention_norm")(x))
        hidden = nn.LayerNorm(**dtypes, name="mlp_norm")(x)
        hidden = nn.gelu(
            _dense(self.mlp_dim or self.mlp_ratio * x.shape[-1], name="mlp_in", **dtypes)(hidden)
        )
        return x + _dense(x.shape[-1], self.residual_stddev, name="mlp_out", **dtypes)(hidden)


class LanguageModel(nn.Module):
    """A decoder-only transformer: tokens to the logits of the token that follows each.

    Called with int (n, length), length ≤ max_length, it returns logits float32 (n, length, vocab_size);
    those at a position do not depend on later tokens.

    With `scan`, the layers are one `nn.scan`: compilation takes the time of one layer whatever their
    number, and leaves such as `blocks/attention/query/kernel` hold all layers along a first axis.
    Without, the same leaves without that axis are under `block_0`, `block_1`, ... Stacked along a first
    axis they are those of the scan, and both compute the same.

    Attributes:
      vocab_size: tokens; 256 for bytes.
      num_layers: blocks.
      num_heads: attention heads; divides embed_dim.
      embed_dim: width of the residual stream.
      mlp_ratio: hidden units of a block's MLP, in multiples of embed_dim.
      max_length: most tokens in a sequence.
      positions: "learned" embeddings, or "rope" (see `rotary`), which needs an even embed_dim/num_heads.
      tied: whether the token embedding is also the output matrix (Press and Wolf 2017,
        https://arxiv.org/abs/1608.05859); `lm_head/kernel` (embed_dim, vocab_size) otherwise.
      scan: whether the layers are scanned.
      remat: whether a block's activations are computed again in the backward pass instead of kept.
      dtype: of the matrix products; softmax, norm statistics and logits are float32 whatever it is.
      param_dtype: of the parameters.
      head_dim: width of a head, instead of embed_dim / num_heads.
      mlp_dim: hidden units of a block's MLP, instead of mlp_ratio × embed_dim.

    Raises:
      ModelError: tokens that are not integer (n, length ≤ max_length); sizes that do not divide; unknown
        positions.

    >>> model, tokens = LanguageModel(num_layers=2, num_heads=2, embed_dim=8), jnp.zeros((1, 5), jnp.int32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    >>> params["blocks"]["mlp_in"]["kernel"].shape
    (2, 8, 32)
    """

    vocab_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    embed_dim: int = 128
    mlp_ratio: int = 4
    max_length: int = 256
    positions: str = "learned"
    tied: bool = True
    scan: bool = True
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    head_dim: int | None = None
    mlp_dim: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, length, vocab_size) of tokens int (n, length); `train` changes nothing."""
        del train
        self._check()
        check_tokens(x, "LanguageModel", self.max_length)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        embed = functools.partial(
            nn.Embed, features=self.embed_dim, embedding_init=nn.initializers.normal(0.02), **dtypes
        )
        tokens = embed(self.vocab_size, name="token_embedding")
        h = tokens(x)
        if self.positions == "learned":
            h = h + embed(self.max_length, name="position_embedding")(jnp.arange(x.shape[1]))
        h = nn.LayerNorm(**dtypes, name="final_norm")(self._layers(h))
        if self.tied:
            return tokens.attend(h).astype(jnp.float32)
        return _dense(self.vocab_size, use_bias=False, name="lm_head", **dtypes)(h).astype(jnp.float32)

    def _layers(self, h: jax.Array) -> jax.Array:
        # Inside a scan, XLA cannot merge the two computations, and the barrier against it would cost time.
        block = nn.remat(TransformerBlock, prevent_cse=not self.scan) if self.remat else TransformerBlock
        block = functools.partial(
            block, self.num_heads, self.mlp_ratio, self.positions == "rope",
            0.02 * (2 * self.num_layers) ** -0.5, self.dtype, self.param_dtype, self.head_dim, self.mlp_dim,
        )  # fmt: skip
        if not self.scan:
            for i in range(self.num_layers):
                h = block(name=f"block_{i}")(h)
            return h
        layers = nn.scan(
            lambda block, h, _: (block(h), None),
            variable_axes={"params": 0}, split_rngs={"params": True}, length=self.num_layers,
        )  # fmt: skip
        return layers(block(name="blocks"), h, None)[0]

    def _check(self) -> None:
        if self.positions not in ("learned", "rope"):
            raise ModelError(f"positions must be 'learned' or 'rope', not {self.positions!r}")
        if self.head_dim is None and self.embed_dim % (
            self.num_heads * (2 if self.positions == "rope" else 1)
        ):
            even = " into even sizes, as rope needs" if self.positions == "rope" else ""
            raise ModelError(
                f"embed_dim={self.embed_dim} does not divide among num_heads={self.num_heads}{even}"
            )


def generate(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    prompt: ArrayLike,
    steps: int,
    key: jax.Array,
    temperature: float = 1.0,
) -> jax.Array:
    """Continues each prompt by `steps` tokens drawn from the model, one after the other.

    Compiled once for each `apply`, shape of the prompt and number of steps; so give a function that
    lives on, such as `model.apply`, not a new lambda each time. Nothing is cached between steps: each
    runs the model on prompt length + steps tokens, which small models can afford.

    Args:
      apply: from `params` and tokens int32 (n, length) to logits (n, length, vocab_size), causal.
      params: its first argument; for `model.apply`, `{"params": params}`.
      prompt: tokens, int (n, at least 1).
      steps: tokens to add, at least 1.
      key: random key; the same key gives the same tokens.
      temperature: divides the logits; 0 takes the likeliest token, and the key is not used.

    Returns:
      Prompt and continuation, int32 (n, prompt length + steps).

    Raises:
      ModelError: an empty prompt, no steps, a negative temperature, or more tokens than the model has
        positions.

    >>> def successor(params, tokens):  # a model that is certain of the next integer
    ...     return 1e9 * jax.nn.one_hot(tokens + 1, 10)
    >>> generate(successor, None, [[3], [5]], steps=3, key=jax.random.key(0)).tolist()
    [[3, 4, 5, 6], [5, 6, 7, 8]]
    """
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or not prompt.size or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ModelError(f"prompt must be integers (n, at least 1 token), got {prompt.dtype} {prompt.shape}")
    if steps < 1 or temperature < 0:
        raise ModelError(
            f"steps must be at least 1 and temperature at least 0, got {steps} and {temperature}"
        )
    return _generate(apply, params, prompt.astype(jnp.int32), key, jnp.float32(temperature), steps)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _generate(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    prompt: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    steps: int,
) -> jax.Array:
    start = prompt.shape[1]

    def step(i: jax.Array, tokens: jax.Array) -> jax.Array:
        logits = apply(params, tokens)[:, i - 1].astype(jnp.float32)
        # The unused branch of a `where` must stay finite: no division by zero.
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        drawn = jax.random.categorical(jax.random.fold_in(key, i), scaled)
        return tokens.at[:, i].set(jnp.where(temperature > 0, drawn, jnp.argmax(logits, -1)))

    return jax.lax.fori_loop(start, start + steps, step, jnp.pad(prompt, ((0, 0), (0, steps))))


def _dense(features: int, stddev: float = 0.02, **options: Any) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.normal(stddev), **options)
