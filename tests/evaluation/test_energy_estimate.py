"""Energy estimates are the sum of operations and bits times the table's constants, worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.evaluation import HOROWITZ, energy
from modelzip_jax.models.lenet import LeNet5

PARAMS = {
    "up": jax.random.normal(jax.random.key(0), (64, 128)),
    "down": jax.random.normal(jax.random.key(1), (128, 8)),
}


def model(p, x):
    return jax.nn.relu(x @ p["up"]) @ p["down"]


COSTS = trace.cost(model, PARAMS, jnp.ones((2, 64)))


def test_the_dense_model_by_hand():
    found = energy(COSTS)
    macs = 2 * 64 * 128 + 2 * 128 * 8
    assert found.products == pytest.approx(macs * (3.7 + 0.9) * 1e-12)
    assert found.elementwise == pytest.approx(2 * 128 * 0.9e-12)
    assert found.weights == pytest.approx(32 * (64 * 128 + 128 * 8) * 1300e-12 / 64)
    assert found.activations == pytest.approx(32 * 2 * (64 + 128 + 128 + 8) * 20e-12 / 64)
    assert found.total == pytest.approx(
        found.products + found.elementwise + found.weights + found.activations
    )
    assert sum(found.by_leaf.values()) == pytest.approx(found.products + found.weights)
    assert "estimated" in str(found)
    assert "Horowitz 2014" in str(found)


def test_packed_weights_move_as_many_bits_as_they_have():
    packed = mz.compress(PARAMS, mz.quantize(4, granularity="tensor"))
    dense, small = energy(COSTS), energy(COSTS, packed)
    held = sum(row.packed_bytes for row in mz.inspect(packed).tensors)
    assert small.weights == pytest.approx(8 * held * 1300e-12 / 64)
    assert small.weights < 0.13 * dense.weights
    assert small.products == dense.products
    assert energy(COSTS, mz.inspect(packed)) == small


def test_zeros_cost_nothing_where_they_are_skipped():
    packed = mz.compress(PARAMS, mz.only("up", mz.prune(sparsity=0.75)))
    dense, skipped = energy(COSTS, packed), energy(COSTS, packed, skip_zeros=True)
    spared = 2 * 64 * 128 * 0.75 * 4.6e-12
    assert dense.products - skipped.products == pytest.approx(spared)
    assert "zeros left out" in skipped.assumptions


def test_integers_and_another_table():
    found = energy(COSTS, arithmetic="int8", activation_bits=8)
    assert found.products == pytest.approx(energy(COSTS).products * 0.3 / 4.6)
    assert found.activations == pytest.approx(energy(COSTS).activations / 4)
    own = dataclasses.replace(HOROWITZ, source="mine", weight_bit=0.0, products={"float32": 1.0})
    found = energy(COSTS, table=own)
    assert found.weights == 0.0
    assert found.products == pytest.approx(18432e-12)
    assert found.assumptions.endswith("mine")
    with pytest.raises(mz.errors.EvaluationError, match="products in 'float32', not in 'int8'"):
        energy(COSTS, arithmetic="int8", table=own)


def test_of_lenet5_most_is_memory():
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(LeNet5().init, jax.random.key(0), image)["params"]
    costs = trace.cost(lambda p, x: LeNet5().apply({"params": p}, x), params, image)
    found = energy(costs)
    assert costs.flops / 2 * 4.6e-12 == pytest.approx(found.products)
    assert found.weights > 5 * (found.products + found.activations)


def test_a_model_of_other_leaves_is_refused():
    packed = mz.compress({"other": PARAMS["up"]}, mz.quantize(4))
    with pytest.raises(mz.errors.EvaluationError, match="the leaf 'down', which the model lacks"):
        energy(COSTS, packed)
