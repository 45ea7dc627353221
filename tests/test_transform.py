import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from custom_transforms import LowRank, Rotate

import modelzip_jax as mz
from modelzip_jax.transform import Rate, dense, selected

RNG = np.random.default_rng(0)
TREE = {
    "a": {"kernel": RNG.normal(size=(8, 6)).astype("f4"), "bias": RNG.normal(size=6).astype("f4")},
    "b": RNG.normal(size=(4, 4)).astype("f4"),
}
SMALL = {"b": TREE["b"]}


def test_the_base_class_is_the_identity():
    values = {"w": jnp.ones(3)}
    t = mz.identity()
    assert t.decode(*t.init(values)) is values
    assert t.update(values, (), ()) == mz.Encoded(values, (), ())
    assert t.metrics(values, (), ()) == {}
    assert t.synthesis(t.analysis(values, ()), ()) is values
    assert t.resume(dense(values))[:2] == ((), ())
    mz.testing.check_laws(t, {"w": TREE["b"]})


def test_transforms_are_values():
    assert mz.quantize(4) == mz.quantize(4)
    assert mz.quantize(4) != mz.quantize(5)
    assert len({mz.prune(sparsity=0.5), mz.prune(sparsity=0.5), mz.identity()}) == 2


def test_rate_of_the_identity_is_the_size():
    tree = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(5, jnp.bfloat16), "c": jnp.zeros((0, 4))}
    assert float(mz.rate(mz.identity(), tree, (), ())) == 6 * 32 + 5 * 16
    assert float(Rate(jnp.ones(()), jnp.float32(2)).total()) == 3


def test_selected_leaves_carry_the_sentinel_elsewhere():
    chosen = selected(mz.only("**/kernel", mz.identity()), TREE)
    assert chosen["b"] is mz.tree.UNSELECTED
    assert chosen["a"]["kernel"] is TREE["a"]["kernel"]


@pytest.mark.parametrize(
    "transform",
    [
        mz.chain(mz.prune(sparsity=0.5), Rotate(), mz.quantize(6, learned=True)),
        pytest.param(
            mz.chain(
                Rotate(), mz.prune(sparsity=mz.schedules.cubic(0.8, 0, 3), every=1, allocation="global")
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["pruned and quantized", "scheduled"],
)
def test_latents_may_have_another_shape(transform):
    mz.testing.check_laws(transform, SMALL, ulp=4)


@pytest.mark.parametrize(
    "transform",
    [
        mz.chain(LowRank(2), mz.quantize(8)),
        pytest.param(
            mz.chain(mz.prune(sparsity=0.5), LowRank(2), mz.prune(sparsity=0.25)), marks=pytest.mark.slow
        ),
    ],
    ids=["quantized", "pruned"],
)
def test_a_latent_may_be_a_subtree(transform):
    mz.testing.check_laws(mz.only("b", transform), SMALL, ulp=16)


def test_gradients_reach_a_part_in_its_own_domain():
    """What `update` of the second part of a chain sees is the gradient of the coefficients."""
    seen = []

    class Watch(type(mz.identity())):
        def update(self, values, extras, state, **extra):
            seen.append(extra["grads"])
            return super().update(values, extras, state, **extra)

    t = mz.chain(Rotate(), Watch())
    encoded = t.init({"w": jnp.asarray(TREE["b"])})
    grads = {"w": jnp.asarray(TREE["b"] * 2)}
    t.update(*encoded, grads=grads, step=1)
    # The adjoint of an orthogonal synthesis is its analysis.
    np.testing.assert_allclose(seen[0]["w"], Rotate().analysis(grads, ())["w"], rtol=1e-6)


def test_training_in_another_domain_follows_plain_training():
    """Gradient descent does not change under an orthogonal change of variables."""
    params = {"w": jnp.asarray(TREE["a"]["kernel"])}
    target = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
    loss = jax.jit(jax.grad(lambda p: jnp.sum((p["w"] - target) ** 2)))
    runs = []
    for tx in (optax.sgd(0.05, momentum=0.9), mz.wrap(optax.sgd(0.05, momentum=0.9), Rotate())):
        p = params
        state = tx.init(p)
        for _ in range(10):
            updates, state = tx.update(loss(p), state, p)
            p = optax.apply_updates(p, updates)
        runs.append(p["w"])
    np.testing.assert_allclose(*runs, rtol=1e-4, atol=1e-5)


def test_a_law_that_is_broken_is_named():
    class Leaky(type(mz.prune(sparsity=0.5))):
        def decode(self, values, extras, state):
            return jax.tree.map(lambda x: x * 1.5, super().decode(values, extras, state))

    good = mz.prune(sparsity=0.5)
    leaky = Leaky(good.score, good.sparsity, good.allocation, good.every)
    with pytest.raises(AssertionError, match=r"law 1 .*leaf 'b'.*such as"):
        mz.testing.check_laws(leaky, {"b": TREE["b"]})


class _Broken(type(mz.identity())):
    pass


@pytest.mark.parametrize(
    ("law", "methods"),
    [
        (0, {"decode": lambda self, v, e, s: jax.tree.map(lambda x: x.astype(jnp.float16), v)}),
        (0, {"decode": lambda self, v, e, s: jax.tree.map(lambda x: x / 0, v)}),
        (1, {"pack": lambda self, v, e, s, inner: jax.tree.map(lambda x: x + 1, inner)}),
        (3, {"resume": lambda self, p: ((), jnp.zeros(1), p)}),
        (3, {"resume": lambda self, p: (jnp.ones(1), (), p), "init": lambda self, v: (v, jnp.ones(1), ())}),
        (5, {"update": lambda self, v, e, s, **x: mz.Encoded(v, e, jnp.zeros(1))}),
        (6, {"rate": lambda self, v, e, s, inner: jax.tree.map(lambda x: -x, inner)}),
    ],
)
def test_each_law_can_fail(law, methods):
    broken = dataclass_with(methods)
    with pytest.raises(AssertionError, match=f"law {law} "):
        mz.testing.check_laws(broken, {"w": jnp.asarray(TREE["b"])})


def dataclass_with(methods):
    if "init" in methods:
        begin = methods["init"]
        methods = {**methods, "init": lambda self, v, **x: mz.Encoded(*begin(self, v))}
    return type("Broken", (_Broken,), methods)()


def test_a_step_that_traces_twice_is_caught():
    class Growing(type(mz.identity())):
        def init(self, values, **extra):
            return mz.Encoded(values, (), jnp.int8(0))

        def update(self, values, extras, state, **extra):
            return mz.Encoded(values, extras, jnp.int32(state + 1))

    with pytest.raises(AssertionError, match=r"law 5 .* traced 2 times"):
        mz.testing.check_laws(Growing(), {"w": jnp.asarray(TREE["b"])})
