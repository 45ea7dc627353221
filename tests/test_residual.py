"""A sum of transforms: each encodes what is left, all are told the same, and the sum is one and the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.packed import Dense
from modelzip_jax.summed_terms import Summed

RNG = np.random.default_rng(9)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def share(w, transform):
    """Squared error over squared norm."""
    away = np.asarray(mz.decoded({"w": w}, transform)["w"], np.float64) - w
    return np.sum(np.square(away)) / np.sum(np.square(w.astype(np.float64)))


def test_each_part_encodes_what_is_left_in_exactly_its_bits():
    w, four = normal(64, 32), mz.quantize(4, axis=-1)
    assert share(w, mz.residual(four, four)) < share(w, four) / 100
    packed = mz.compress({"w": w}, mz.residual(four, mz.quantize(2, axis=0), four)).params["w"]
    first, second, third = packed.left.left, packed.left.right, packed.right
    assert [p.codes.bits for p in (first, second, third)] == [4, 2, 4]
    assert packed.nbytes == 64 * 32 * (4 + 2 + 4) // 8 + 4 * (32 + 64 + 32)
    rest = w - np.asarray(first.unpack())
    np.testing.assert_array_equal(second.unpack(), mz.decoded({"w": rest}, mz.quantize(2, axis=0))["w"])
    total = np.asarray(first.unpack()) + np.asarray(second.unpack()) + np.asarray(third.unpack())
    np.testing.assert_array_equal(packed.unpack(), total)
    np.testing.assert_array_equal(packed.unpack_host(), total)


def test_products_and_sums_stay_apart_in_every_program():
    """By full optimization XLA would make one operation of `q s + r`, here and there."""
    w, two = {"w": jnp.asarray(normal(128, 64))}, mz.residual(mz.quantize(3), mz.quantize(3, symmetric=False))
    encoded = two.init(w, mz.Context())
    eager = two.decode(encoded)["w"]

    @jax.jit
    def larger(encoded):
        found = two.decode(encoded)["w"]
        return found, jnp.sum(found * w["w"]), found @ found.T

    np.testing.assert_array_equal(larger(encoded)[0], eager)
    np.testing.assert_array_equal(mz.unpack(mz.compress(w, two))["w"], eager)
    np.testing.assert_array_equal(jax.jit(mz.unpack)(mz.compress(w, two))["w"], eager)


def test_half_precision_is_summed_wide_and_rounded_once():
    w = jnp.asarray(normal(16, 8), jnp.bfloat16)
    packed = mz.compress({"w": w}, mz.residual(mz.quantize(3), mz.quantize(3), mz.quantize(3)))
    terms = [np.asarray(p.unpack()) for p in packed.params["w"].terms(3)]
    assert {x.dtype for x in terms} == {np.dtype("float32")}
    np.testing.assert_array_equal(mz.unpack(packed)["w"], sum(terms[1:], terms[0]).astype(jnp.bfloat16))


def test_a_mask_before_survives_and_one_inside_is_told():
    w = {"w": normal(32, 16)}
    inside = mz.residual(mz.low_rank(4), mz.quantize(4))
    found = mz.decoded(w, mz.chain(mz.prune(sparsity=0.75), inside))["w"]
    np.testing.assert_array_equal(found == 0, mz.decoded(w, mz.prune(sparsity=0.75))["w"] == 0)
    outliers = mz.residual(mz.prune(sparsity=0.9), mz.quantize(2))
    assert outliers.hides
    support = outliers.follow(outliers.init(w, mz.Context()), mz.Context()).support["w"]
    assert [float(jnp.mean(x)) for x in support] == [pytest.approx(0.1, abs=0.01), 1.0]
    assert set(outliers.metrics(outliers.init(w, mz.Context()))) == {"0:sparsity", "0:mask_churn"}
    assert share(w["w"], outliers) < share(w["w"], mz.quantize(2)) / 2


def test_parts_may_leave_leaves_alone():
    params = {"a": normal(8, 6), "b": normal(6), "c": normal(3)}
    two = mz.residual(mz.only("a", mz.low_rank(2)), mz.only(("a", "b"), mz.quantize(4)))
    encoded = mz.only("**", mz.chain(two)).init(params, mz.Context())
    assert [len(x) for x in (encoded.latents["a"], encoded.latents["b"])] == [2, 1]
    packed = mz.compress(params, two)
    np.testing.assert_array_equal(mz.unpack(packed)["b"], mz.decoded(params, mz.quantize(4))["b"])
    np.testing.assert_array_equal(mz.unpack(packed)["c"], params["c"])
    np.testing.assert_array_equal(mz.unpack(mz.compress(params, mz.chain(two)))["c"], params["c"])
    assert mz.resume(packed)[0] == two


def test_every_part_is_told_the_same_gradient():
    seen = []

    class Watch(type(mz.identity())):
        def update(self, encoded, context):
            seen.append((context.grads, context.stats, context.frozen))
            return encoded

    t = mz.residual(Watch(), mz.chain(mz.prune(sparsity=0.5), Watch()), mz.only("a", Watch()))
    encoded = t.init({"a": normal(4, 3), "b": normal(2)}, mz.Context())
    grads, stats = {"a": jnp.ones((4, 3)), "b": jnp.ones(2)}, {"a": "told", "b": "told"}
    t.update(encoded, mz.Context(grads=grads, stats=stats, frozen=7))
    assert [frozen for *_, frozen in seen] == [7, 7, 9]
    assert [x["a"] for x, *_ in seen] == [grads["a"]] * 3
    assert [x["b"] is grads["b"] for x, *_ in seen] == [True, True, False]
    assert [x["a"] for _, x, _ in seen] == ["told"] * 3
    pulled = jax.vjp(lambda z: t.decode(encoded._replace(latents=z)), encoded.latents)[1](grads)[0]
    np.testing.assert_array_equal(pulled["a"][0], grads["a"])


def test_what_the_latents_stand_for_is_what_was_encoded():
    w = {"w": jnp.asarray(normal(16, 8))}
    for t in (
        mz.residual(mz.quantize(3), mz.quantize(2)),
        mz.residual(mz.prune(sparsity=0.5), mz.quantize(2)),
    ):
        encoded = t.init(w, mz.Context())
        np.testing.assert_allclose(t.relaxed(encoded)["w"], w["w"], atol=1e-6)
        moved = {"w": w["w"] * 0.9}
        again = encoded._replace(latents=t.encode(moved, encoded))
        np.testing.assert_allclose(t.relaxed(again)["w"], moved["w"], atol=1e-6)


def test_the_estimate_is_the_sum_of_the_parts():
    w = {"w": jnp.asarray(normal(16, 8))}
    parts = mz.low_rank(2), mz.quantize(4)
    both = mz.residual(*parts)
    encoded = both.init(w, mz.Context())
    each = [
        mz.rate(part, mz.Encoded({"w": z}, (), state))
        for part, z, state in zip(parts, encoded.latents["w"], encoded.state.states, strict=True)
    ]
    np.testing.assert_allclose(mz.rate(both, encoded), sum(each), rtol=1e-6)


@pytest.mark.parametrize(
    ("transform", "ulp"),
    [
        pytest.param(
            mz.residual(mz.prune(sparsity=mz.schedules.cubic(0.75, 0, 3), every=1), mz.quantize(3, learned=True)),
            0, marks=pytest.mark.slow,
        ),
        pytest.param(mz.residual(mz.low_rank(2), mz.quantize(4, learned=True)), 16, marks=pytest.mark.slow),
        pytest.param(
            mz.chain(mz.rigl(sparsity=0.5, every=1, end=4), mz.residual(mz.cluster(4), mz.quantize(2), mz.quantize(1))),
            0, marks=pytest.mark.slow,
        ),
        pytest.param(
            mz.chain(mz.residual(mz.wavelet("haar", 1, -1, keep=1), mz.low_rank(1)), mz.quantize(4)),
            16, marks=pytest.mark.slow,
        ),
    ],
    ids=["outliers", "factors", "after moving masks", "before symbols"],
)  # fmt: skip
def test_laws(transform, ulp):
    params = {"kernel": normal(6, 4), "half": jnp.asarray(normal(6, 4), jnp.bfloat16)}
    mz.testing.check_laws(transform, params, steps=2, ulp=ulp)


def test_leaves_in_turn_need_not_match_every_pattern(monkeypatch):
    """Of large models `compress` takes some leaves at a time."""
    monkeypatch.setattr("modelzip_jax.leaf_packing._GROUP_BYTES", 1)
    params = {"a": normal(8, 6), "b": normal(8, 6)}
    for join in (mz.residual, mz.chain):
        t = join(mz.only("a", mz.low_rank(2)), mz.only("b", mz.quantize(4)))
        assert mz.compress(params, t).params["b"].nbytes < 4 * 8 * 6
        with pytest.raises(mz.errors.PatternError, match="'c'"):
            mz.compress(params, join(t, mz.only("c", mz.quantize(4))))


def test_wrong_calls():
    for parts in ((), (mz.quantize(4), mz.quantize), ("low_rank",)):
        with pytest.raises(TransformError, match="residual"):
            mz.residual(*parts)
    with pytest.raises(TransformError, match="is made symbols by one part"):
        mz.compress(
            {"w": normal(4, 4)}, mz.chain(mz.residual(mz.low_rank(1), mz.quantize(4)), mz.quantize(4))
        )
    with pytest.raises(LeafError, match="residual cannot encode leaf 'ids'"):
        mz.compress({"ids": np.arange(3)}, mz.residual(mz.quantize(4), mz.quantize(4)))
    with pytest.raises(ValueError, match=r"a term of shape \(2,\)"):
        Summed(Dense(np.zeros(3), (3,)), Dense(np.zeros(2), (2,)), (3,), "float32").check()
