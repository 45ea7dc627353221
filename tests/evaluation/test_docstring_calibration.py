"""The model that calibrates MiniLM takes its weights under both names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import modelzip_jax as mz
from modelzip_jax.errors import CheckpointError
from modelzip_jax.evaluation.docstring_calibration import encoder_of
from modelzip_jax.models import sentence_encoder as se

CONFIG = se.SentenceEncoderConfig(60, 16, 2, 4, 32, 40)


@pytest.fixture(scope="module")
def model_and_params():
    model, ids = se.SentenceEncoder(CONFIG), jnp.ones((1, 4), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda x: jnp.array(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


def test_ours_and_hugging_faces_give_the_same(model_and_params):
    model, params = model_and_params
    theirs = traverse_util.unflatten_dict(se.to_safetensors(params), sep=".")
    theirs["pooler"] = {"dense": {"weight": np.ones((16, 16), "f4"), "bias": np.zeros(16, "f4")}}
    ids = np.arange(1, 13).reshape(2, 6)
    apply = encoder_of(model)
    expected = model.apply({"params": params}, ids, ids > 0)
    for weights in (params, theirs):
        np.testing.assert_array_equal(apply(weights, ids, ids > 0), expected)


def test_a_checkpoint_of_theirs_is_compressed_with_the_pooler_as_without_data(model_and_params):
    model, params = model_and_params
    theirs = traverse_util.unflatten_dict(se.to_safetensors(params), sep=".")
    theirs["pooler"] = {"dense": {"weight": np.eye(16, dtype="f4"), "bias": np.zeros(16, "f4")}}
    ids = np.arange(1, 49).reshape(8, 6)
    packed = mz.compress(theirs, mz.smallest(bytes=6_000), calibrate=(encoder_of(model), [(ids, ids > 0)]))
    assert mz.tree.nbytes(packed.params) < mz.tree.nbytes(theirs) / 2
    assert np.asarray(mz.unpack(packed)["pooler"]["dense"]["weight"]).shape == (16, 16)


def test_other_weights_are_refused_by_name(model_and_params):
    model, _ = model_and_params
    with pytest.raises(CheckpointError, match=r"37 of its tensors are missing, such as 'embeddings\.word"):
        encoder_of(model)({"w": np.ones(2)}, np.ones((1, 2), int), np.ones((1, 2), bool))
