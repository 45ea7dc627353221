import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz

RNG = np.random.default_rng(0)


def tree(dtype=jnp.float32):
    return {
        "kernel": jnp.asarray(RNG.normal(size=(10, 6)), dtype),
        "bias": jnp.asarray(RNG.normal(size=6), dtype),
        "scale": jnp.asarray(0.7, dtype),
    }


def sized(granularity, size):
    return {"group_size": size} if granularity == "group" else {}


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("granularity", "symmetric"), [("channel", True), ("group", False), ("tensor", True)]
)
def test_no_more_values_than_codes(bits, granularity, symmetric):
    t = mz.quantize(bits, granularity=granularity, symmetric=symmetric, axis=-1, **sized(granularity, 4))
    got = np.asarray(mz.decoded({"w": RNG.normal(size=(16, 6)).astype("f4")}, t)["w"])
    columns = {
        "tensor": got.reshape(-1, 1),
        "channel": got,
        "group": got.reshape(4, 4, 6).swapaxes(0, 1)[:, 0],
    }
    assert all(len(np.unique(c)) <= 2**bits for c in columns[granularity].T)


def test_one_symmetric_bit_is_the_sign_times_the_mean():
    w = RNG.normal(size=(8, 3)).astype("f4")
    got = mz.decoded({"w": w}, mz.quantize(1, axis=-1))["w"]
    np.testing.assert_allclose(got, np.sign(w) * np.abs(w).mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes(dtype):
    t = mz.quantize(4, symmetric=False, learned=True)
    params = tree(dtype)
    encoded = t.init(params, mz.Context())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(encoded.latents))
    assert all(x.dtype == dtype for x in jax.tree.leaves(t.decode(encoded)))
    packed = mz.compress(params, t)
    jax.tree.map(np.testing.assert_array_equal, mz.unpack(packed), t.decode(encoded))


def test_memory_is_bits_and_side_information():
    w = RNG.normal(size=(64, 8)).astype("f4")
    size = {"tensor": 1, "channel": 8, "group": 16}
    for granularity, steps in size.items():
        packed = mz.compress(
            {"w": w}, mz.quantize(3, granularity=granularity, axis=-1, **sized(granularity, 32))
        )
        assert packed.nbytes == 512 * 3 // 8 + 4 * steps
        packed = mz.compress(
            {"w": w},
            mz.quantize(3, granularity=granularity, axis=-1, symmetric=False, **sized(granularity, 32)),
        )
        assert packed.nbytes == 512 * 3 // 8 + 8 * steps


def test_the_channel_axis_is_the_one_of_smaller_error():
    w, t = RNG.normal(size=(32, 32)).astype("f4"), mz.quantize(4)
    spread = np.geomspace(0.25, 4.0, 32, dtype="f4")[:, None]
    params = {"rows": w * spread, "columns": w * spread.T}
    state = t.init(params, mz.Context()).state
    assert {name: s.axis.value for name, s in state.items()} == {"rows": 0, "columns": -1}
    found = mz.decoded(params, t)
    for name, best in (("rows", 0), ("columns", -1)):
        error = lambda got, name=name: float(np.sum(np.square(got - params[name])))  # noqa: E731
        other = {"w": params[name]}
        assert error(found[name]) == error(mz.decoded(other, mz.quantize(4, axis=best))["w"])
        assert error(found[name]) < error(mz.decoded(other, mz.quantize(4, axis=-1 - best))["w"])
    traced = jax.jit(lambda p: mz.decoded(p, t))(params)
    last = mz.decoded({"w": params["rows"]}, mz.quantize(4, axis=-1))["w"]
    np.testing.assert_allclose(traced["rows"], last, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"symmetric": "no"}, "symmetric must be True or False, not 'no'"),
        ({"learned": "yes"}, "learned must be True or False"),
        ({"offset": 1}, "offset must be True or False"),
        ({"granularity": 0}, "granularity must be one of"),
        ({"granularity": ""}, "granularity must be one of"),
        ({"axis": (0, 0)}, "twice"),
        ({"layers": (0, 0)}, "twice"),
    ],
)
def test_options_of_another_kind_are_refused(options, words):
    with pytest.raises(mz.errors.TransformError, match=words):
        mz.quantize(4, **options)


def test_numbers_of_numpy_are_numbers():
    """As `for bits in np.arange(2, 9)` gives them."""
    t = mz.quantize(np.int64(4), granularity="group", group_size=np.int32(8), symmetric=np.bool_(False))
    assert t == mz.quantize(4, granularity="group", group_size=8, symmetric=False)
    assert (type(t.bits), type(t.group_size)) == (int, int)


def test_one_axis_by_two_names_is_refused():
    with pytest.raises(mz.errors.LeafError, match="names one twice"):
        mz.compress({"w": np.ones((4, 4), "f4")}, mz.quantize(4, axis=(0, -2)))


def test_weights_that_no_scale_of_levels_reaches_are_refused():
    """They came out ten times too small; masks of the smallest float are such leaves."""
    w = {"w": np.full((4, 4), np.finfo("f4").min, "f4")}
    for grid in (mz.grids.nf4(), mz.grids.mx(), mz.grids.quantile()):
        with pytest.raises(mz.errors.LeafError, match="'w' has weights beyond"):
            mz.compress(w, mz.quantize(grid=grid))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((3, 3, 1, 40), -1),
        ((40, 1, 3, 3), 0),
        ((1, 1, 16, 24), -1),
        ((24, 16, 1, 1), 0),
        ((3, 3, 3, 1, 8), -1),
    ],
)
@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_channels_of_convolutions_are_not_sides_of_the_window(shape, channels, granularity):
    """By the error of weights alone a depthwise kernel had three steps, one for each row of its window."""
    w = {"w": RNG.normal(size=shape).astype("f4")}
    t = mz.quantize(4, granularity=granularity, **sized(granularity, 8))
    assert t.init(w, mz.Context()).state["w"].axis.value == channels
    stacked = {"w": np.stack([w["w"]] * 2)}
    layered = mz.quantize(4, granularity=granularity, layers=0, **sized(granularity, 8))
    assert layered.init(stacked, mz.Context()).state["w"].axis.value == (0, len(shape) if channels else 1)


def test_several_axes_number_the_channels_together():
    w = RNG.normal(size=(3, 8, 5)).astype("f4")
    packed = mz.compress({"w": w}, mz.quantize(4, axis=(0, -1))).params["w"]
    assert packed.step.shape == (1, 15)
    each = [mz.decoded({"w": layer}, mz.quantize(4, axis=-1))["w"] for layer in w]
    np.testing.assert_allclose(packed.unpack(), np.stack(each), rtol=1e-6)


LAYERED = {
    "channel": {},
    "tensor": {"granularity": "tensor"},
    "group": {"granularity": "group", "group_size": 8},
    "rows": {"axis": 0},
    "mse": {"range": "mse"},
    "learned": {"learned": True, "symmetric": False},
}


@pytest.mark.parametrize("options", LAYERED.values(), ids=LAYERED)
@pytest.mark.parametrize("layer", [0, 1])
def test_each_layer_of_a_stack_is_quantized_as_a_tensor_of_its_own(layer, options):
    """Rows spread within each layer, so that "auto" takes them, and layers are of different sizes."""
    spread = np.geomspace(0.1, 4.0, 12, dtype="f4")
    each = {
        "kernel": RNG.normal(size=(3, 12, 12)).astype("f4") * spread[:, None],
        "bias": RNG.normal(size=(3, 12)),
    }
    each = {
        name: x.astype("f4") * np.array([0.1, 1, 10], "f4").reshape(3, *[1] * (x.ndim - 1))
        for name, x in each.items()
    }
    stacked = {name: np.moveaxis(x, 0, layer) for name, x in each.items()}
    t = mz.quantize(4, layers=layer, **options)
    found = {name: np.moveaxis(x, layer, 0) for name, x in mz.decoded(stacked, t).items()}
    for i in range(3):
        alone = mz.decoded({name: x[i] for name, x in each.items()}, mz.quantize(4, **options))
        jax.tree.map(
            lambda ours, x: np.testing.assert_allclose(ours, x, rtol=1e-6),
            {n: x[i] for n, x in found.items()},
            alone,
        )


def test_layers_of_some_leaves():
    params = {"blocks": {"w": RNG.normal(size=(3, 8, 5)).astype("f4"), "scale": np.ones(3, "f4")},
              "head": RNG.normal(size=(8, 5)).astype("f4")}  # fmt: skip
    for granularity, steps in (("channel", 15), ("tensor", 3)):
        t = mz.quantize(4, granularity=granularity, axis=-1, layers={"blocks/*": 0})
        packed = mz.compress(params, t)
        assert packed.params["blocks"]["w"].step.size == steps
        assert packed.params["blocks"]["scale"].step.size == 1
        assert packed.params["head"].step.size == (5 if granularity == "channel" else 1)
        mz.testing.check_laws(t, params)
    with pytest.raises(mz.errors.LeafError, match="'blocks/scale'"):
        mz.compress(params, mz.quantize(4, layers=2))
    with pytest.raises(mz.errors.TransformError, match="counted from the front"):
        mz.quantize(4, layers=-1)


def test_learned_offsets_start_at_the_fixed_grid():
    for symmetric in (True, False):
        fixed, learned = (mz.quantize(3, symmetric=symmetric, learned=on) for on in (False, True))
        params = tree()
        jax.tree.map(np.testing.assert_array_equal, mz.decoded(params, fixed), mz.decoded(params, learned))
        offsets = learned.init(params, mz.Context()).offsets
        assert jax.tree.leaves(offsets)
        assert all(not np.any(x) for x in jax.tree.leaves(offsets))


def test_a_step_stays_positive_and_a_zero_point_an_integer():
    t = mz.quantize(4, symmetric=False, learned=True)
    encoded = t.init(tree(), mz.Context())
    far = jax.tree.map(lambda x: x - 5.3, encoded.offsets)
    decoded = t.decode(encoded._replace(offsets=far))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(decoded))
    zero = jax.tree.map(lambda s: s.zero, encoded.state, is_leaf=lambda x: hasattr(x, "zero"))
    assert all(np.all(z == np.round(z)) for z in jax.tree.leaves(zero))


def regression():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 16)), jnp.float32)
    w = jnp.asarray(rng.standard_t(3, size=(16, 4)), jnp.float32)
    return w, lambda p: jnp.mean((x @ (p["w"] - w)) ** 2)


@pytest.mark.parametrize("symmetric", [True, False])
def test_learned_steps_beat_fixed_ones(symmetric):
    w, loss = regression()
    found = []
    for learned in (False, True):
        t = mz.quantize(2, granularity="tensor", symmetric=symmetric, learned=learned)
        tx = mz.wrap(optax.adam(3e-3), t, offsets_tx=optax.adam(3e-3))
        params, state = mz.start(tx, {"w": w})

        def step(_, carry, tx=tx):
            updates, state = tx.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        first = float(loss(params))
        params, state = jax.jit(lambda *carry: jax.lax.fori_loop(0, 400, step, carry))(params, state)
        found.append(float(loss(mz.params(state, params))))
    assert found[1] < 0.8 * found[0]
    assert found[1] < first


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_channels_of_any_size_keep_within_a_step(bits, symmetric):
    """Zeros exact; a constant, subnormal, huge, one-sided and normal channel beside them."""
    columns = [np.zeros(9), np.full(9, 0.3), RNG.normal(size=9) * 1e-41, RNG.normal(size=9) * 1e37,
               np.abs(RNG.normal(size=9)) + 5, RNG.normal(size=9)]  # fmt: skip
    w = np.stack(columns, 1).astype(np.float32)
    t = mz.quantize(bits, symmetric=symmetric, axis=-1)
    got = np.asarray(mz.unpack(mz.compress({"w": w}, t))["w"], np.float64)
    levels = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    span = np.abs(w).max(0) if symmetric else np.maximum(w.max(0), 0) - np.minimum(w.min(0), 0)
    assert np.isfinite(got).all()
    assert not got[:, 0].any()
    allowed = span.astype(np.float64) / levels * (0.5 if symmetric else 1.0) * 1.001 + 1.2e-38
    assert (np.abs(got - w).max(0) <= allowed).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_weights_have_gradients_at_the_start(bits):
    """w / (max / high) often rounds above high, where weights count as clipped."""
    t = mz.quantize(bits, axis=-1)
    encoded = t.init({"w": jnp.asarray(RNG.normal(size=(64, 4096)), jnp.float32)}, mz.Context())
    grads = jax.grad(lambda w: jnp.sum(t.decode(encoded._replace(latents=w))["w"]))(encoded.latents)
    np.testing.assert_array_equal(grads["w"], 1.0)


ZERO_STARTS = {
    "8 bits": mz.quantize(8), "learned": mz.quantize(4, learned=True), "mse": mz.quantize(4, range="mse"),
    "asymmetric": mz.quantize(4, symmetric=False, learned=True),
    "groups": mz.quantize(4, granularity="group", group_size=4),
    "pruned": mz.chain(mz.prune(sparsity=0.25), mz.quantize(8)),
}  # fmt: skip


@pytest.mark.parametrize("name", ZERO_STARTS)
def test_a_layer_that_starts_at_zero_trains(name):
    """LoRA's B, or a zero-initialised head."""
    x, target = RNG.normal(size=(256, 8)).astype("f4"), 0.2 * RNG.normal(size=(8, 3)).astype("f4")
    first, last = fitted(ZERO_STARTS[name], jnp.zeros((8, 3)), x, lambda step: x @ target, 400)
    assert last < first / (1.5 if name == "pruned" else 4)


def fitted(t, start, x, target, steps):
    """The first and the last loss of a linear regression towards `target(step)`."""
    tx = mz.wrap(optax.adam(1e-2), t, offsets_tx=optax.adam(1e-2))

    @jax.jit
    def step(carry, index):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: jnp.mean((x @ p["w"] - target(index)) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    losses = jax.lax.scan(step, mz.start(tx, {"w": start}), jnp.arange(steps))[1]
    return float(losses[0]), float(losses[-1])


def test_a_step_that_gradients_have_shrunk_to_its_floor_comes_back():
    """200 steps towards zero weights, then 600 towards those of the start."""
    x, w = RNG.normal(size=(64, 8)).astype("f4"), RNG.normal(size=(8, 4)).astype("f4")
    t = mz.quantize(4, learned=True, granularity="tensor")
    _, last = fitted(t, jnp.asarray(w), x, lambda step: jnp.where(step < 200, 0.0, 1.0) * (x @ w), 800)
    assert last < 0.1 * np.mean((x @ w) ** 2)


def test_rate_follows_the_width():
    rates = []
    w = {"w": jnp.asarray(RNG.laplace(size=(128, 4)), jnp.float32)}
    for bits in range(2, 9):
        t = mz.quantize(bits, axis=-1)
        rates.append(float(mz.rate(t, t.init(w, mz.Context()))) / 512)
    assert np.all(np.diff(rates) > 0.5)
    assert rates[-1] < 8.5
    encoded = t.init(w, mz.Context())
    grads = jax.grad(lambda z: mz.rate(t, encoded._replace(latents=z)))(encoded.latents)
    assert np.all(np.isfinite(grads["w"]))


def test_refusals():
    for bad in (0, 9, 2.0, True, "4"):
        with pytest.raises(mz.errors.TransformError, match="bits must be an integer from 1 to 8"):
            mz.quantize(bad)
    with pytest.raises(mz.errors.TransformError, match=r"granularity must be one of .* not 'row'"):
        mz.quantize(4, granularity="row")
    with pytest.raises(mz.errors.TransformError, match=r"a range such as 'max', .* not 'best'"):
        mz.quantize(4, range="best")
    with pytest.raises(mz.errors.TransformError, match="group_size must be an integer of at least 1, not 0"):
        mz.quantize(4, granularity="group", group_size=0)
    with pytest.raises(mz.errors.LeafError, match="leaf 'kernel' has 2 axes, so it has no channel axis 2"):
        mz.compress(tree(), mz.quantize(4, axis=2))
    with pytest.raises(mz.errors.LeafError, match="quantize cannot encode leaf 'ids' of dtype int32"):
        mz.compress({"ids": jnp.arange(4)}, mz.quantize(4))


@pytest.mark.parametrize(
    ("shape", "scaled", "axis"),
    [
        ((100, 10), None, -1),  # Steps of all 100 rows would cost more than they save.
        ((784, 300), None, 0),  # A sixth less error pays for 484 steps more.
        ((64, 512), 0, 0),
        ((512, 64), 1, -1),
        ((256, 128, 1, 1), 0, 0),
    ],
)
def test_auto_weighs_the_bytes_of_steps_against_the_error(shape, scaled, axis):
    rng = np.random.default_rng(0)
    w = rng.normal(size=shape)
    if scaled is not None:
        spread = [1] * len(shape)
        spread[scaled] = -1
        w *= np.exp(rng.normal(size=shape[scaled])).reshape(spread)
    state = mz.quantize(4).init({"w": jnp.asarray(w, jnp.float32)}, mz.Context()).state
    assert state["w"].axis.value == axis


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_the_largest_floats_stay_numbers(bits, symmetric, granularity):
    """Of float32 and bfloat16; masks hold the smallest float there is."""
    t = mz.quantize(bits, symmetric=symmetric, granularity=granularity)
    for dtype in (jnp.float32, jnp.bfloat16):
        w = jnp.triu(jnp.full((8, 8), jnp.finfo(dtype).min, dtype), 1)
        for found in (mz.unpack(mz.compress({"w": w}, t)), jax.jit(lambda w: mz.decoded({"w": w}, t))(w)):
            assert bool(jnp.isfinite(found["w"]).all())


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_one_bit_of_a_leaf_of_zeros_is_unpacked_as_it_is_decoded(granularity):
    """Half of the least step is subnormal."""
    t, w = mz.quantize(1, granularity=granularity), {"w": jnp.zeros((6, 4))}
    np.testing.assert_array_equal(
        mz.unpack(mz.compress(w, t))["w"].view(jnp.uint32), mz.decoded(w, t)["w"].view(jnp.uint32)
    )


def test_layers_are_named_once_for_all_groups_of_leaves(monkeypatch):
    """Large models are compressed some leaves at a time, and not every group has stacked ones."""
    monkeypatch.setattr("modelzip_jax.leaf_packing._GROUP_BYTES", 1)
    params = {"blocks": {"kernel": RNG.normal(size=(2, 4, 3)).astype("f4")}, "kernel": np.ones((4, 3), "f4")}
    packed = mz.compress(params, mz.quantize(4, layers={"blocks/**": 0}))
    assert packed.params["blocks"]["kernel"].step.shape == (1, 6)
    with pytest.raises(mz.errors.PatternError):
        mz.compress(params, mz.quantize(4, layers={"block/**": 0}))
