"""What may stand around mz.wrap, and what is refused."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_transform import TRANSFORMS
from flax import nnx

import modelzip_jax as mz
from modelzip_jax.errors import WrapError

PARAMS = {
    "a": {"kernel": jnp.arange(1.0, 9.0).reshape(4, 2), "bias": jnp.ones(2)},
    "b": {"kernel": -jnp.arange(1.0, 7.0).reshape(2, 3), "scale": jnp.ones(3)},
}
PRUNE, QUANTIZE = mz.prune(sparsity=0.5), mz.quantize(4, learned=True)


def adam(transform):
    return mz.wrap(optax.adam(1e-2), transform)


KERNELS = {"a": {"kernel": "k", "bias": "o"}, "b": {"kernel": "k", "scale": "o"}}
LAYERS = {"a": {"kernel": "a", "bias": "o"}, "b": {"kernel": "b", "scale": "o"}}
WHOLE = {"a": True, "b": False}
AROUND = {
    "alone": lambda: adam(mz.only("**/kernel", PRUNE)),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), adam(mz.only("**/kernel", PRUNE))),
    "named_chain": lambda: optax.named_chain(
        ("clip", optax.clip(1.0)), ("zip", adam(mz.only("**/kernel", PRUNE)))
    ),
    "partition": lambda: optax.partition({"k": adam(PRUNE), "o": optax.sgd(0.1)}, KERNELS),
    "partition, frozen": lambda: optax.partition({"k": adam(QUANTIZE), "o": optax.set_to_zero()}, KERNELS),
    "two wraps": lambda: optax.partition(
        {"a": adam(PRUNE), "b": adam(QUANTIZE), "o": optax.sgd(0.1)}, LAYERS
    ),
    "masked": lambda: optax.masked(adam(mz.only("**/kernel", QUANTIZE)), WHOLE),
    "selective_transform": lambda: optax.selective_transform(
        adam(mz.only("**/kernel", PRUNE)), freeze_mask={"a": {"kernel": False, "bias": True}, "b": WHOLE["a"]}
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(adam(mz.only("**/kernel", PRUNE)), 3),
    "MultiSteps": lambda: optax.MultiSteps(adam(mz.only("**/kernel", PRUNE)), 2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda rate: mz.wrap(optax.adam(rate), mz.only("**/kernel", PRUNE))
    )(rate=1e-2),
}


def train(tx, params, steps=4):
    params, state = mz.start(tx, params)
    step = jax.jit(tx.update)
    for index in range(steps):
        grads = jax.tree.map(lambda x, i=index: jnp.sin(x + i), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", AROUND)
def test_containers(name, tmp_path):
    params, state = train(AROUND[name](), PARAMS)
    exact = mz.params(state, params)
    assert jax.tree.structure(exact) == jax.tree.structure(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), params, exact)
    packed = mz.pack(state, params)
    jax.tree.map(np.testing.assert_array_equal, mz.unpack(packed), exact)
    mz.save(tmp_path / "m.mz", packed)
    jax.tree.map(np.testing.assert_array_equal, mz.unpack(mz.load(tmp_path / "m.mz", like=params)), exact)
    assert all(np.isfinite(x) for x in mz.metrics(state).values())


@pytest.mark.parametrize("name", AROUND)
def test_what_was_packed_resumes_by_its_own_recipe(name):
    params, state = train(AROUND[name](), PARAMS)
    packed = mz.pack(state, params)
    tx = mz.wrap(optax.sgd(0.0), packed)
    again, resumed = mz.start(tx, mz.unpack(packed))
    jax.tree.map(np.testing.assert_array_equal, again, mz.params(state, params))
    assert int(mz.loop.wrap_states(resumed)[0].step) == packed.step


def test_each_of_two_wraps_resumes_its_own_leaves():
    params, state = train(AROUND["two wraps"](), PARAMS)
    packed = mz.pack(state, params)

    def again(transform):
        return mz.wrap(optax.adam(1e-2), transform, resume=packed)

    tx = optax.partition({"a": again(PRUNE), "b": again(QUANTIZE), "o": optax.sgd(0.1)}, LAYERS)
    resumed, _ = mz.start(tx, mz.unpack(packed))
    jax.tree.map(np.testing.assert_array_equal, resumed, mz.params(state, params))


REFUSED = {
    "chain": lambda w: optax.chain(w, optax.scale(0.5)),
    "chain of chains": lambda w: optax.chain(optax.chain(optax.clip(1.0), w), optax.scale(0.5)),
    "named_chain": lambda w: optax.named_chain(("zip", w), ("slow", optax.scale(0.5))),
    "schedule_free": lambda w: optax.contrib.schedule_free(w, 0.1),
    "mechanize": lambda w: optax.contrib.mechanize(w),
    "sam": lambda w: optax.contrib.sam(w, optax.sgd(0.1)),
    "conditionally_transform": lambda w: optax.conditionally_transform(w, lambda step: step > 2),
    "conditionally_mask": lambda w: optax.conditionally_mask(w, lambda step: step > 2),
    "our average": lambda w: mz.loop.with_average(w, 0.9),
    "partition, then scale": lambda w: optax.chain(
        optax.partition({"k": w, "o": optax.sgd(0.1)}, KERNELS), optax.scale(0.5)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("reader", ["start", "params", "pack", "metrics"])
def test_what_changes_updates_afterwards_is_refused(name, reader):
    tx = REFUSED[name](adam(PRUNE))
    if reader == "start":
        with pytest.raises(WrapError, match=r"mz\.wrap"):
            mz.start(tx, PARAMS)
        return
    state = tx.init(PARAMS)
    call = {"params": mz.params, "pack": mz.pack, "metrics": lambda s, _: mz.metrics(s)}[reader]
    with pytest.raises(WrapError, match=r"mz\.wrap"):
        call(state, PARAMS)


def test_a_state_without_wrap_is_refused():
    with pytest.raises(WrapError, match="none made by"):
        mz.pack(optax.adam(1e-3).init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("inner", "average"),
    [
        (optax.contrib.schedule_free_sgd(0.1), optax.contrib.schedule_free_eval_params),
        (optax.contrib.schedule_free(optax.sgd(0.1), 0.1), optax.contrib.schedule_free_eval_params),
        (mz.loop.with_average(optax.sgd(0.1), 0.9), None),
    ],
    ids=["schedule_free_sgd", "schedule_free", "with_average"],
)
@pytest.mark.parametrize(
    "transform", [PRUNE, QUANTIZE, mz.cluster(4, every=1)], ids=["prune", "quantize", "cluster"]
)
def test_averages_inside_decode_and_pack(inner, average, transform):
    tx = mz.wrap(inner, mz.only("**/kernel", transform))
    params, state = train(tx, PARAMS)
    averaged, adopted = mz.averaged(state, params, average)
    assert not np.array_equal(averaged["a"]["bias"], params["a"]["bias"])
    packed = mz.unpack(mz.pack(adopted, averaged))
    jax.tree.map(np.testing.assert_array_equal, packed, averaged)
    # The averaged latents, decoded: on the grid, which an average of decoded weights would not be.
    wrapped = mz.loop.wrap_states(adopted)[0]
    for layer in ("a", "b"):
        np.testing.assert_array_equal(averaged[layer]["kernel"], wrapped.decoded()[layer]["kernel"])


def test_ordered_states_survive_jit():
    tx = AROUND["named_chain"]()
    _, state = train(tx, PARAMS)
    assert isinstance(state, collections.OrderedDict)
    assert list(state) == ["clip", "zip"]


ALWAYS = ("prune, scheduled", "quantize, learned zeros", "cluster, differentiable")


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in TRANSFORMS]
)
def test_an_nnx_optimizer_holds_any_state(name):
    """It replaces every array by a variable; the second update is the first that reads them."""

    class Model(nnx.Module):
        def __init__(self):
            self.a, self.half = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.half(jnp.tanh(self.a(x)))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(jnp.eye(8)) ** 2))(model))

    model = Model()
    optimizer = nnx.Optimizer(model, adam(TRANSFORMS[name]), wrt=nnx.Param)
    for _ in range(3):
        step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    exact = mz.tree.plain(mz.params(optimizer.opt_state, params))
    jax.tree.map(np.testing.assert_array_equal, mz.unpack(mz.pack(optimizer.opt_state, params)), exact)
    assert mz.loop.wrap_states(optimizer.opt_state)[0].step == 3
