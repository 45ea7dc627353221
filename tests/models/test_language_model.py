"""The decoder-only transformer: causality, scan and remat, and sampling."""

from __future__ import annotations

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import fill

from modelzip_jax import models
from modelzip_jax.errors import ModelError
from modelzip_jax.models.language_model import LanguageModel, generate, rotary

small = functools.partial(
    LanguageModel, vocab_size=11, num_layers=2, num_heads=2, embed_dim=8, mlp_ratio=2, max_length=8
)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)


def nll(model, params, tokens=TOKENS):
    log_p = jax.nn.log_softmax(model.apply({"params": params}, tokens))
    return -jnp.take_along_axis(log_p, jnp.roll(tokens, -1, 1)[..., None], -1).mean()


def test_parameter_count_is_that_of_gpt_2():
    """124,439,808 for GPT-2 small, as published by OpenAI and Hugging Face."""
    model = LanguageModel(50257, num_layers=12, num_heads=12, embed_dim=768, max_length=1024)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 124_439_808


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_future_token_changes_no_earlier_logit(positions):
    model = small(positions=positions)
    variables, apply = fill(model, TOKENS), jax.jit(model.apply)
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = apply(variables, TOKENS), apply(variables, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_positions_matter(positions):
    """With one repeated token, only positions can tell two contexts apart."""
    model = small(positions=positions, num_layers=1)
    tokens = jnp.array([[1, 2, 3], [2, 1, 3]])
    logits = jax.jit(model.apply)(fill(model, tokens), tokens)
    assert np.abs(logits[0, 2] - logits[1, 2]).max() > 1e-3


def test_scan_and_remat_equal_the_plain_layers():
    plain, scanned = small(scan=False), small(remat=True)
    params = fill(plain, TOKENS)["params"]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block_")}
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), params["block_0"], params["block_1"])
    loss, grads = jax.jit(jax.value_and_grad(functools.partial(nll, plain)))(params)
    scan_loss, scan_grads = jax.jit(jax.value_and_grad(functools.partial(nll, scanned)))(
        {**rest, "blocks": stacked}
    )
    assert float(scan_loss) == pytest.approx(float(loss), rel=1e-6)
    blocks = scan_grads.pop("blocks")
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
        chex.assert_trees_all_close(layer, grads.pop(f"block_{i}"), atol=1e-6, rtol=1e-4)
    chex.assert_trees_all_close(scan_grads, grads, atol=1e-6, rtol=1e-4)
    assert all(np.any(g) for g in jax.tree.leaves(scan_grads))


def test_remat_recomputes():
    def saved(remat):
        model = small(remat=remat)
        grad = jax.make_jaxpr(jax.grad(functools.partial(nll, model)))(fill(model, TOKENS)["params"])
        return str(grad).count("remat")

    assert saved(False) == 0
    assert saved(True) > 0


@pytest.mark.parametrize("tied", [True, False])
def test_dtypes(tied):
    model = small(tied=tied, dtype="bfloat16", param_dtype="bfloat16")
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), TOKENS)
    assert logits.shape == (3, 6, 11)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    assert ("lm_head" in variables["params"]) is not tied


def test_initial_standard_deviations_are_those_of_gpt_2():
    model = small(embed_dim=64, num_layers=2)

    @jax.jit
    def initial(key):  # compiles only the leaves that it returns
        params = model.init(key, TOKENS)["params"]
        return params["token_embedding"]["embedding"], params["blocks"]["mlp_out"]["kernel"]

    embedding, kernels = initial(jax.random.key(0))
    assert np.std(embedding) == pytest.approx(0.02, rel=0.1)
    assert np.std(kernels) == pytest.approx(0.02 / (2 * 2) ** 0.5, rel=0.02)
    assert np.any(kernels[0] != kernels[1])


def test_rotary_products_depend_on_distance_only():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 4)).astype(np.float32)
    rotated = [rotary(jnp.broadcast_to(x, (1, 6, 1, 4)))[0, :, 0] for x in (q, k)]
    products = np.einsum("id,jd->ij", *rotated)
    for distance in range(6):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert products[0, 0] == pytest.approx(float(np.sum(q * k)), abs=1e-5)


def test_generation_is_determined_by_its_key():
    model = small()
    variables, prompt = fill(model, TOKENS), TOKENS[:, :2]
    draw = functools.partial(generate, model.apply, variables, prompt, 4)
    first = draw(jax.random.key(0))
    assert first.shape == (3, 6)
    assert first.dtype == jnp.int32
    np.testing.assert_array_equal(first[:, :2], prompt)
    np.testing.assert_array_equal(first, draw(jax.random.key(0)))
    assert np.any(first != draw(jax.random.key(1)))
    assert np.all((first >= 0) & (first < 11))


def test_temperature_zero_is_greedy_and_compiles_nothing_new():
    table, traces = jnp.asarray(np.random.default_rng(0).normal(size=(11, 11)), jnp.float32), []

    def bigram(table, tokens):
        traces.append(1)
        return table[tokens]

    generate(bigram, table, TOKENS, 3, jax.random.key(0))
    count = len(traces)
    tokens = np.asarray(generate(bigram, table, TOKENS, 3, jax.random.key(1), temperature=0.0))
    assert len(traces) == count
    np.testing.assert_array_equal(tokens[:, 6:], np.argmax(table, -1)[tokens[:, 5:-1]])


def test_draws_follow_the_logits():
    log_p = jnp.log(jnp.array([0.5, 0.3, 0.2]))

    def unigram(params, tokens):
        return jnp.broadcast_to(log_p, (*tokens.shape, 3))

    drawn = generate(unigram, None, np.zeros((20_000, 1), np.int32), 1, jax.random.key(0))[:, 1]
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, np.exp(log_p), atol=0.015)
    cold = generate(unigram, None, np.zeros((20_000, 1), np.int32), 1, jax.random.key(0), 0.5)[:, 1]
    np.testing.assert_allclose(np.bincount(cold, minlength=3) / 20_000, np.array([25, 9, 4]) / 38, atol=0.015)


@pytest.mark.parametrize(
    ("options", "tokens", "message"),
    [
        ({}, np.zeros((1, 9), np.int32), "at most 8 positions, got int32 \\(1, 9\\)"),
        ({}, np.zeros((1, 4), np.float32), "takes integer tokens"),
        ({}, np.zeros(4, np.int32), "takes integer tokens"),
        ({"num_heads": 3}, TOKENS, "embed_dim=8 does not divide among num_heads=3"),
        ({"num_heads": 8, "positions": "rope"}, TOKENS, "into even sizes, as rope needs"),
        ({"positions": "none"}, TOKENS, "'learned' or 'rope', not 'none'"),
    ],
)
def test_unusable_inputs_and_sizes_are_refused(options, tokens, message):
    with pytest.raises(ModelError, match=message):
        jax.eval_shape(small(**options).init, jax.random.key(0), tokens)


@pytest.mark.parametrize(
    ("prompt", "steps", "temperature", "message"),
    [
        (np.zeros((1, 0), np.int32), 1, 1.0, "at least 1 token"),
        (np.zeros((1, 2), np.float32), 1, 1.0, "must be integers"),
        (np.zeros((1, 2), np.int32), 0, 1.0, "steps must be at least 1"),
        (np.zeros((1, 2), np.int32), 1, -1.0, "temperature at least 0"),
        (np.zeros((1, 2), np.int32), 7, 1.0, "at most 8 positions, got int32 \\(1, 9\\)"),
    ],
)
def test_unusable_prompts_are_refused(prompt, steps, temperature, message):
    model = small()
    with pytest.raises(ModelError, match=message):
        generate(model.apply, fill(model, TOKENS), prompt, steps, jax.random.key(0), temperature)


def test_by_name():
    assert models.create("language_model", vocab_size=11) == LanguageModel(11)
