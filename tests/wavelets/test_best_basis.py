import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import LeafError, PatternError, TransformError
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.basis_choice import best_basis, choices
from modelzip_jax.wavelets.fixed_step import quantize_step
from modelzip_jax.wavelets.fusion import fuse, unfuse
from modelzip_jax.wavelets.product import coefficient_dot
from modelzip_jax.wavelets.water_filling import reverse_water_filling

RNG = np.random.default_rng(0)


def smooth(rows, columns):
    t = np.linspace(0, 3, rows)[:, None] + RNG.normal(size=columns)
    return (np.sin(t) + 0.02 * RNG.normal(size=(rows, columns))).astype(np.float32)


PARAMS = {
    "smooth": smooth(96, 40),
    "rough": RNG.normal(size=(40, 40)).astype(np.float32),
    "bias": np.ones(3, "f4"),
}
FEW = [(Basis("wavelet", "haar", 2, (0,)), ()), (Basis("dct", "", 8, (0,)), ())]


@pytest.mark.parametrize("distortion", [1e-3, 1e-2])
def test_choices_meet_the_distortion_and_identity_is_among_them(distortion):
    for name in ("smooth", "rough"):
        x = PARAMS[name]
        found = choices(name, x, distortion, FEW)
        assert [choice.bits for choice in found] == sorted(choice.bits for choice in found)
        assert any(choice.basis is None for choice in found)
        for choice in found:
            decoded = mz.decoded({"w": x}, choice.transform())["w"]
            error = float(np.sum(np.square(decoded - x)) / np.sum(np.square(x)))
            assert error == pytest.approx(choice.error, rel=1e-3)
            assert 0.97 * distortion < error <= 1.001 * distortion
        assert (found[0].basis is None) == (name == "rough")


def test_best_basis_makes_the_file_smaller_at_equal_error(tmp_path):
    best = best_basis(PARAMS, bases=FEW)
    parts = dict(best.parts)
    assert set(parts) == {"smooth", "rough"}
    plain = mz.partition(
        {name: choice.transform() for name in parts for choice in choices(name, PARAMS[name], 1e-3, [])},
        {name: name for name in parts},
    )
    sizes = [mz.save(tmp_path / "m.mz", mz.compress(PARAMS, t)).total for t in (best, plain)]
    assert sizes[0] < 0.9 * sizes[1]
    np.testing.assert_array_equal(parts["rough"].step, dict(plain.parts)["rough"].step)


def test_a_file_that_counts_rows_and_columns_apart_is_smaller_than_one_in_a_basis(tmp_path):
    """The kernel is a little smooth along its columns, but what a file saves most by is the scale of its rows."""
    noise = RNG.normal(size=(128, 128)).cumsum(1) * 0.02 + RNG.normal(size=(128, 128))
    params = {"w": (noise * np.geomspace(0.05, 1.0, 128)[:, None]).astype(np.float32)}
    across = [(Basis("dct", "", 8, (0,)), ()), (Basis("wavelet", "haar", 3, (1,)), ())]
    plain, forced = choices("w", params["w"], 1e-2, [])[0], choices("w", params["w"], 1e-2, across)
    sizes = {
        choice.basis: mz.save(tmp_path / "m.mz", mz.compress(params, choice.transform())).total
        for choice in (plain, *forced)
    }
    assert forced[0].basis is None
    assert sizes[None] == min(sizes.values())
    for choice in forced:
        assert 8 * sizes[choice.basis] == pytest.approx(choice.bits, rel=0.02, abs=8 * 400)


def test_what_noise_saves_by_chance_is_not_worth_a_basis():
    noise = np.random.default_rng(4).normal(size=(512, 512)).astype(np.float32)
    bases = [(Basis("dct", "", 8, (axis,)), ()) for axis in (0, 1)]
    for distortion in (1e-2, 2e-2, 5e-2, 1e-1):
        found = choices("noise", noise, distortion, bases)
        assert found[0].basis is None
        assert min(choice.bits for choice in found) > 0.999 * found[0].bits


def test_all_zeros_and_outliers_fall_back_on_the_weights_as_they_are():
    assert choices("zero", np.zeros((8, 8), np.float32), 1e-3, FEW)[0].error == 0.0
    spiky = np.zeros((64, 8), np.float32)
    spiky[0, 0], spiky[1:, 1:] = 100.0, 0.1 * RNG.normal(size=(63, 7))
    best = choices("spiky", spiky, 1e-6, FEW)[0]
    assert np.isfinite(best.bits)
    mz.compress({"w": spiky}, best.transform())


OUTLIER = RNG.normal(size=(64, 64)).astype(np.float32)
OUTLIER[0, 0] = 200.0
HARD = {
    "outlier": OUTLIER,
    "spread rows": (np.exp(1.5 * RNG.normal(size=(64, 1))) * RNG.normal(size=(64, 64))).astype(np.float32),
    "outliers everywhere": np.where(RNG.random((64, 64)) < 0.02, 300.0, RNG.normal(size=(64, 64))).astype(
        "f4"
    ),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("distortion", [1e-5, 1e-3])
def test_what_eight_bits_and_one_step_do_not_reach_keeps_to_the_distortion(name, distortion):
    x = HARD[name]
    best = choices("x", x, distortion, FEW)[0]
    decoded = mz.unpack(mz.compress({"x": x}, best.transform()))["x"]
    error = float(np.sum(np.square(decoded - x)) / np.sum(np.square(x)))
    assert error <= 1.001 * distortion
    assert error == pytest.approx(best.error, rel=1e-2, abs=1e-9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_part_of_the_error(dtype):
    for distortion in (1e-3, 2e-5):
        x = jnp.asarray(PARAMS["rough"]).astype(dtype)
        decoded = mz.unpack(mz.compress({"x": x}, best_basis({"x": x}, distortion, bases=FEW)))["x"]
        off = np.asarray(decoded, np.float64) - np.asarray(x, np.float64)
        assert np.sum(off**2) <= 1.02 * distortion * np.sum(np.asarray(x, np.float64) ** 2)


def test_the_distortion_asked_for_is_met_by_best_basis_as_a_whole():
    packed = mz.compress(HARD, best_basis(HARD, 1e-3, bases=[]))
    for name, found in mz.unpack(packed).items():
        assert np.sum(np.square(found - HARD[name])) <= 1.001e-3 * np.sum(np.square(HARD[name]))


def test_channels_of_zeros_take_the_step_itself():
    w = np.float32([[0.0, 0.3, 900.0], [0.0, -0.2, 1.0]])
    (state,) = quantize_step(0.5, granularity="channel", axis=-1).init({"w": w}, mz.Context()).state.values()
    np.testing.assert_array_equal(state.step, np.float32([[0.5, 0.5, 900 / 127]]))
    x = OUTLIER.copy()
    x[:, 1] = x[3] = 0.0
    best = choices("x", x, 1e-3, [])[0]
    assert best.groups.kind != "tensor"
    decoded = mz.decoded({"x": x}, best.transform())["x"]
    assert np.sum(np.square(decoded - x)) == pytest.approx(best.error * np.sum(np.square(x)), rel=1e-3)


def test_what_nothing_reaches_stays_lossless():
    x = RNG.normal(size=(64, 64)).astype("f4")
    best = choices("x", x, 1e-9, FEW)[0]
    assert (best.step, best.error) == (0.0, 0.0)
    np.testing.assert_array_equal(mz.unpack(mz.compress({"x": x}, best.transform()))["x"], x)


@pytest.mark.parametrize("basis", [Basis("wavelet", "db2", 2, (0,)), Basis("wavelet", "bior4.4", 2, (0,))])
def test_product_in_the_wavelet_domain_equals_the_rebuilt_one(basis):
    x, w = RNG.normal(size=(3, 20)).astype("f4"), RNG.normal(size=(20, 6)).astype("f4")
    y = coefficient_dot(x, basis.analysis(w), basis)
    np.testing.assert_allclose(y, x @ w, atol=1e-5)


def test_product_with_fewer_coefficients():
    params = {"w": smooth(64, 5)}
    transform = mz.wavelet("sym4", 2, keep=1)
    encoded = transform.init(params, mz.Context())
    coefficients = encoded.latents["w"]
    x = RNG.normal(size=(4, 64)).astype("f4")
    assert coefficients.shape == (16, 5)
    y = jax.jit(lambda x, c: coefficient_dot(x, c, transform.basis))(x, coefficients)
    np.testing.assert_allclose(y, x @ transform.decode(encoded)["w"], atol=1e-4)
    with pytest.raises(LeafError, match="one axis"):
        coefficient_dot(x, coefficients, Basis("dct", "", 4, (0, 1)))
    with pytest.raises(LeafError, match="16 coefficients for 8"):
        coefficient_dot(x[:, :8], coefficients, transform.basis)


def test_fusion_shares_the_mean_and_codes_differences():
    layers = {f"layer_{i}": {"kernel": smooth(16, 4), "bias": np.float32(i)} for i in range(3)}
    fused = fuse(layers, "*/kernel")
    back = unfuse(fused, "*/kernel", layers)
    jax.tree.map(np.testing.assert_array_equal, back, layers)
    shared = mz.only("fused/**", mz.cosines(3, axes=0, keep=1))
    packed = mz.compress(fused, shared)
    mean = np.mean([layer["kernel"] for layer in layers.values()], axis=0)
    for layer in unfuse(mz.unpack(packed), "*/kernel", layers).values():
        np.testing.assert_allclose(layer["kernel"], mean, atol=1e-6)
    assert packed.nbytes == (16 * 4 + 3) * 4
    whole = mz.only("fused/**", mz.chain(mz.cosines(3, axes=0), mz.wavelet("haar", 2, axes=1)))
    restored = unfuse(mz.decoded(fused, whole), "*/kernel", layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), restored, layers)
    with pytest.raises(LeafError, match="would give"):
        unfuse(
            fused, "*/kernel", {"layer_0": layers["layer_0"]["kernel"][:3]} | {"x": {"kernel": jnp.ones(2)}}
        )
    with pytest.raises(PatternError):
        fuse(layers, "nothing")


def test_reverse_water_filling():
    level, bits = reverse_water_filling([16.0, 4.0, 0.1], [1, 1, 2], 3.0)
    assert level == pytest.approx(1.0)
    np.testing.assert_allclose(bits, [2.0, 1.0, 0.0])
    level, bits = reverse_water_filling([1.0, 1.0], [3, 5], 16.0)
    np.testing.assert_allclose(bits, [2.0, 2.0])
    assert reverse_water_filling([0.0, 0.0], [1, 1], 4.0)[0] == 0.0
    with pytest.raises(TransformError, match="bits"):
        reverse_water_filling([1.0], [1], -1.0)
    with pytest.raises(TransformError, match="variances"):
        reverse_water_filling([1.0, -1.0], [1, 1], 1.0)


def test_step_errors():
    with pytest.raises(LeafError, match="reach"):
        quantize_step(0.1, bits=2).init({"w": jnp.ones(3)}, mz.Context())
    with pytest.raises(TransformError, match="one of"):
        quantize_step(0.1, granularity="row")
    with pytest.raises(TransformError, match="positive"):
        quantize_step(0.0)
    with pytest.raises(TransformError, match="bits"):
        quantize_step(1.0, bits=9)
    with pytest.raises(TransformError, match="distortion"):
        best_basis(PARAMS, 0.0)
    with pytest.raises(TransformError, match="no leaf"):
        best_basis(PARAMS, pattern="bias")


@pytest.mark.slow
def test_step_laws():
    for granularity in ("tensor", "channel"):
        transform = quantize_step(0.5, granularity=granularity)
        mz.testing.check_laws(transform, {"w": RNG.normal(size=(4, 3)).astype("f4")}, steps=2)


@pytest.mark.parametrize("scale", [-90, -60, 40, 100])
def test_any_power_of_two_of_the_weights_has_the_same_basis(scale):
    x = np.asarray(jax.random.normal(jax.random.key(0), (16, 16)))
    one, other = best_basis({"w": x}), best_basis({"w": np.ldexp(x, scale)})
    assert [type(part) for _, part in one.parts] == [type(part) for _, part in other.parts]
    expected = np.ldexp(mz.unpack(mz.compress({"w": x}, one))["w"], scale)
    found = mz.unpack(mz.compress({"w": np.ldexp(x, scale)}, other))["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))
