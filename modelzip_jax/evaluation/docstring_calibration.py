"""What calibrates MiniLM-L6-v2 without any data of the user's: docstrings of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from modelzip_jax.errors import CheckpointError
from modelzip_jax.evaluation import retrieval
from modelzip_jax.models import sentence_encoder
from modelzip_jax.models.token_batches import LENGTHS, unpadded_batches
from modelzip_jax.tree import PyTree

__all__ = ["encoder_of", "minilm_calibration"]


def minilm_calibration(count: int = 512) -> tuple[Callable[..., Any], list[tuple[np.ndarray, np.ndarray]]]:
    """`(apply_fn, batches)` for `mz.compress(calibrate=)`, of embeddings of docstrings.

    The function takes params of `SentenceEncoder`, or those of a Hugging Face `BertModel` as its checkpoint has them,
    whose linear weights are (out, in). Only embeddings are looked at, so what they do not depend on (the pooler) is
    encoded as without data.

    Args:
      count: about how many docstrings; half of them first sentences, half the rest.

    Raises:
      MissingExtraError: MiniLM's package or `tokenizers` is not installed.
    """
    model, _, tokenizer = sentence_encoder.load_minilm()
    pairs = retrieval.thin(retrieval.docstring_pairs(), count // 2)
    texts = [pair.query for pair in pairs] + [pair.document for pair in pairs]
    return encoder_of(model), unpadded_batches(sentence_encoder.tokenize(tokenizer, texts, LENGTHS[-1]))


def encoder_of(model: sentence_encoder.SentenceEncoder) -> Callable[..., Any]:
    """`(params, ids, mask) -> embeddings`, of our params or of Hugging Face's.

    Raises:
      CheckpointError: when called with params of neither.
    """

    def apply(params: PyTree, ids: Any, mask: Any) -> Any:
        return model.apply({"params": _ours(params, model.config)}, ids, mask)

    return apply


def _ours(params: Mapping[str, Any], config: sentence_encoder.SentenceEncoderConfig) -> PyTree:
    found = traverse_util.flatten_dict(dict(params), sep=".")
    names = list(sentence_encoder.tensor_names(config))
    if all(".".join(path) in found for _, path, _ in names):
        return params
    absent = [name for name, _, _ in names if name not in found]
    if absent:
        raise CheckpointError(
            f"these are not the weights of a MiniLM-L6 encoder: {len(absent)} of its tensors are missing, such as "
            f"{absent[0]!r}; --calibrate my_module:my_function runs any other model"
        )
    ours = {
        path: jnp.asarray(found[name]).T if turned and np.ndim(found[name]) == 2 else jnp.asarray(found[name])
        for name, path, turned in names
    }
    return traverse_util.unflatten_dict(ours)
