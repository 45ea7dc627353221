"""Trellis-coded quantization: the search finds the best path, files hold it, and it obeys the laws."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzip_jax as mz
from modelzip_jax.coding.state_parts import ByState, by_state
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import FormatError, TransformError
from modelzip_jax.packed import Bits
from modelzip_jax.quantization.trellis.codes import TrellisCodes
from modelzip_jax.quantization.trellis.leaf import index_costs
from modelzip_jax.quantization.trellis.lines import Lines
from modelzip_jax.quantization.trellis.machine import (
    POLYNOMIALS,
    following,
    index_of,
    integer_of,
    preceding,
)
from modelzip_jax.quantization.trellis.viterbi import in_256ths, integers, integers_on_host

RNG = np.random.default_rng(11)
EVEN = mz.spreads.even()
PARAMS = {
    "kernel": RNG.normal(size=(40, 24)).astype("f4"),
    "window": RNG.normal(size=(3, 3, 5, 20)).astype("f4"),
    "half": jnp.asarray(RNG.normal(size=(2, 17, 5)), jnp.bfloat16),
    "bias": RNG.normal(size=24).astype("f4"),
    "empty": np.zeros((0, 40), "f4"),
    "zeros": np.zeros((20, 3), "f4"),
}
PARAMS["kernel"][3, 3] = 900.0


@pytest.mark.parametrize("states", POLYNOMIALS)
def test_a_state_is_reached_by_one_even_and_one_odd_index(states):
    before = preceding(states)
    for odd in (0, 1):
        np.testing.assert_array_equal(following(before[odd], odd, states), np.arange(states))
        assert not (before[odd, : states // 2] & 1).any()
        assert (before[odd, states // 2 :] & 1).all()


@given(st.integers(-(2**20), 2**20), st.integers(0, 1))
def test_an_index_is_known_by_its_integer(k, state):
    assert index_of(integer_of(k, state)) == k


def allowed(line, states):
    """All integers near the numbers of a line that the trellis allows, with their squared errors."""
    paths = [((), 0, 0.0)]
    for x in line:
        near = range(int(x) - 5, int(x) + 6)
        paths = [
            ((*path, n), following(state, index_of(n) & 1, states), error + (x - n) ** 2)
            for path, state, error in paths
            for n in near
            if integer_of(index_of(n), state) == n
        ]
    return [(path, error) for path, _, error in paths]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-6, 6, width=16), min_size=1, max_size=4), st.sampled_from([4, 8, 64]))
def test_no_allowed_path_is_nearer(line, states):
    line = [round(x * 256) / 256 for x in line]
    found = integers_on_host(in_256ths(np.float32(line)[:, None], np), None, states)[:, 0]
    errors = dict(allowed(line, states))
    assert errors[tuple(found.tolist())] == min(errors.values())


@pytest.mark.parametrize("states", POLYNOMIALS)
@pytest.mark.parametrize("worth", [0.0, 0.3])
def test_host_and_device_find_the_same(states, worth):
    u = np.float32(RNG.normal(size=(37, 200)) * 2)
    costs = None if not worth else index_costs(jnp.asarray(u), worth)
    x = in_256ths(u, np)
    np.testing.assert_array_equal(x, in_256ths(jnp.asarray(u), jnp))
    found = integers_on_host(x, None if costs is None else np.asarray(costs), states)
    np.testing.assert_array_equal(found, jax.jit(integers, static_argnums=2)(x, costs, states))
    # What is allowed is its own nearest.
    np.testing.assert_array_equal(integers_on_host(in_256ths(np.float32(found), np), None, states), found)
    many = np.tile(x, (1, 50))[:, :5000]
    np.testing.assert_array_equal(np.asarray(integers(jnp.asarray(many), costs, states))[:, :200], found)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 3)), st.integers(1, 5),
    st.sampled_from(list(POLYNOMIALS)), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 200, 2**20]),
)  # fmt: skip
def test_codes_come_back(cube, run, states, seed, size):
    lines = Lines(*cube, run, states)
    values = np.zeros(cube, np.int32)
    state = np.zeros((cube[0], lines.runs, cube[2]), int)
    rng = np.random.default_rng(seed)
    for reach, at in lines.positions():
        k = rng.integers(-size, size + 1, values[at].shape)
        values[at] = integer_of(k, state[:, :reach])
        state[:, :reach] = following(state[:, :reach], k & 1, states)
    packed = TrellisCodes.pack(values, lines)
    packed.check()
    np.testing.assert_array_equal(packed.unpack_host(), values.reshape(-1))


def in_parts(states=8, shape=(64, 96)):
    w = RNG.normal(size=shape).astype("f4") * np.exp(RNG.normal(size=shape[-1]))
    packed = mz.compress({"w": w.astype("f4")}, mz.entropy_constrained(0.1, spread=EVEN, states=states))
    held = packed.params["w"].codes
    assert isinstance(held, TrellisCodes)
    return held, by_state(held, shape[0])


def test_codes_by_states_come_back():
    held, found = in_parts()
    assert isinstance(found.codes, ByState)
    np.testing.assert_array_equal(found.codes.in_order(found).unpack_host(), held.codes.unpack_host())
    one = dataclasses.replace(
        found, codes=dataclasses.replace(found.codes, row_class=None, column_class=None)
    )
    with pytest.raises(FormatError, match="classes by states"):
        one.codes.in_order(one)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"row_class": np.zeros(64, np.int32)}, "no bytes"),
        ({"row_class": np.zeros(63, np.uint8)}, "rows, columns, or both"),
        ({"row_class": np.full(64, 9, np.uint8)}, "classes by states"),
        ({"parts": (0, 1, 2)}, "classes by states"),
        ({"parts": (7, -1)}, "classes by states"),
        ({"codes": Bits.pack(np.zeros(64 * 96, np.uint8), 1)}, "one width"),
        ({"codes": Bits.pack(np.zeros(64 * 95, np.uint8), 4)}, "along"),
    ],
)
def test_parts_that_do_not_fit(changes, said):
    _, found = in_parts()
    with pytest.raises(FormatError, match=said):
        dataclasses.replace(found.codes, **changes).in_order(found)


def test_parts_of_other_lengths_than_states_ask_for():
    _, found = in_parts()
    other = dataclasses.replace(found, low=found.low + 1)
    with pytest.raises(FormatError, match="their states ask for"):
        other.codes.in_order(other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wide": np.zeros(1, np.int64)}, "int64"),
        ({"wide": np.full(1, 2**22, np.int32)}, "beyond"),
        ({"wide": np.full(1, 3, np.int32)}, "other places"),
        ({"lines": (64, 95, 1)}, "indices along"),
        ({"low": 2**22}, "beyond"),
        ({"codes": Bits.pack(np.zeros(3, np.uint8), 3)}, "3 indices"),
    ],
)
def test_codes_that_do_not_fit(changes, said):
    held, _ = in_parts()
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(held, **changes).check()


@pytest.mark.parametrize(
    "fields",
    [{"states": 5}, {"states": True}, {"run": 0}, {"run": 1 << 20}, {"lines": (1, 2)}, {"lines": (1, -2, 3)}],
)
def test_claims_out_of_bounds(fields):
    told = {"lines": (1, 2, 3), "run": 4, "states": 8, "low": 0, **fields}
    with pytest.raises(ValueError, match="a trellis of"):
        TrellisCodes.claims(told)


TRANSFORMS = [
    mz.entropy_constrained(0.1, states=8, rate_weight=1.0, layers={"half": 0}),
    mz.chain(mz.prune(sparsity=0.5), mz.entropy_constrained(0.05, spread=EVEN, states=4)),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_laws(transform):
    mz.testing.check_laws(transform, {name: PARAMS[name] for name in ("half", "bias", "empty")})


def test_which_leaves_have_a_trellis():
    packed = mz.compress(PARAMS, mz.entropy_constrained(0.1, spread=EVEN, states=8)).params
    found = {name: type(leaf.codes) is TrellisCodes for name, leaf in packed.items()}
    # One axis, no weights, and nothing but zeros: by themselves.
    plain = {"bias", "empty", "zeros"}
    assert found == {name: name not in plain for name in PARAMS}
    assert [packed[name].codes.lines for name in ("window", "half")] == [(45, 20, 1), (2, 17, 5)]
    coarse = mz.compress(PARAMS, mz.entropy_constrained(2.0, spread=EVEN, states=8)).params["window"]
    assert not isinstance(coarse.codes, TrellisCodes)
    masked = mz.compress(PARAMS, TRANSFORMS[1]).params["window"]
    assert not isinstance(masked.inner.codes, TrellisCodes)


@pytest.mark.parametrize("step", [0.3, 0.8])
def test_a_smaller_file_at_the_same_error(step):
    params = {"w": np.random.default_rng(5).normal(size=(300, 256)).astype("f4")}

    def came_to(step, **options):
        packed = mz.compress(params, mz.entropy_constrained(step, spread=EVEN, **options))
        return file_sizes(packed).total, float(
            np.mean((np.asarray(mz.unpack(packed)["w"]) - params["w"]) ** 2)
        )

    plain, error = came_to(step, rate_weight=0.5)
    for states, share in ((8, 0.97), (32, 0.965)):
        bytes_, found = came_to(step, states=states, rate_weight=0.5)
        # Bits by which the other error would change the size, at 6 dB a bit.
        bits = 8 * bytes_ / params["w"].size + 0.5 * np.log2(found / error)
        assert bits < share * 8 * plain / params["w"].size


def linear(width=12, outputs=40):
    x = jnp.asarray(
        RNG.normal(size=(200, 5)) @ RNG.normal(size=(5, width)) + 0.2 * RNG.normal(size=(200, width)), "f4"
    )
    params = {"kernel": jnp.asarray(RNG.normal(size=(width, outputs)), "f4")}
    apply = lambda p, x: x @ p["kernel"]  # noqa: E731
    stats = mz.trace.statistics(apply, params, [x], kinds=("gram",))
    return apply, params, x, stats


@pytest.mark.parametrize("both", [False, True])
def test_error_feedback_along_lines(both):
    apply, params, x, stats = linear(outputs=160 if both else 40)
    mixing = jnp.asarray(RNG.normal(size=(160, 160)) * 0.1 + np.eye(160), "f4")
    run = (lambda p, x: apply(p, x) @ mixing) if both else apply
    told = {"stats": stats}
    if both:
        told["curvature"] = mz.trace.fisher_information(
            run, params, [x], likelihood="gaussian", kinds=("outputs",)
        )
    errors = {}
    for name, rounding in (("nearest", None), ("fed", mz.rounding.error_feedback())):
        for states in (1, 8):
            t = mz.entropy_constrained(0.3, spread=EVEN, rounding=rounding, states=states)
            packed = mz.compress(params, t, **(told if rounding else {}))
            assert isinstance(packed.params["kernel"].codes, TrellisCodes) == (states > 1)
            found = run(mz.unpack(packed), x) - run(params, x)
            errors[name, states] = float(jnp.mean(jnp.square(found)))
            if rounding is not None and states > 1 and not both:
                mz.testing.check_laws(t, params, given=told)
    assert errors["fed", 8] < 0.5 * errors["nearest", 8]
    assert errors["fed", 8] < 1.25 * errors["fed", 1]


@pytest.mark.parametrize("outputs", [100, 130])
def test_feedback_of_both_sides_reduces_to_one(outputs):
    apply, params, x, stats = linear(outputs=outputs)
    t = mz.entropy_constrained(0.3, spread=EVEN, rounding=mz.rounding.error_feedback(), states=4)
    # Outputs that err by themselves have nothing to make up for.
    curvature = mz.trace.fisher_information(apply, params, [x], likelihood="gaussian", kinds=("outputs",))
    held = curvature["kernel"]
    apart = dataclasses.replace(held.factors[0], outputs=jnp.eye(outputs))
    curvature = {"kernel": dataclasses.replace(held, factors=(apart,))}
    both = mz.compress(params, t, stats=stats, curvature=curvature)
    # The same runs, each output by itself.
    run = both.params["kernel"].codes.run
    assert run == outputs // 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelzip_jax.quantization.entropy_constraint.RUN", run)
        alone = mz.compress(params, t, stats=stats)
    found, wanted = (np.asarray(mz.unpack(each)["kernel"]) for each in (both, alone))
    # Targets that lie half-way by chance go up in one and down in the other, and what follows makes up for that.
    assert np.mean(found == wanted) > 0.95


def test_kernels_whose_outputs_are_no_lines():
    x = jnp.asarray(RNG.normal(size=(50, 20)), "f4")
    params = {"turned": jnp.asarray(RNG.normal(size=(6, 20)), "f4")}
    apply = lambda p, x: x @ p["turned"].T  # noqa: E731
    t = mz.entropy_constrained(0.1, spread=EVEN, rounding=mz.rounding.error_feedback(), states=8)
    packed = mz.compress(params, t, calibrate=(apply, [x]))
    assert not isinstance(packed.params["turned"].codes, TrellisCodes)


def test_training_goes_on_from_the_file(tmp_path):
    x = jnp.asarray(RNG.normal(size=(64, 20)), "f4")
    params = {"kernel": jnp.asarray(RNG.normal(size=(20, 32)), "f4")}
    wanted = 1.5 * x @ params["kernel"]
    mz.save(tmp_path / "a.mz", mz.compress(params, mz.entropy_constrained(0.5, spread=EVEN, states=4)))
    packed = mz.load(tmp_path / "a.mz")
    optimizer = mz.wrap(optax.adam(3e-2), packed.transform, resume=packed)
    params, state = mz.start(optimizer, mz.unpack(packed))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: jnp.mean(jnp.square(x @ p["kernel"] - wanted)))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(30):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_array_equal(mz.unpack(mz.pack(state, params))["kernel"], params["kernel"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"states": 5}, r"trellises of \[4, 8, 16, 32, 64\] states, not 5"),
        ({"states": True}, "states, not True"),
        ({"states": "8"}, "states, not '8'"),
        ({"states": 8, "rounding": mz.rounding.ada_round(3)}, "which AdaRound does not know of"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(TransformError, match=said):
        mz.entropy_constrained(0.1, **options)


def test_under_jit_every_leaf_with_lines_has_a_trellis():
    t = mz.entropy_constrained(2.0, spread=EVEN, states=8)
    w = {"w": jnp.asarray(PARAMS["window"])}
    init = lambda w: t.init(w, mz.Context())  # noqa: E731
    assert jax.jit(init)(w).state["w"].lines.value == Lines(45, 20, 1, 128, 8)
    assert init(w).state["w"].lines.value is None


def test_all_lengths_of_lines_decode_on_a_device():
    for length, states in itertools.product((16, 129, 257), (4, 32)):
        w = {"w": jnp.asarray(RNG.normal(size=(2, length)), "f4")}
        packed = mz.compress(w, mz.entropy_constrained(0.1, spread=EVEN, states=states))
        np.testing.assert_array_equal(jax.jit(mz.unpack)(packed)["w"], mz.unpack(packed)["w"])
