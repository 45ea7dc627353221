"""RelativeSteps instead of bits: the laws, codes of any size, and steps that are shared out by what errors cost."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzip_jax as mz
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.quantization.integers import LARGEST, Integers

RNG = np.random.default_rng(3)
PARAMS = {
    "dense": {"kernel": RNG.normal(size=(12, 8)).astype("f4"), "bias": RNG.normal(size=8).astype("f4")},
    "scale": np.float32(0.3),
    "empty": np.zeros((0, 4), "f4"),
    "zeros": np.zeros((3, 3), "f4"),
    "half": jnp.asarray(RNG.normal(size=(6, 4)), jnp.bfloat16),
    "stacked": RNG.normal(size=(3, 6, 4)).astype("f4"),
}
PARAMS["dense"]["kernel"][0, 0] = 90.0
EVEN = mz.spreads.even()


@pytest.mark.parametrize(
    "transform",
    [
        mz.entropy_constrained(0.1),
        mz.entropy_constrained(0.1, layers={"stacked": 0}),
        mz.entropy_constrained(0.2, spread=EVEN, rate_weight=1.0),
        mz.entropy_constrained(1e-9, spread=EVEN),
        mz.entropy_constrained(50.0, spread=EVEN),
        mz.entropy_constrained(0.3, spread=EVEN, rounding=mz.rounding.stochastic(1)),
        mz.chain(mz.prune(sparsity=0.5), mz.entropy_constrained(0.05, spread=EVEN)),
        mz.residual(mz.entropy_constrained(1.0), mz.entropy_constrained(0.1)),
        mz.chain(mz.low_rank(2), mz.entropy_constrained(0.1)),
        mz.chain(mz.wavelet("haar", axes=-1), mz.entropy_constrained(0.1)),
    ],
    ids=str,
)
def test_laws(transform):
    sums = any(name in str(transform) for name in ("Wavelet", "LowRank"))
    mz.testing.check_laws(transform, PARAMS, ulp=16 if sums else 0)


def linear(rows=96):
    model = nn.Dense(6)
    x = jnp.asarray(
        RNG.normal(size=(rows, 5)) @ RNG.normal(size=(5, 10)) + 0.3 * RNG.normal(size=(rows, 10)), "f4"
    )
    params = model.init(jax.random.key(0), x)["params"]
    apply = lambda p, x: model.apply({"params": p}, x)  # noqa: E731
    fisher = mz.trace.fisher_information(apply, params, [x], likelihood="gaussian")
    importance = jax.tree.map(lambda f: f.diagonal, fisher, is_leaf=lambda f: hasattr(f, "diagonal"))
    stats = mz.trace.statistics(apply, params, [x], kinds=("gram",), only="kernel")
    return apply, params, x, {"importance": importance, "stats": stats}


def test_laws_with_data():
    _, params, _, told = linear()
    t = mz.entropy_constrained(
        0.05, spread=mz.spreads.water_filling(), rounding=mz.rounding.error_feedback(), rate_weight=1.0
    )
    both = mz.partition({"fed": t, "told": mz.entropy_constrained(0.05, spread=mz.spreads.by_importance())},
                        {"kernel": "fed", "bias": "told"})  # fmt: skip
    mz.testing.check_laws(both, params, given=told)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-LARGEST, LARGEST) | st.integers(-130, 130), max_size=70))
def test_integers_of_any_size_come_back(values):
    packed = Integers.pack(np.array(values, np.int64))
    assert packed.unpack().tolist() == packed.unpack_host().tolist() == values
    packed.check()
    if not packed.wide.size:
        assert packed.codes.bits == max((max(values, default=0) - min(values, default=0)).bit_length(), 1)


def test_damaged_integers_are_refused():
    packed = Integers.pack(np.array([0, 1000, 3]))
    for wide, low in (
        (packed.wide[:0].astype(np.int64), 0),
        (np.array([1, 2], np.int32), 0),
        (packed.wide, 1 << 40),
    ):
        with pytest.raises(ValueError, match="integers"):
            Integers(packed.codes, wide, low).check()


def test_water_filling_is_the_published_formula():
    _, params, _, told = linear()
    packed = mz.compress(
        params,
        mz.only("kernel", mz.entropy_constrained(0.05, spread=mz.spreads.water_filling(soften=0.0))),
        **told,
    ).params["kernel"]
    gram = np.asarray(told["stats"]["kernel"][0].inputs.gram, np.float64)
    fisher = np.asarray(told["importance"]["kernel"], np.float64)
    h = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(len(gram))
    place = np.argsort(-np.diag(gram))
    # The conditional variance of an input, given those that are rounded after it.
    left = [1.0 / np.linalg.inv(h[np.ix_(place[i:], place[i:])])[0, 0] for i in range(len(place))]
    columns = np.zeros(len(gram))
    columns[place] = 1.0 / np.sqrt(left)
    outputs = fisher.sum(0) / np.trace(gram)
    wanted = 0.05 * columns[:, None] / np.sqrt(outputs)
    found = np.asarray(packed.rows, np.float64) * np.asarray(packed.columns, np.float64)
    np.testing.assert_allclose(found, wanted, rtol=0.14)  # two factors of three bits behind the first
    assert abs(np.mean(np.log(found / wanted))) < 0.02


def test_error_feedback_moves_errors_to_where_they_cost_less():
    apply, params, x, told = linear()
    spread = mz.spreads.water_filling()
    off = {}
    for name, rounding in (("nearest", None), ("fed", mz.rounding.error_feedback())):
        t = mz.only("kernel", mz.entropy_constrained(0.5, spread=spread, rounding=rounding))
        off[name] = float(jnp.sum((apply(mz.decoded(params, t, **told), x) - apply(params, x)) ** 2))
    assert off["fed"] < 0.7 * off["nearest"]


def test_tables_of_words_are_coarser_and_tables_of_positions_are_not():
    table, short = RNG.normal(size=(2048, 4)).astype("f4"), RNG.normal(size=(512, 4)).astype("f4")
    params = {"word_embeddings": {"weight": table}, "position_embeddings": {"weight": short}, "head": table}
    packed = mz.compress(params, mz.entropy_constrained(0.1)).params
    steps = {
        name: float(np.mean(np.asarray(leaf.rows, np.float32)))
        for name, leaf in mz.tree.named_leaves(packed, mz.is_packed)
    }
    assert steps["word_embeddings/weight"] / steps["head"] == pytest.approx(4.0, rel=0.05)
    assert steps["position_embeddings/weight"] / steps["head"] == pytest.approx(1.0, rel=0.05)


def test_magnitudes_shrink_by_what_bits_are_worth():
    params = {"w": RNG.laplace(size=(200, 200)).astype("f4")}
    found = {}
    for weight in (0.0, 1.0, 2.0):
        packed = mz.compress(params, mz.entropy_constrained(2.0, spread=EVEN, rate_weight=weight))
        error = float(np.mean((np.asarray(mz.unpack(packed)["w"]) - params["w"]) ** 2))
        found[weight] = file_sizes(packed).total, error
    assert found[2.0][0] < found[1.0][0] < 0.97 * found[0.0][0]
    assert found[0.0][1] < found[1.0][1] < found[2.0][1]


def test_training_goes_on_from_a_file(tmp_path):
    apply, params, x, told = linear()
    t = mz.only("kernel", mz.entropy_constrained(0.3, spread=mz.spreads.water_filling()))
    mz.save(tmp_path / "m.mz", mz.compress(params, t, **told))
    loaded = mz.load(tmp_path / "m.mz")
    tx = mz.wrap(optax.adam(1e-2), loaded)
    wanted = apply(params, x)
    weights, state = mz.start(tx, mz.unpack(loaded))

    @jax.jit
    def step(weights, state):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((apply(p, x) - wanted) ** 2))(weights)
        updates, state = tx.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    losses = []
    for _ in range(60):
        weights, state, loss = step(weights, state)
        losses.append(float(loss))
    assert min(losses[30:]) < 0.9 * losses[0]
    again = mz.unpack(mz.pack(state, weights))["kernel"]
    np.testing.assert_array_equal(again, mz.params(state, weights)["kernel"])


def test_what_it_refuses():
    _, params, _, told = linear()
    for wrong in ({"step": 0.0}, {"step": True}, {"step": "0.1"}, {"step": 0.1, "spread": "even"},
                  {"step": 0.1, "spread": mz.spreads.even}, {"step": 0.1, "rounding": "gptq"},
                  {"step": 0.1, "rounding": mz.rounding.half_quadratic()},
                  {"step": 0.1, "rate_weight": -1}):  # fmt: skip
        with pytest.raises(TransformError):
            mz.entropy_constrained(**wrong)
    t = mz.entropy_constrained(0.1, spread=mz.spreads.water_filling())
    with pytest.raises(
        TransformError, match=r"needs importance, stats: pass importance=, stats= to mz.compress, or"
    ):
        mz.compress(params, mz.only("kernel", t))
    with pytest.raises(LeafError, match=r"Gram matrix of the inputs of leaf 'bias'"):
        mz.compress(params, t, **told)
    nothing = told | {"importance": jax.tree.map(jnp.zeros_like, told["importance"])}
    with pytest.raises(LeafError, match="importance of leaf 'kernel' is zero everywhere"):
        mz.compress(params, mz.only("kernel", t), **nothing)
    for soften in (-0.1, 1.5, True, "some"):
        with pytest.raises(TransformError, match="soften must be a share"):
            mz.spreads.by_importance(soften=soften)


@pytest.mark.parametrize("layers", [None, 0])
def test_leaves_of_few_weights_get_finer_steps_by_a_power_of_their_number(layers):
    """A layer of a stack counts, not the stack."""
    rng = np.random.default_rng(0)
    params = {n: np.tile(rng.choice([-1.0, 1.0], (1, n, 4)), (3, 1, 1)).astype("f4") for n in (8, 128)}
    steps = []
    for power in (0.0, 0.5):
        spread = mz.spreads.root_deviation(-1, size_power=power)
        packed = mz.compress(params, mz.entropy_constrained(0.01, spread=spread, layers=layers))
        steps.append([float(np.asarray(packed.params[n].rows).max()) for n in params])
    counts = [(1 if layers == 0 else 3) * n * 4 for n in params]
    for plain, powered, count in zip(*steps, counts, strict=True):
        assert powered / plain == pytest.approx(count**0.5, rel=0.07)
    with pytest.raises(TransformError, match="size_power"):
        mz.spreads.root_deviation(size_power=-1)
