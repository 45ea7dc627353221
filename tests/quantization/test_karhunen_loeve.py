"""Principal components are uncorrelated and worth the same; a table costs fewer bytes in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, PatternError, TraceError, TransformError
from modelzip_jax.quantization.table_basis import coding_gain
from modelzip_jax.trace.measures.curvature import FisherInformation

RNG = np.random.default_rng(6)


def table(rows=400, n=6):
    """Rows that lie near a plane."""
    low = RNG.normal(size=(rows, 2)) @ RNG.normal(size=(2, n))
    return (low + 0.1 * RNG.normal(size=(rows, n))).astype(np.float32)


def metric(n=6):
    m = RNG.normal(size=(2 * n, n))
    return (m.T @ m).astype(np.float32)


def told(g, name="w"):
    return {name: FisherInformation(None, (), jnp.asarray(g))}


@pytest.mark.parametrize("known", [False, True])
def test_columns_are_uncorrelated_and_their_errors_cost_the_same(known):
    """To what the codes of the basis leave of it."""
    w, g = table(), metric() if known else np.eye(6, dtype=np.float32)
    context = mz.Context(curvature=told(g)) if known else mz.Context()
    encoded = mz.karhunen_loeve(1e-3).init({"w": w}, context)
    left = np.asarray(encoded.latents["w"], np.float64)
    right = np.asarray(encoded.state["w"].values, np.float64)
    np.testing.assert_allclose(left @ right, w, atol=1e-4)
    scaled = left / np.linalg.norm(left, axis=0)
    plain = w / np.linalg.norm(w, axis=0)
    assert np.abs(scaled.T @ scaled - np.eye(6)).max() < 0.2 < np.abs(plain.T @ plain - np.eye(6)).max()
    assert np.all(np.diff(np.linalg.norm(left, axis=0)) < 0)
    cost = right @ g @ right.T * 6 / np.trace(g)
    np.testing.assert_allclose(cost, np.eye(6), atol=0.1)


def test_gain_is_what_the_columns_variances_say():
    w, g = table(2000).astype(np.float64), metric().astype(np.float64)
    moments = w.T @ w
    whitened = np.linalg.eigvalsh(np.linalg.cholesky(g).T @ moments @ np.linalg.cholesky(g))
    scale = np.trace(g) / 6
    want = 0.5 * (np.log2(np.diag(moments) * scale).mean() - np.log2(whitened).mean())
    assert coding_gain(w, g, damping=1e-6) == pytest.approx(want, abs=1e-3)
    assert coding_gain(w) == pytest.approx(
        0.5 * (np.log2(np.diag(moments)).mean() - np.log2(np.linalg.eigvalsh(moments)).mean()), abs=1e-3
    )


def test_a_table_takes_fewer_bytes_at_the_same_error():
    w = table(4000, 16)
    plain = mz.entropy_constrained(0.05, spread=mz.spreads.even())
    found = [mz.compress({"w": w}, t) for t in (plain, mz.chain(mz.karhunen_loeve(), plain))]
    off = [float(jnp.mean(jnp.square(mz.unpack(p)["w"] - w))) for p in found]
    sizes = [mz.coding.writer.file_sizes(p).total for p in found]
    assert off[1] < 1.1 * off[0]
    assert sizes[1] < 0.75 * sizes[0]


def test_importance_of_components_is_that_of_rows():
    w, h = table(40), np.abs(RNG.normal(size=(40, 6))).astype(np.float32)
    transform = mz.karhunen_loeve()
    for context in (
        mz.Context(importance={"w": h}),
        mz.Context(importance={"w": h}, curvature=told(metric())),
    ):
        encoded = transform.init({"w": w}, context)
        found = transform.follow(encoded, context)
        alone = h @ np.square(encoded.state["w"].values).T
        want = np.tile(h.mean(1, keepdims=True), 6) if context.curvature else alone
        np.testing.assert_allclose(found.importance["w"], want, rtol=1e-4)
        assert found.curvature is None


def test_leaves_without_many_rows_are_kept():
    params = {
        "square": table(6), "bias": np.ones(4, np.float32), "none": np.zeros((0, 3), np.float32),
        "zero": np.zeros((9, 3), np.float32),
    }  # fmt: skip
    encoded = mz.karhunen_loeve().init(params, mz.Context())
    assert [name for name in params if encoded.state[name].values is not None] == ["zero"]
    for name, leaf in mz.karhunen_loeve().decode(encoded).items():
        np.testing.assert_array_equal(leaf, params[name])


def test_new_weights_in_the_same_basis():
    layered = np.stack([table(30), table(30)], axis=1)
    transform = mz.karhunen_loeve(layers=1)
    encoded = transform.init({"w": layered}, mz.Context())
    assert encoded.state["w"].values.shape == (2, 6, 6)
    again = transform.encode({"w": jnp.asarray(2 * layered)}, encoded)["w"]
    np.testing.assert_allclose(again, 2 * encoded.latents["w"], atol=1e-4)


@pytest.mark.parametrize(
    "transform",
    [
        mz.chain(mz.karhunen_loeve(), mz.entropy_constrained(0.05)),
        pytest.param(mz.karhunen_loeve(), marks=pytest.mark.slow),
        pytest.param(mz.chain(mz.prune(sparsity=0.5), mz.karhunen_loeve(layers={"w": ()}), mz.quantize(4)),
                     marks=pytest.mark.slow),
    ],
    ids=["stepped", "alone", "after a mask"],
)  # fmt: skip
def test_laws(transform):
    params = {"w": table(20, 4), "bias": jnp.asarray([0.5, -1.0], jnp.bfloat16)}
    mz.testing.check_laws(mz.only("w", transform), params, steps=2, ulp=64)


def test_columns_are_the_second_moments_of_gradients():
    """The rows of the gradient of a table, of one batch with one example: exactly."""
    params = {"table": jnp.asarray(table(5, 3)), "bias": jnp.zeros(3)}

    def model(p, ids):
        return p["table"][ids].sum(1) + p["bias"]

    batches = [(jnp.array([[i, (i + 1) % 5]]),) for i in range(4)]
    found = trace.fisher_information(
        model, params, batches, likelihood="gaussian", gradients="batches", columns="table"
    )
    assert found["bias"].columns is None
    want = np.zeros((3, 3))
    for number, (ids,) in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(0), number)
        noise = np.asarray(jax.random.normal(key, (1, 3)), np.float64)
        m = np.zeros((5, 3))
        np.add.at(m, np.asarray(ids)[0], -noise[0])
        want += m.T @ m / 4
    np.testing.assert_allclose(found["table"].columns, want, rtol=1e-4)
    np.testing.assert_allclose(np.diag(want), np.asarray(found["table"].diagonal).sum(0), rtol=1e-4)


def test_wrong_arguments():
    for damping in (0, -1.0, True, float("nan")):
        with pytest.raises(TransformError, match="damping"):
            mz.karhunen_loeve(damping)
    with pytest.raises(LeafError, match=r"\(4, 4\), and it has 6 columns"):
        mz.compress({"w": table()}, mz.karhunen_loeve(), curvature=told(metric(4)))
    with pytest.raises(LeafError, match="int32"):
        mz.compress({"w": jnp.zeros((9, 2), int)}, mz.karhunen_loeve())
    model, w = lambda p, x: x @ p["w"], {"w": jnp.ones((2, 2))}
    with pytest.raises(TraceError, match="gradients='batches'"):
        trace.fisher_information(model, w, [jnp.ones((1, 2))], likelihood="gaussian", columns="w")
    with pytest.raises(PatternError):
        trace.fisher_information(
            model, w, [jnp.ones((1, 2))], likelihood="gaussian", gradients="batches", columns="v"
        )
