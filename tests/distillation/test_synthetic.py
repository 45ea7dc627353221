"""Gradient matching: its distance by the formula, and data that teach more than as many real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax import distillation
from modelzip_jax.errors import DistillationError
from modelzip_jax.training.data import load_split, subset

RNG = np.random.default_rng(0)


def distance(a, b):
    """The paper's D in float64, output by output."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        for i in range(x.shape[-1]):
            u, v = x[..., i].ravel(), y[..., i].ravel()
            total += 1.0 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
    return total


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": jax.random.normal(first, (64, 48)) / 8.0,
        "bias": jnp.zeros(48),
        "out": jax.random.normal(second, (48, 10)) / 7.0,
    }


def apply(params, x):
    return jax.nn.relu(x @ params["hidden"] + params["bias"]) @ params["out"]


@pytest.fixture(scope="module")
def digits():
    arrays = {split: load_split("digits", split) for split in ("train", "test")}
    standard = lambda x: (x.reshape(len(x), -1).astype(np.float32) - 4.9) / 6.0  # noqa: E731
    return {split: (standard(a["inputs"]), a["labels"]) for split, a in arrays.items()}


def accuracy(inputs, labels, test):
    """Of a network trained on these examples to the end."""

    @jax.jit
    def trained(inputs, labels):
        params = init(jax.random.key(99))
        tx = optax.adam(3e-3)
        loss = lambda p: jnp.mean(  # noqa: E731
            optax.softmax_cross_entropy_with_integer_labels(apply(p, inputs), labels)
        )

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=300)[0][0]

    return float(np.mean(np.argmax(apply(trained(inputs, labels), test[0]), -1) == test[1]))


def test_synthetic_examples_teach_more_than_as_many_real_ones(digits):
    inputs, labels = digits["train"]
    found = jax.tree.map(
        np.asarray,
        distillation.condense(
            jax.random.key(0), init, apply, inputs, labels, networks=150, steps=2, batch_size=64,
            network_tx=optax.sgd(0.1),
        ),
    )  # fmt: skip
    assert found.inputs.shape == (10, 64)
    assert found.labels.tolist() == list(range(10))
    assert found.distances[-20:].mean() < 0.95 * found.distances[:3].mean()
    of_synthetic = accuracy(found.inputs, found.labels, digits["test"])
    of_real = []
    for seed in range(5):
        drawn = subset({"inputs": inputs, "labels": labels}, 10, seed=seed)
        of_real.append(accuracy(drawn["inputs"], drawn["labels"], digits["test"]))
    assert of_synthetic > max(of_real) + 0.1


def test_a_seed_gives_one_set(digits):
    inputs, labels = digits["train"]
    make = lambda key: distillation.condense(  # noqa: E731
        key, init, apply, inputs, labels, per_class=2, networks=2, network_steps=0, batch_size=8
    )
    first, second, other = (make(jax.random.key(k)) for k in (0, 0, 1))
    assert first.labels.tolist() == np.repeat(range(10), 2).tolist()
    np.testing.assert_array_equal(first.inputs, second.inputs)
    assert not np.array_equal(first.inputs, other.inputs)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_distance_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    shapes = [(4, 3), (3, 3, 2, 5)]
    a, b = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    narrow = lambda tree: [jnp.asarray(x, jnp.float32) for x in tree]  # noqa: E731
    found, slope = jax.value_and_grad(distillation.gradient_distance)(narrow(a), narrow(b))
    np.testing.assert_allclose(found, distance(a, b), rtol=1e-4, atol=1e-4)
    direction = [rng.normal(size=shape) for shape in shapes]
    moved = [[x + s * 1e-5 * d for x, d in zip(a, direction, strict=True)] for s in (1.0, -1.0)]
    numeric = (distance(moved[0], b) - distance(moved[1], b)) / 2e-5
    along = sum(float(np.sum(np.asarray(g, np.float64) * d)) for g, d in zip(slope, direction, strict=True))
    np.testing.assert_allclose(along, numeric, rtol=1e-3, atol=1e-3)
    scaled = distillation.gradient_distance(narrow([1e3 * x for x in a]), narrow(b))
    np.testing.assert_allclose(scaled, found, rtol=1e-4, atol=1e-4)


def test_the_distance_of_no_gradient_is_finite():
    zero, some = {"w": jnp.zeros((3, 2))}, {"w": jnp.ones((3, 2), jnp.bfloat16)}
    for a, b in ((zero, some), (some, zero), (zero, zero)):
        value, slope = jax.value_and_grad(distillation.gradient_distance)(a, b)
        assert float(value) == 2.0
        assert np.isfinite(np.asarray(slope["w"], np.float32)).all()
    assert abs(float(distillation.gradient_distance(some, some))) < 1e-5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x, y: condensed(x.astype(int), y), "standardised"),
        (lambda x, y: condensed(x, y[:-1]), r"\(20,\).*\(19,\)"),
        (lambda x, y: condensed(x, y + 0.5), "float"),
        (lambda x, y: condensed(x, 2 * y), "class 1 has no examples"),
        (lambda x, y: condensed(x, y, per_class=0), "per_class must be an integer of at least 1, not 0"),
        (lambda x, y: condensed(x, y, network_steps=-1), "network_steps must be an integer"),
        (lambda x, y: distillation.gradient_distance({"w": x}, {"w": x.T}), "same shapes"),
        (lambda x, y: distillation.gradient_distance({"b": x[0]}, {"b": x[0]}), "two axes"),
    ],
)
def test_bad_calls_are_named(call, match):
    with pytest.raises(DistillationError, match=match):
        call(jnp.ones((20, 64)), np.arange(20) % 10)


def condensed(inputs, labels, **options):
    return distillation.condense(jax.random.key(0), init, apply, inputs, labels, **options)
