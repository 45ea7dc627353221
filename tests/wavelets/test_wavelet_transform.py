import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.packed import Dense
from modelzip_jax.wavelets import coefficients as stored
from modelzip_jax.wavelets import shapes
from modelzip_jax.wavelets.coefficients import Coefficients
from modelzip_jax.wavelets.wavelet_domain import Wavelet, cosines, wavelet

RNG = np.random.default_rng(0)
TREE = {
    "kernel": RNG.normal(size=(9, 4)).astype(np.float32),
    "half": jnp.asarray(RNG.normal(size=(6, 5)), jnp.bfloat16),
    "bias": RNG.normal(size=7).astype(np.float32),
    "scale": np.float32(0.3),
}
SURVEY = mz.chain(
    wavelet("haar", 2, 0, keep=2, gains=(1, 2)),
    mz.prune(sparsity=mz.schedules.cubic(0.6, begin=0, end=3), every=1),
    mz.quantize(bits=4, learned=True),
)
QUANTIZED = mz.quantize(bits=4, granularity="tensor")


@pytest.mark.parametrize(
    "transform",
    [
        wavelet("db2", 2, -1),
        pytest.param(SURVEY, marks=pytest.mark.slow),
    ],
    ids=["alone", "survey"],
)
def test_laws(transform):
    names = ("half", "scale") if isinstance(transform, Wavelet) else ("kernel",)
    tree = {name: TREE[name] for name in names}
    mz.testing.check_laws(transform, tree, steps=2, ulp=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "transform",
    [
        mz.chain(mz.prune(sparsity=0.5), wavelet("bior4.4", 2, 0), QUANTIZED),
        mz.chain(wavelet("sym4", 2, 0, packets=True), QUANTIZED),
        mz.only("kernel", mz.chain(cosines(3, (0, 1), view=(3, 3, 4)), QUANTIZED)),
        mz.chain(wavelet("haar", 1, -1), wavelet("haar", 1, 0), QUANTIZED),
        mz.only(("kernel", "half"), mz.chain(wavelet("bior2.2", 3, (0, 1)), mz.prune(sparsity=0.5))),
    ],
)
def test_laws_at_length(transform):
    mz.testing.check_laws(transform, TREE, ulp=8)


def smooth(rows=64, columns=12):
    t = np.linspace(0, 3, rows)[:, None] + RNG.normal(size=columns)
    return {"w": (np.sin(t) + 0.01 * RNG.normal(size=(rows, columns))).astype(np.float32)}


def test_latents_keep_the_shape_of_their_leaf():
    encoded = wavelet("db4", 3).init({"w": np.ones((20, 6), np.float32)}, mz.Context())
    assert encoded.latents["w"].shape == (20, 6)


def test_keep_stores_the_low_corner_only():
    params = smooth()
    packed = mz.compress(params, wavelet("haar", 3, keep=1))
    assert packed.params["w"].corner == (8, 12)
    assert packed.nbytes == 8 * 12 * 4
    blocks = params["w"].reshape(8, 8, 12)
    np.testing.assert_allclose(
        mz.unpack(packed)["w"].reshape(8, 8, 12), np.repeat(blocks.mean(1, keepdims=True), 8, 1), atol=1e-6
    )


def test_training_moves_coefficients_by_the_pulled_back_gradient():
    transform = wavelet("db2", 2)
    params = smooth(16, 2)
    encoded = transform.init(params, mz.Context())
    grads = jax.grad(lambda z: jnp.sum(transform.decode(encoded._replace(latents=z))["w"] ** 2))(
        encoded.latents
    )
    np.testing.assert_allclose(grads["w"], 2 * encoded.latents["w"], atol=1e-5)  # Orthonormal: as of ‖v‖².


def test_gains_make_steps_of_high_frequencies_coarser():
    params = {"w": RNG.normal(size=(256, 8)).astype(np.float32)}
    transform = mz.chain(wavelet("haar", 1, gains=(1, 8)), mz.quantize(8, granularity="tensor"))
    basis = transform.parts[0].basis
    away = basis.analysis(mz.decoded(params, transform)["w"] - params["w"])
    low, high = (float(np.sqrt(np.mean(away[band.slices] ** 2))) for band in basis.bands((256, 8)))
    assert 6 < high / low < 10


def test_one_step_size_is_reverse_water_filling():
    """Each sub-band's error is that of the step, or its variance where that is smaller."""
    deviations = np.repeat([4.0, 1.0, 0.02, 0.01], 512)
    basis = cosines(4).basis
    params = {"w": np.asarray(basis.synthesis(RNG.normal(size=2048).astype(np.float32) * deviations))}
    decoded = mz.decoded(params, mz.chain(cosines(4), mz.quantize(6, granularity="tensor")))
    codes = basis.analysis(params["w"])
    error = basis.analysis(decoded["w"]) - codes
    step = float(np.max(np.abs(codes))) / 31
    for band, deviation in zip(basis.bands((2048,)), deviations[::512], strict=True):
        expected = step**2 / 12 if deviation > step else deviation**2
        assert np.mean(np.square(error[band.slices])) == pytest.approx(expected, rel=0.25)


def test_sub_bands_with_statistics_of_their_own_make_the_file_smaller(tmp_path):
    """Of a vector, as rows and columns of a matrix tell sub-bands apart, too."""
    params = {"w": smooth(8192, 4)["w"].T.reshape(-1)}
    chained = mz.chain(wavelet("db4", 4), mz.quantize(6, granularity="tensor"))
    packed = mz.compress(params, chained)
    leaf = packed.params["w"]
    assert leaf.codes is not None
    plain = Coefficients(
        leaf.gathered(), None, leaf.gains, leaf.shape, leaf.dtype, leaf.view, leaf.corner, leaf.kind,
        leaf.filter, leaf.levels, leaf.axes,
    )  # fmt: skip
    np.testing.assert_array_equal(leaf.unpack(), plain.unpack())
    sizes = [mz.save(tmp_path / "model.mz", mz.Packed({"w": p}, {}, chained)).total for p in (leaf, plain)]
    assert sizes[0] < 0.9 * sizes[1]
    loaded = mz.load(tmp_path / "model.mz")
    np.testing.assert_array_equal(loaded.params["w"].unpack(), plain.unpack())
    identity = mz.save(tmp_path / "id.mz", mz.compress(params, mz.quantize(6, granularity="tensor"))).total
    assert sizes[0] < 0.5 * identity


def test_damaged_fields_are_refused():
    leaf = mz.compress(smooth(), wavelet("haar", 1)).params["w"]
    assert isinstance(leaf.inner, Dense)

    def changed(**fields):
        names = (
            "inner",
            "codes",
            "gains",
            "shape",
            "dtype",
            "view",
            "corner",
            "kind",
            "filter",
            "levels",
            "axes",
        )
        return Coefficients(**{**{name: getattr(leaf, name) for name in names}, **fields})

    leaf.check()
    for fields in (
        {"axes": (3,)}, {"filter": "db77"}, {"view": (64, 13)}, {"corner": (64, 13)}, {"corner": (64,)},
        {"shape": (5, 5)}, {"levels": -1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"coefficients|axes|filter|levels"):
            changed(**fields).check()


def test_errors():
    params = {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
    with pytest.raises(LeafError, match=r"'b'.*no axes \(0, 1\)"):
        wavelet("haar", 1, (0, 1)).init(params, mz.Context())
    with pytest.raises(LeafError, match="cannot be viewed"):
        wavelet("haar", 1, 0, view=(3, -1)).init(params, mz.Context())
    with pytest.raises(TransformError, match="did you mean"):
        wavelet("db44")
    with pytest.raises(TransformError, match="keep"):
        wavelet(keep=0)
    with pytest.raises(TransformError, match="gains"):
        wavelet(gains=(1.0, 0.0))
    with pytest.raises(LeafError, match="int32"):
        wavelet().init({"w": jnp.arange(4)}, mz.Context())


def test_many_bands_are_placed_and_scaled_as_few_are(monkeypatch):
    rng = np.random.default_rng(5)
    params = {"w": rng.normal(size=(132, 99)).cumsum(0).cumsum(1).astype(np.float32)}
    basis = cosines(6, axes=(0, 1), gains=(1.0, 2.0, 5.0))
    found = []
    for few in (1, 1 << 16):
        for module in (shapes, stored):
            monkeypatch.setattr(module, "FEW_BANDS", few)
        packed = mz.compress(params, mz.chain(basis, mz.quantize(6, granularity="tensor")))
        jax.clear_caches()
        found.append(packed.params["w"])
        found.append(mz.unpack(packed)["w"])
    assert found[0].codes is not None
    np.testing.assert_array_equal(found[0].codes.unpack(), found[2].codes.unpack())
    np.testing.assert_array_equal(found[0].gathered().unpack(), found[2].gathered().unpack())
    np.testing.assert_array_equal(found[1], found[3])
