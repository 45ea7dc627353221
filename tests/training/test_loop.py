import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax.errors import NonFiniteError
from modelzip_jax.training import frameworks, objectives
from modelzip_jax.training import train_loop as loop
from modelzip_jax.training.data import Batches
from modelzip_jax.training.state import begin

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 5))
LABELS = RNG.integers(0, 3, 96).astype(np.int32)
ARRAYS = {"inputs": (CENTRES[LABELS] + 0.3 * RNG.normal(size=(96, 5))).astype(np.float32), "labels": LABELS}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.1, deterministic=not train)(nn.relu(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, x):
        return self.layers[0](self.drop(nnx.relu(self.norm(self.first(x)))))


NETWORKS = {"linen": frameworks.from_linen(Linen()), "nnx": frameworks.from_nnx(lambda rngs: Nnx(rngs))}
# Not Adam, which blows up the rounding errors that are the gradient of a bias before batch norm.
SGD = optax.sgd(0.1, momentum=0.9)
INT4 = mz.only("**/kernel", mz.quantize(bits=4))


def plain(batch, key):
    return batch


def parts(framework="linen", tx=None, seed=0):
    network = NETWORKS[framework]
    params, variables = network.init(jax.random.key(seed), jnp.asarray(ARRAYS["inputs"][:1]))
    tx = tx or SGD
    step = loop.make_step(network, objectives.softmax_cross_entropy(), tx, plain)
    return step, begin(params, variables, tx.init(params), jax.random.key(seed))


def losses(record):
    return [r["loss"] for r in record if "loss" in r]


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_it_learns_and_batch_statistics_move(framework):
    step, state = parts(framework)
    before = jax.tree.map(np.asarray, state.variables)
    records = []
    cadence = loop.Cadence(60, block=5, record=20)
    state = loop.train_until(
        state,
        loop.make_block(step),
        ARRAYS,
        Batches(ARRAYS, 32),
        cadence,
        loop.Run(record=records.append),
    )
    assert int(state.step) == 60
    assert [r["step"] for r in records] == [20, 40, 60]
    assert losses(records)[-1] < 0.5 * losses(records)[0]
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state.variables)
    assert all(jax.tree.leaves(changed))
    assert jax.tree.leaves(changed)


@pytest.mark.parametrize("block", [1, 3, 7, 40])
def test_a_run_is_the_same_in_any_blocks(block):
    def train(block):
        step, state = parts()
        return loop.train_until(
            state, loop.make_block(step), ARRAYS, Batches(ARRAYS, 32), loop.Cadence(21, block)
        )

    ours, reference = train(block), train(21)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(reference.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_it_is_the_loop_one_would_write_by_hand():
    network, tx = NETWORKS["linen"], SGD
    step, state = parts()
    params, variables, opt_state, key = jax.tree.map(
        jnp.array, (state.params, state.variables, state.opt_state, state.key)
    )
    batches = Batches(ARRAYS, 32)
    for index in range(5):
        batch = next(batches)
        dropout = jax.random.split(jax.random.fold_in(key, index))[1]

        def loss_of(params, variables=variables, batch=batch, dropout=dropout):
            logits, new = network.apply(params, variables, batch["inputs"], True, dropout)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean(), new

        grads, variables = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    state = loop.train_until(state, loop.make_block(step), ARRAYS, Batches(ARRAYS, 32), loop.Cadence(5))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_it_takes_ready_batches_too():
    class Stream:
        def __init__(self):
            self.batches = Batches(ARRAYS, 32)

        def take(self, count):
            found = [next(self.batches) for _ in range(count)]
            return jax.tree.map(lambda *x: np.stack(x), *found)

        def get_state(self):
            return self.batches.get_state()

    step, state = parts()
    ours = loop.train_until(state, loop.make_block(step), None, Stream(), loop.Cadence(6, 2))
    step, state = parts()
    reference = loop.train_until(
        state, loop.make_block(step), ARRAYS, Batches(ARRAYS, 32), loop.Cadence(6, 2)
    )
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(reference.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_compression_comes_in_through_the_optimizer_alone():
    tx = mz.wrap(optax.adam(1e-2), INT4)
    network = NETWORKS["linen"]
    params, variables = network.init(jax.random.key(0), jnp.asarray(ARRAYS["inputs"][:1]))
    params, opt_state = mz.start(tx, params)
    step = loop.make_step(network, objectives.softmax_cross_entropy(), tx, plain)
    state = begin(params, variables, opt_state, jax.random.key(0))
    traced = chex.assert_max_traces(step, 1)
    state = loop.train_until(state, loop.make_block(traced), ARRAYS, Batches(ARRAYS, 32), loop.Cadence(24, 6))
    chex.clear_trace_counter()
    packed = mz.pack(state.opt_state, state.params)
    exact = mz.params(state.opt_state, state.params)
    jax.tree.map(np.testing.assert_array_equal, mz.unpack(packed), exact)


def test_stopping_early_and_what_is_saved():
    step, state = parts()
    seen, saved = [], []

    def save(state, position, numbers):
        saved.append((int(state.step), position["batches"]["position"], numbers))

    run = loop.Run(
        evaluate=lambda state: {"validation_loss": float(state.step)},
        stop=lambda numbers: numbers["validation_loss"] >= 20,
        save=save, record=seen.append,
    )  # fmt: skip
    cadence = loop.Cadence(100, block=2, record=0, evaluate=10, save=4)
    state = loop.train_until(state, loop.make_block(step), ARRAYS, Batches(ARRAYS, 32), cadence, run)
    assert int(state.step) == 20
    assert [s for s, _, _ in saved] == [4, 8, 12, 16, 20]
    assert all(s == p for s, p, _ in saved)
    # Only the state that was evaluated carries numbers: a stale one would be ranked as the best.
    assert [bool(numbers) for _, _, numbers in saved] == [False, False, False, False, True]


def test_divergence_is_an_error():
    step, state = parts(tx=optax.sgd(1e38))
    with pytest.raises(NonFiniteError, match="diverged"):
        loop.train_until(
            state,
            loop.make_block(step),
            ARRAYS,
            Batches(ARRAYS, 32),
            loop.Cadence(10, 5, record=5),
        )


def test_evaluation_mode_uses_running_statistics_and_no_dropout():
    for network in NETWORKS.values():
        params, variables = network.init(jax.random.key(0), jnp.asarray(ARRAYS["inputs"][:1]))
        first = network.predict(params, variables, ARRAYS["inputs"][:4])
        np.testing.assert_allclose(
            first[:2], network.predict(params, variables, ARRAYS["inputs"][:2]), rtol=1e-6
        )
        train, _ = network.apply(params, variables, ARRAYS["inputs"], True, jax.random.key(1))
        other, _ = network.apply(params, variables, ARRAYS["inputs"], True, jax.random.key(2))
        assert np.any(train[:4] != first)
        assert np.any(train != other)


def test_nnx_parameters_are_plain_dicts_with_the_usual_paths():
    params, variables = NETWORKS["nnx"].init(jax.random.key(0), jnp.ones((1, 5)))
    names = [name for name, _ in mz.tree.named_leaves(params)]
    assert names == [
        "first/bias",
        "first/kernel",
        "layers/0/bias",
        "layers/0/kernel",
        "norm/bias",
        "norm/scale",
    ]
    assert [name for name, _ in mz.tree.named_leaves(variables)] == ["norm/mean", "norm/var"]


def test_label_smoothing_and_token_logits():
    logits = jnp.asarray(RNG.normal(size=(4, 6, 3)), jnp.float32)
    labels = RNG.integers(0, 3, (4, 6))
    for smoothing in (0.0, 0.1):
        loss, metrics = objectives.softmax_cross_entropy(smoothing)(logits, {"labels": labels})
        targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
        logp = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
        np.testing.assert_allclose(loss, -(targets * logp).sum(-1).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["accuracy"], (np.argmax(logits, -1) == labels).mean(), rtol=1e-6)
