import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from custom_transforms import LowRank, Rotate

import modelzip_jax as mz
from modelzip_jax.combinator import selected
from modelzip_jax.transform import Rate, dense

RNG = np.random.default_rng(0)
TREE = {
    "a": {"kernel": RNG.normal(size=(8, 6)).astype("f4"), "bias": RNG.normal(size=6).astype("f4")},
    "b": RNG.normal(size=(4, 4)).astype("f4"),
}
SMALL = {"b": TREE["b"]}


def test_the_base_class_is_the_identity():
    weights, context = {"w": jnp.ones(3)}, mz.Context()
    t = mz.identity()
    encoded = t.init(weights, context)
    assert encoded == mz.Encoded(weights, (), ())
    assert t.decode(encoded) is weights
    assert t.update(encoded, context) is encoded
    assert t.metrics(encoded) == {}
    assert t.relaxed(encoded) is t.encode(weights, encoded) is weights
    assert t.follow(encoded, context) is context
    assert t.resume(dense(weights))[:2] == ((), ())
    mz.testing.check_laws(t, {"w": TREE["b"]})


def test_transforms_are_values():
    assert mz.quantize(4) == mz.quantize(4)
    assert mz.quantize(4) != mz.quantize(5)
    assert len({mz.prune(sparsity=0.5), mz.prune(sparsity=0.5), mz.identity()}) == 2


def test_rate_of_the_identity_is_the_size():
    tree = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(5, jnp.bfloat16), "c": jnp.zeros((0, 4))}
    assert float(mz.rate(mz.identity(), mz.Encoded(tree, (), ()))) == 6 * 32 + 5 * 16
    assert float(Rate(jnp.ones(()), jnp.float32(2)).total()) == 3


def test_selected_leaves_carry_the_sentinel_elsewhere():
    chosen = selected(mz.only("**/kernel", mz.identity()), TREE, {}, "a test").weights
    assert mz.tree.absent(chosen["b"])
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
        def update(self, encoded, context):
            seen.append(context.grads)
            return super().update(encoded, context)

    t = mz.chain(Rotate(), Watch())
    encoded = t.init({"w": jnp.asarray(TREE["b"])}, mz.Context())
    grads = {"w": jnp.asarray(TREE["b"] * 2)}
    t.update(encoded, mz.Context(grads=grads, step=1))
    # The adjoint of an orthogonal synthesis is its analysis.
    np.testing.assert_allclose(seen[0]["w"], Rotate().analysis(grads["w"], None), rtol=1e-6)


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
        def decode(self, encoded):
            return jax.tree.map(lambda x: x * 1.5, super().decode(encoded))

    good = mz.prune(sparsity=0.5)
    leaky = Leaky(score=good.score, sparsity=good.sparsity, allocation=good.allocation, every=good.every)
    with pytest.raises(AssertionError, match=r"law 1 .*leaf 'b'.*such as"):
        mz.testing.check_laws(leaky, {"b": TREE["b"]})


class _Broken(type(mz.identity())):
    pass


def _plain(self, packed):
    return (), (), packed


@pytest.mark.parametrize(
    ("law", "methods"),
    [
        (0, {"decode": lambda self, e: jax.tree.map(lambda x: x.astype(jnp.float16), e.latents)}),
        (0, {"decode": lambda self, e: jax.tree.map(lambda x: x / 0, e.latents)}),
        (0, {"init": lambda self, w, c: mz.Encoded(jax.tree.map(jnp.ravel, w), (), ()),
             "decode": lambda self, e: jax.tree.map(lambda x: x.reshape(4, 4), e.latents)}),
        (1, {"pack": lambda self, e, inner: jax.tree.map(lambda x: x + 1, inner), "resume": _plain}),
        (3, {"pack": lambda self, e, inner: inner, "resume": lambda self, p: ((), jnp.zeros(1), p)}),
        (3, {"pack": lambda self, e, inner: inner, "resume": lambda self, p: (jnp.ones(1), (), p),
             "init": lambda self, w, c: mz.Encoded(w, jnp.ones(1), ())}),
        (3, {"update": lambda self, e, c: e._replace(latents=jax.tree.map(jnp.negative, e.latents))}),
        (5, {"update": lambda self, e, c: e._replace(state=jnp.zeros(1))}),
        (6, {"rate": lambda self, e, inner: jax.tree.map(lambda x: -x, inner)}),
    ],
)  # fmt: skip
def test_each_law_can_fail(law, methods):
    broken = type("Broken", (_Broken,), methods)()
    with pytest.raises(AssertionError, match=f"law {law} "):
        mz.testing.check_laws(broken, {"w": jnp.asarray(TREE["b"])})


@pytest.mark.parametrize("name", ["pack", "resume"])
def test_a_method_without_its_inverse_is_named(name):
    broken = type("Broken", (_Broken,), {name: lambda self, *given: None})()
    with pytest.raises(AssertionError, match=rf"Broken defines {name}\(\) and not its inverse"):
        mz.testing.check_laws(broken, SMALL)


def test_a_step_that_traces_twice_is_caught():
    class Growing(type(mz.identity())):
        def init(self, weights, context):
            return mz.Encoded(weights, (), jnp.int8(0))

        def update(self, encoded, context):
            return encoded._replace(state=jnp.int32(encoded.state + 1))

    with pytest.raises(AssertionError, match=r"law 5 .* traced 2 times"):
        mz.testing.check_laws(Growing(), {"w": jnp.asarray(TREE["b"])})
