import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import modelzip_jax as mz
from modelzip_jax.errors import LeafError

RNG = np.random.default_rng(0)
HALF = mz.prune(sparsity=0.5)
BOTH = mz.chain(HALF, mz.quantize(4, learned=True))


def tree():
    return {
        "a": {"kernel": jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32), "bias": jnp.ones(5)},
        "b": [jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32), (jnp.float32(2.0),)],
    }


def noise(params, step):
    keys = jax.random.split(jax.random.key(step), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda x, k: jax.random.normal(k, x.shape, x.dtype), params, keys)


def train(tx, params, steps=5, state=None):
    state = tx.init(params) if state is None else state

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        params, state = step(params, state, noise(params, index))
    return params, state


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def on_the_grid(params, state):
    """Params are decoded weights within one ulp of the larger; zeros are exact."""
    exact = mz.params(state, params)
    assert jax.tree.structure(exact) == jax.tree.structure(params)
    for p, n in zip(jax.tree.leaves(params), jax.tree.leaves(exact), strict=True):
        p, n = np.asarray(p, np.float32), np.asarray(n, np.float32)
        assert np.all(p[n == 0] == 0)
        assert np.all(np.abs(p - n) <= 4 * np.spacing(np.maximum(np.abs(p), np.abs(n))))


def test_identity_is_plain_optax_bit_for_bit():
    params = tree()
    _, state = train(mz.wrap(optax.adamw(0.1), mz.identity()), params)
    equal(mz.params(state, params), train(optax.adamw(0.1), params)[0])


def test_fixed_masks_train_as_masked_gradients_do():
    t = mz.only(("a/kernel", "b/0"), HALF)
    params, state = mz.start(mz.wrap(optax.adam(0.1), t), tree())
    masks = jax.tree.map(lambda x: (x != 0).astype(x.dtype), params)
    masked = optax.chain(optax.stateless(lambda g, _: jax.tree.map(jnp.multiply, g, masks)), optax.adam(0.1))
    got, state = train(mz.wrap(optax.adam(0.1), t), params, 5, state)
    expected, _ = train(masked, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_unselected_leaves_train_as_if_unwrapped():
    params = tree()
    got, _ = train(mz.wrap(optax.adamw(0.1), mz.only("a/kernel", BOTH)), params)
    plain, _ = train(optax.adamw(0.1), params)
    equal((got["a"]["bias"], got["b"]), (plain["a"]["bias"], plain["b"]))


def test_start_leaves_keys_and_integers_as_they_are():
    params = {"w": jnp.arange(4.0), "key": jax.random.key(0), "n": np.arange(3, dtype=np.int8)}
    tx = mz.wrap(optax.identity(), mz.only("w", mz.prune(sparsity=0.5)))
    started, _ = mz.start(tx, params)
    assert started["key"] is params["key"]
    assert started["n"] is params["n"]
    np.testing.assert_array_equal(started["w"], [0.0, 0.0, 2.0, 3.0])


def test_params_stay_on_decoded_weights():
    t = mz.chain(mz.prune(sparsity=mz.schedules.cubic(0.8, 2, 40), every=3), mz.quantize(4, learned=True))
    tx = mz.wrap(optax.adam(0.05), mz.only(("a/kernel", "b/0"), t))
    params, state = mz.start(tx, tree())
    equal(params, mz.params(state, params))
    step = jax.jit(lambda p, s, g: (lambda u: (optax.apply_updates(p, u[0]), u[1]))(tx.update(g, s, p)))
    for index in range(50):
        before = params
        params, state = step(params, state, noise(params, index))
        exact = mz.params(state, params)
        for old, p, n in zip(*map(jax.tree.leaves, (before, params, exact)), strict=True):
            old, p, n = map(np.asarray, (old, p, n))
            assert np.all(p[n == 0] == 0)
            assert np.all(np.abs(p - n) <= np.spacing(np.maximum(np.abs(old), np.abs(n))))
    assert int(jnp.sum(params["b"][0] == 0)) >= 24


def test_params_and_state_can_be_donated():
    tx = mz.wrap(optax.adam(0.1), mz.only("a/*", BOTH))
    params, state = mz.start(tx, tree())
    expected, _ = train(tx, params, 3, state)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for index in range(3):
        old = params
        params, state = step(params, state, noise(params, index))
        assert old["a"]["kernel"].is_deleted()
    equal(params, expected)


def mask(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


INNERS = {
    "adamw with a mask": lambda p: optax.adamw(0.01, mask=mask(p)),
    "lamb": lambda p: optax.lamb(0.01),
    "partition": lambda p: optax.partition({True: optax.adam(0.01), False: optax.set_to_zero()}, mask(p)),
    "inject_hyperparams": lambda p: optax.inject_hyperparams(optax.adamw)(learning_rate=0.01),
    "clipped": lambda p: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    "schedule": lambda p: optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
}


@pytest.mark.parametrize("name", INNERS)
def test_inner_optimizers(name):
    params = tree()
    tx = mz.wrap(INNERS[name](params), mz.only(("a/kernel", "b/0"), BOTH))
    got, state = train(tx, *mz.start(tx, params)[:1], steps=3)
    on_the_grid(got, state)
    if name == "partition":
        equal(got["a"]["bias"], params["a"]["bias"])
        assert np.any(got["a"]["kernel"] != mz.decoded(params, mz.only("a/kernel", BOTH))["a"]["kernel"])


OUTERS = {
    "alone": lambda tx: tx,
    "after clipping": lambda tx: optax.chain(optax.clip(1.0), tx),
    "in MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "in apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "in nested chains": lambda tx: optax.chain(optax.chain(optax.clip(1.0), optax.chain(tx))),
}


@pytest.mark.parametrize("name", OUTERS)
def test_outer_wrappers(name):
    t = mz.only("a/*", HALF)
    tx = OUTERS[name](mz.wrap(optax.sgd(0.1), t))
    params, state = mz.start(tx, tree())
    params, state = train(tx, params, 4, state)
    on_the_grid(params, state)
    equal(mz.unpack(mz.pack(state, params)), mz.params(state, params))
    assert mz.metrics(state)["sparsity"] == pytest.approx(18 / 35, abs=1e-6)


def test_wrap_before_a_transformation_is_refused():
    tx = optax.chain(mz.wrap(optax.sgd(0.1), HALF), optax.scale(0.5))
    params = tree()
    state = tx.init(params)
    for call in (
        lambda: mz.start(tx, params),
        lambda: mz.params(state, params),
        lambda: mz.pack(state, params),
        lambda: mz.metrics(state),
        lambda: mz.params(optax.MultiSteps(tx, 2).init(params), params),
    ):
        with pytest.raises(mz.errors.WrapError, match="put it last"):
            call()


def test_states_without_wrap_are_refused():
    with pytest.raises(mz.errors.WrapError, match=r"holds none made by mz\.wrap"):
        mz.metrics(optax.adam(0.1).init(tree()))
    with pytest.raises(mz.errors.TransformError, match=r"wrap\(\) takes a transform .* not 'prune'"):
        mz.wrap(optax.adam(0.1), "prune")
    with pytest.raises(mz.errors.WrapError, match="takes the optimizer first"):
        mz.wrap(HALF, optax.adam(0.1))
    tx = mz.wrap(optax.sgd(0.1), HALF)
    with pytest.raises(mz.errors.TransformError, match=r"pack\(\) takes the optimizer state"):
        mz.pack(HALF, tx.init(tree()))


def test_wrong_calls_are_refused():
    params = tree()
    tx = mz.wrap(optax.sgd(0.1), HALF)
    state = tx.init(params)
    with pytest.raises(mz.errors.WrapError, match="needs the params"):
        tx.update(params, state)
    with pytest.raises(mz.errors.TreeError, match="gradients do not have the structure"):
        tx.update(params["a"], state, params)
    with pytest.raises(mz.errors.LeafError, match="leaf 'f' is a function"):
        tx.init({"f": lambda x: x, "w": jnp.ones(2)})


def test_half_precision_params_have_latents_that_move():
    params = {"w": jnp.full((4,), 0.5, jnp.bfloat16)}
    tx = mz.wrap(optax.sgd(1e-4), mz.prune(sparsity=0.0))
    state = tx.init(params)
    grads = {"w": jnp.ones(4, jnp.bfloat16)}

    @jax.jit
    def many(params, state):
        def body(_, carry):
            updates, state = tx.update(grads, carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        return jax.lax.fori_loop(0, 1000, body, (params, state))

    params, state = many(params, state)
    assert params["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(params["w"], np.float32), 0.4, atol=2e-3)
    equal(params, mz.params(state, params))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gradients_land_zeros_exactly(dtype):
    """Updates of the gradients' dtype would miss the zeros of float32 params."""
    t = mz.prune(sparsity=lambda step: jnp.where(step < 1, 0.0, 0.5), every=1)
    params, state = mz.start(mz.wrap(optax.sgd(0.1), t), tree())
    updates, state = mz.wrap(optax.sgd(0.1), t).update(
        jax.tree.map(lambda x: jnp.ones(x.shape, dtype), params), state, params
    )
    assert all(u.dtype == p.dtype for u, p in zip(*map(jax.tree.leaves, (updates, params)), strict=True))
    landed = optax.apply_updates(params, updates)
    on_the_grid(landed, state)
    assert jnp.sum(landed["a"]["kernel"] == 0) == 15


def test_offsets_are_trained_by_their_own_optimizer():
    t = mz.quantize(2, learned=True)
    for offsets_tx, moves in ((optax.sgd(0.1), True), (optax.set_to_zero(), False)):
        _, state = train(mz.wrap(optax.sgd(0.1), t, offsets_tx=offsets_tx), tree(), 2)
        assert np.any(np.asarray(state.offsets["a"]["kernel"].step) != 0) == moves


def test_metrics_under_jit():
    tx = mz.wrap(optax.sgd(0.1), mz.only("a/kernel", mz.chain(HALF, mz.quantize(4))))
    _, state = mz.start(tx, tree())
    found = jax.jit(mz.metrics)(state)
    assert set(found) == {"bits_per_weight", "sparsity", "mask_churn"}
    assert float(found["sparsity"]) == pytest.approx(0.5, abs=1e-6)
    assert 1.0 < float(found["bits_per_weight"]) < 12.0


def test_training_goes_on_from_a_packed_model():
    t = mz.only(("a/kernel", "b/0"), BOTH)
    tx = mz.wrap(optax.sgd(0.05), t, offsets_tx=optax.sgd(0.05))
    params, state = train(tx, mz.start(tx, tree())[0], 4)
    packed = mz.pack(state, params)
    assert packed.step == 4
    tx = mz.wrap(optax.sgd(0.05), packed, offsets_tx=optax.sgd(0.05))
    again, resumed = mz.start(tx, mz.unpack(packed))
    equal(again, mz.params(state, params))
    assert int(mz.loop.wrap_states(resumed)[0].step) == 4
    assert mz.loop.wrap_states(resumed)[0].transform.value == t
    zeros = np.asarray(again["a"]["kernel"]) == 0
    again, resumed = train(tx, again, 3, resumed)
    on_the_grid(again, resumed)
    assert int(mz.loop.wrap_states(resumed)[0].step) == 7
    assert np.all(np.asarray(again["a"]["kernel"])[zeros & _masked(packed)] == 0)
    assert mz.metrics(resumed)["sparsity"] == mz.metrics(state)["sparsity"]


def _masked(packed):
    return ~np.asarray(packed.params["a"]["kernel"].positions())


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))


X = jnp.asarray(RNG.normal(size=(32, 4)), jnp.float32)
Y = X[:, :2] * 2.0


def falls(losses, params, state):
    on_the_grid(params, state)
    assert losses[-1] < 0.7 * losses[0]
    assert mz.metrics(state)["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_linen_in_a_train_state():
    model = Net()
    params = model.init(jax.random.key(2), X)["params"]
    tx = mz.wrap(optax.adam(0.05), mz.only("**/kernel", HALF))
    params, opt_state = mz.start(tx, params)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx).replace(opt_state=opt_state)

    @jax.jit
    def step(state):
        loss = lambda p: jnp.mean((state.apply_fn({"params": p}, X) - Y) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    losses = []
    for _ in range(40):
        state, value = step(state)
        losses.append(float(value))
    falls(losses, state.params, state.opt_state)


def test_nnx_optimizer():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    model = Model(nnx.Rngs(0))
    tx = mz.wrap(optax.adam(0.05), mz.only("**/kernel", HALF))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(40)]
    params = nnx.state(model, nnx.Param)
    falls(losses, params, optimizer.opt_state)
    packed = mz.pack(optimizer.opt_state, params)
    assert packed.step == 40
    equal(mz.unpack(packed), mz.tree.plain(mz.params(optimizer.opt_state, params)))


def test_equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_array)
    tx = mz.wrap(optax.adam(0.05), mz.only("**/weight", HALF))
    params, state = mz.start(tx, params)

    @jax.jit
    def step(params, state):
        loss = lambda p: jnp.mean((jax.vmap(eqx.combine(p, rest))(X) - Y) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(params, updates), state, value

    losses = []
    for _ in range(40):
        params, state, value = step(params, state)
        losses.append(float(value))
    falls(losses, params, state)
    with pytest.raises(mz.errors.LeafError, match=r"eqx\.filter"):
        mz.compress(model, HALF)


def test_leaves_that_jax_would_narrow_are_packed_whole():
    params = {"w": jnp.arange(1.0, 5.0), "ids": np.arange(3) + 2**40}
    t = mz.only("w", HALF)
    packed = mz.pack(mz.wrap(optax.sgd(0.1), t).init(params), params)
    np.testing.assert_array_equal(mz.unpack(packed)["ids"], params["ids"])
    assert packed.dense_bytes == 16 + 24


def test_wrap_refuses_integer_leaves_by_name():
    params = {"steps": jnp.arange(3), "w": jnp.ones(3)}
    with pytest.raises(LeafError, match=r"wrap.*'steps'"):
        mz.wrap(optax.sgd(0.1), mz.identity()).init(params)


def test_training_goes_on_with_the_biases_of_the_file_or_says_so():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)}
    tx = mz.wrap(optax.sgd(0.1), mz.only("kernel", mz.quantize(4)))
    now, state = mz.start(tx, params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, now), state, now)
    packed = mz.pack(state, optax.apply_updates(now, updates))
    again = mz.wrap(optax.sgd(0.1), packed)
    with pytest.raises(mz.errors.TreeError, match=r"'bias'.*mz\.unpack\(packed\)"):
        mz.start(again, params)
    resumed, _ = mz.start(again, mz.unpack(packed))
    np.testing.assert_array_equal(resumed["bias"], mz.unpack(packed)["bias"])
