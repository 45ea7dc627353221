"""Numbers beside the codes are trained, of every stored form, and codes stay."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax.errors import ConfigError, NonFiniteError, PatternError, TransformError, TreeError
from modelzip_jax.packed import Dense, is_packed

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.mz"))


def model(params, x):
    """Every weight of floating-point leaves matters, each by its own share."""
    leaves = [w for w in jax.tree.leaves(params) if jnp.issubdtype(jnp.result_type(w), jnp.floating)]
    parts = [jnp.reshape(w, (-1,)).astype(jnp.float32) for w in leaves]
    flat = jnp.concatenate(parts)
    return jnp.stack([flat * jnp.cos(x_ * jnp.arange(flat.size)) for x_ in x])


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if i % 2 else []) for i, p in enumerate(GOLDEN)],
)
def test_every_stored_form(path):
    packed = mz.load(path)
    before = mz.unpack(packed)
    params = jax.tree.map(
        lambda w: w * 1.02 if jnp.issubdtype(w.dtype, jnp.floating) else w, jax.tree.map(np.asarray, before)
    )
    x = jnp.arange(3.0)
    tuned = mz.tune_scales(packed, params, (model, [x]), epochs=20, learning_rate=2e-3)
    error = lambda p: float(jnp.sum(jnp.square(model(mz.unpack(p), x) - model(params, x))))  # noqa: E731
    assert error(tuned) < error(packed)
    assert tuned.nbytes == packed.nbytes
    for old, new in zip(jax.tree.leaves(packed.params), jax.tree.leaves(tuned.params), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        if not jnp.issubdtype(old.dtype, jnp.floating):
            np.testing.assert_array_equal(old, new)
    for old, new in zip(
        *(jax.tree.leaves(p.params, is_leaf=is_packed) for p in (packed, tuned)), strict=True
    ):
        if isinstance(old, Dense) and len(old.shape) > 1:
            np.testing.assert_array_equal(old.unpack(), new.unpack())


def network(params, x):
    return jax.nn.relu(x @ params["a"] * params["scale"]) @ params["b"] + params["bias"]


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    params = {
        "a": rng.normal(size=(20, 32)) / 4, "b": rng.normal(size=(32, 5)) / 4,
        "scale": np.ones(32), "bias": np.zeros(5),
    }  # fmt: skip
    x = rng.normal(size=(6, 16, 20)).astype("f4")
    return {name: w.astype("f4") for name, w in params.items()}, list(x[:4]), x[4:].reshape(-1, 20)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize(
    "encoded", [mz.quantize(2), mz.entropy_constrained(0.6), mz.cluster(4)], ids=lambda t: type(t).__name__
)
def test_what_is_tuned_ships_and_is_nearer_on_held_out_inputs(trained, likelihood, encoded, tmp_path):
    params, known, held = trained
    packed = mz.compress(params, mz.only(("a", "b"), encoded))
    tuned = mz.tune_scales(
        packed, params, (network, known), likelihood=likelihood, epochs=30, learning_rate=0.01
    )
    mz.save(tmp_path / "m.mz", tuned)
    loaded = mz.load(tmp_path / "m.mz", like=params)
    chex.assert_trees_all_equal(mz.unpack(loaded), mz.unpack(tuned))

    def distance(p):
        found, wanted = network(mz.unpack(p), held), network(params, held)
        if likelihood == "gaussian":
            return float(jnp.mean(jnp.square(found - wanted)))
        logs = jax.nn.log_softmax(wanted)
        return float(jnp.mean(jnp.sum(jnp.exp(logs) * (logs - jax.nn.log_softmax(found)), -1)))

    assert distance(loaded) < 0.9 * distance(packed)
    assert loaded.transform == packed.transform


def test_patterns_choose_what_is_trained_and_a_seed_makes_it_again(trained):
    params, known, _ = trained
    packed = mz.compress(params, mz.only(("a", "b"), mz.quantize(2)))
    once, again = (
        mz.tune_scales(packed, params, (network, known), only=("a", "bias"), seed=3) for _ in range(2)
    )
    chex.assert_trees_all_equal(mz.unpack(once), mz.unpack(again))
    for name in params:
        changed = not np.array_equal(mz.unpack(once)[name], mz.unpack(packed)[name])
        assert changed == (name in ("a", "bias")), name


def test_variances_of_dead_channels_stay_variances(trained):
    params, known, _ = trained
    params = {**params, "variance": np.where(np.arange(32) < 4, 0.0, 1.0).astype("f4")}
    normed = lambda p, x: network({**p, "scale": p["scale"] / jnp.sqrt(p["variance"] + 1e-3)}, x)  # noqa: E731
    packed = mz.compress(params, mz.only(("a", "b"), mz.quantize(2)))
    tuned = mz.tune_scales(packed, params, (normed, known), epochs=20, learning_rate=0.05)
    variance = np.asarray(mz.unpack(tuned)["variance"])
    assert (variance[:4] == 0).all()
    assert (variance[4:] > 0).all()


def test_zeros_of_masks_stay(trained):
    params, known, _ = trained
    packed = mz.compress(params, mz.only(("a", "b"), mz.chain(mz.prune(sparsity=0.5), mz.quantize(3))))
    tuned = mz.unpack(mz.tune_scales(packed, params, (network, known), learning_rate=0.05))
    for name in ("a", "b"):
        np.testing.assert_array_equal(np.asarray(tuned[name]) == 0, np.asarray(mz.unpack(packed)[name]) == 0)


def test_what_it_refuses(trained):
    params, known, _ = trained
    packed = mz.compress(params, mz.only(("a", "b"), mz.quantize(2)))
    data = (network, known)
    for error, said, call in (
        (TransformError, "takes what mz.compress gives", lambda: mz.tune_scales(params, params, data)),
        (TransformError, "at least one batch", lambda: mz.tune_scales(packed, params, (network, []))),
        (TransformError, "apply_fn, batches", lambda: mz.tune_scales(packed, params, network)),
        (ConfigError, "likelihood", lambda: mz.tune_scales(packed, params, data, likelihood="poisson")),
        (TransformError, "learning_rate", lambda: mz.tune_scales(packed, params, data, learning_rate=0)),
        (TransformError, "epochs", lambda: mz.tune_scales(packed, params, data, epochs=0)),
        (TreeError, "have other leaves", lambda: mz.tune_scales(packed, {"a": params["a"]}, data)),
        (PatternError, "elsewhere", lambda: mz.tune_scales(packed, params, data, only="elsewhere")),
        (
            TransformError,
            "found no step size",
            lambda: mz.tune_scales(mz.compress(params["a"], mz.identity()), params["a"], data),
        ),
        (
            NonFiniteError,
            "diverged",
            lambda: mz.tune_scales(packed, params, (network, [x * np.nan for x in known])),
        ),
    ):
        with pytest.raises(error, match=said):
            call()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_an_nnx_state_in_either_precision(dtype):
    graph, state = nnx.split(nnx.Linear(20, 8, rngs=nnx.Rngs(0)), nnx.Param)
    state = jax.tree.map(lambda w: w.astype(dtype), state)
    apply = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    known = list(jax.random.normal(jax.random.key(1), (4, 16, 20)))
    packed = mz.compress(state, mz.only("kernel", mz.quantize(2)))
    tuned = mz.tune_scales(packed, state, (apply, known), epochs=30, learning_rate=0.01)

    def error(p):
        found = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(mz.unpack(p)))
        return float(
            jnp.mean(jnp.square(apply(found, known[0]) - apply(state, known[0])).astype(jnp.float32))
        )

    assert error(tuned) < error(packed)
    assert [w.dtype for w in jax.tree.leaves(mz.unpack(tuned))] == [w.dtype for w in jax.tree.leaves(state)]
