"""Any optimizer of optax in any loop: it trains, the params land on what is packed, or it is refused in words."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_optimizer import OPTIMIZERS, RATE, missing
from flax import linen, nnx

import modelzip_jax as mz
from modelzip_jax.errors import ModelzipError

X = jax.random.normal(jax.random.key(0), (32, 8))
Y = X @ (0.5 * jax.random.normal(jax.random.key(1), (8, 4)))
TRANSFORMS = {
    "prune": mz.prune(sparsity=mz.schedules.cubic(0.5, begin=0, end=4), every=2),
    "quantize": mz.quantize(4, learned=True),
    "cluster": mz.cluster(8, every=2),
}
LOOPS = ("plain", "linen", "nnx")
REFUSED = {"lookahead": "with_average", "dpsgd": "shape"}
STEPS = 4


def cases():
    """The whole product; always run are two of nine, each optimizer with two transforms, each in one of the loops."""
    for i, optimizer in enumerate(OPTIMIZERS):
        for j, transform in enumerate(TRANSFORMS):
            for k, loop in enumerate(LOOPS):
                marks = [] if (i + j + k) % 3 == 0 and (i + j) % 3 else [pytest.mark.slow]
                name = f"{optimizer}-{transform}-{loop}".replace(" ", "_")
                yield pytest.param(optimizer, transform, loop, id=name, marks=marks)


def loss_of(params):
    return jnp.mean(jnp.square(X @ params["kernel"] + params["bias"] - Y))


def extra(name, loss, value, grads):
    """What some optimizers ask for."""
    given = {
        "lbfgs": {"value": value, "grad": grads, "value_fn": loss},
        "backtracking": {"value": value, "grad": grads, "value_fn": loss},
        "sophia": {"obj_fn": loss},
        "sam": {"grad_fn": lambda p, _: jax.grad(loss)(p)},
    }
    return given.get(name, {"value": value})


def asked_for(name, grads):
    """DP-SGD wants the gradient of each example, stacked."""
    return jax.tree.map(lambda g: jnp.stack([g, g]), grads) if name == "dpsgd" else grads


def run_tree(name, tx, params):
    params, state = mz.start(tx, params)
    for _ in range(STEPS):
        value, grads = jax.value_and_grad(loss_of)(params)
        grads = asked_for(name, grads)
        updates, state = tx.update(grads, state, params, **extra(name, loss_of, value, grads))
        params = optax.apply_updates(params, updates)
    return params, state


def run_linen(name, tx):
    params = linen.Dense(4).init(jax.random.key(2), X)["params"]
    return run_tree(name, tx, params)


def run_nnx(name, tx):
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    graph, _ = nnx.split(model)

    def loss(state):
        return jnp.mean(jnp.square(nnx.merge(graph, state)(X) - Y))

    for _ in range(STEPS):
        value, grads = nnx.value_and_grad(lambda m: jnp.mean(jnp.square(m(X) - Y)))(model)
        grads = asked_for(name, grads)
        optimizer.update(model, grads, **extra(name, loss, value, grads))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), optimizer.opt_state


def run(name, loop, tx):
    if loop == "nnx":
        return run_nnx(name, tx)
    if loop == "linen":
        return run_linen(name, tx)
    start = {"kernel": 0.3 * jax.random.normal(jax.random.key(2), (8, 4)), "bias": jnp.zeros(4)}
    return run_tree(name, tx, start)


@pytest.mark.parametrize(("name", "transform", "loop"), list(cases()))
def test_trains_lands_and_packs(name, transform, loop):
    tx = mz.wrap(OPTIMIZERS[name](), mz.only("kernel", TRANSFORMS[transform]))
    if name == "sophia" and transform == "quantize":
        with pytest.raises(ModelzipError, match="second derivatives"):
            run(name, loop, tx)
        return
    if name in REFUSED:
        with pytest.raises(ModelzipError, match=REFUSED[name]):
            run(name, loop, tx)
        return
    params, state = run(name, loop, tx)
    exact = mz.params(state, params)
    for leaf in ("kernel", "bias"):
        assert np.isfinite(params[leaf]).all()
        np.testing.assert_allclose(
            params[leaf], exact[leaf], rtol=0, atol=3e-7 * max(np.abs(exact[leaf]).max(), 1.0)
        )
    assert (params["kernel"][np.asarray(exact["kernel"]) == 0] == 0).all()
    packed = mz.pack(state, params)
    np.testing.assert_array_equal(mz.unpack(packed)["kernel"], exact["kernel"])
    np.testing.assert_array_equal(mz.unpack(packed)["bias"], params["bias"])
    if transform == "prune":
        assert (np.asarray(exact["kernel"]) == 0).sum() == 16
    latents = mz.loop.wrap_states(state)[0].latents["kernel"]
    assert np.isfinite(latents).all()
    start = linen.Dense(4).init(jax.random.key(2), X)["params"]["kernel"]
    assert not np.array_equal(latents, start)


def test_no_optimizer_is_missing():
    assert missing() == []


MOMENTA = {
    "adafactor with momentum": lambda: optax.adafactor(RATE, momentum=0.9),
    "sgd with momentum": lambda: optax.sgd(RATE, momentum=0.9, nesterov=True),
    "ema first": lambda: optax.chain(optax.ema(0.9), optax.scale(-RATE)),
}
REMEMBERING = ("adam", "ademamix", "simplified_ademamix", "prodigy", "ema")


@pytest.mark.parametrize(
    "name",
    [n if n in (*MOMENTA, *REMEMBERING) else pytest.param(n, marks=pytest.mark.slow)
     for n in (*MOMENTA, *OPTIMIZERS) if n not in REFUSED],
)  # fmt: skip
def test_hidden_latents_stay_where_they_are(name):
    """Dense for four steps, which fill the optimizer's memory; then half of the weights are hidden."""
    later = mz.prune(sparsity=lambda step: jnp.where(step < 5, 0.0, 0.5), every=5)
    tx = mz.wrap((MOMENTA | OPTIMIZERS)[name](), mz.only("kernel", later))
    params, state = mz.start(
        tx, {"kernel": jax.random.normal(jax.random.key(3), (8, 4)), "bias": jnp.zeros(4)}
    )

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params, **extra(name, loss_of, value, grads))
        return optax.apply_updates(params, updates), state

    latents = []
    for _ in range(9):
        params, state = step(params, state)
        latents.append(np.asarray(state.latents["kernel"]))
    hidden = np.asarray(params["kernel"]) == 0
    assert hidden.sum() == 16
    for now in latents[5:]:
        np.testing.assert_array_equal(now[hidden], latents[4][hidden])
    assert np.abs(latents[-1]).max() < 10


@pytest.mark.parametrize("name", ["ademamix", "simplified_ademamix", "adam"])
def test_masks_that_come_and_go_blow_nothing_up(name):
    t = mz.prune(sparsity=mz.schedules.cubic(0.5, begin=2, end=30), every=2)
    tx = mz.wrap(OPTIMIZERS[name](), t)
    params, state = mz.start(tx, {"kernel": jax.random.normal(jax.random.key(0), (16, 16))})
    update = jax.jit(tx.update)
    for _ in range(40):
        updates, state = update({"kernel": params["kernel"] - 0.1}, state, params)
        params = optax.apply_updates(params, updates)
    assert np.abs(params["kernel"]).max() < 10


def test_a_line_search_sees_the_weights_of_the_network():
    """As masks multiplied in by hand: functions of the params are called with decoded weights, not with latents."""
    start = {"kernel": jax.random.normal(jax.random.key(3), (8, 4)), "bias": jnp.zeros(4)}
    t = mz.only("kernel", mz.prune(sparsity=0.5))
    mask = mz.decoded(start, t)["kernel"] != 0
    by_hand = lambda p: loss_of({**p, "kernel": p["kernel"] * mask})  # noqa: E731

    def last(tx, params, state, loss):
        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
            return optax.apply_updates(params, updates), state, value

        for _ in range(10):
            params, state, value = step(params, state)
        return value

    tx = mz.wrap(optax.lbfgs(), t)
    found = last(tx, *mz.start(tx, start), loss_of)
    np.testing.assert_allclose(
        found, last(optax.lbfgs(), start, optax.lbfgs().init(start), by_hand), rtol=1e-4
    )
