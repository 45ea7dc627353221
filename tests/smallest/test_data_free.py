"""The method without data: which leaves are rounded, how finely, and what is freed meanwhile."""

import gc
import weakref

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import modelzip_jax as mz
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import TransformError
from modelzip_jax.smallest.one_axis import coarsest_steps
from modelzip_jax.tree import named_leaves

RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def unpacked(params, **options):
    return jax.tree.map(np.asarray, mz.unpack(mz.compress(params, mz.smallest(**options))))


NETWORK = {
    "conv": {"kernel": normal(3, 3, 16, 32), "bias": normal(32, scale=0.1)},
    "norm": {"weight": 1 + normal(32, scale=0.2), "bias": normal(32)},
    "dense": {"kernel": normal(512, 128, scale=0.05), "bias": normal(128, scale=0.01)},
}


def test_biases_and_scales_are_rounded_finely():
    found = unpacked(NETWORK)
    for (name, was), (_, now) in zip(named_leaves(NETWORK), named_leaves(found), strict=True):
        off = np.sqrt(np.mean((now - was) ** 2)) / np.std(was)
        assert 0 < off < (0.06 if was.ndim > 1 else 0.02), name


def test_they_are_never_coarser_than_without_a_target():
    coarse = mz.compress(NETWORK, mz.smallest(bytes=10_000))
    found = jax.tree.map(np.asarray, mz.unpack(coarse))
    assert coarse.metadata["smallest"]["step"] > 1.0
    np.testing.assert_array_equal(found["norm"]["weight"], unpacked(NETWORK)["norm"]["weight"])


def test_what_might_be_anything_stays_lossless():
    """Variances over decades, means, counters, frequencies, and scales of which a channel has died."""
    odd = {
        "running_var": np.logspace(-9, 3, 32, dtype=np.float32), "running_mean": normal(32),
        "num_batches_tracked": np.int64(7), "inv_freq": 10_000.0 ** -np.linspace(0, 1, 32, dtype=np.float32),
        "weight": np.append(np.float32(1e-6), 1 + normal(31, scale=0.1)), "temperature": np.float32(0.07),
        "ones": np.ones(32, np.float32), "moving_variance": 1 + np.abs(normal(32)), "absmax": np.abs(normal(32)),
    }  # fmt: skip
    found = unpacked({**NETWORK, "odd": odd})["odd"]
    for name, was in odd.items():
        np.testing.assert_array_equal(found[name], was, name)


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(2.0**-40, 2.0**20, width=32)),
    st.sampled_from([1.0, -1.0]),
    st.sampled_from(["scale", "weight", "gamma"]),
)
@settings(max_examples=40, deadline=None)
def test_numbers_of_one_sign_keep_it_and_change_little(x, sign, name):
    x = np.float32(sign) * x
    found = unpacked({"kernel": NETWORK["dense"]["kernel"], name: x})[name]
    np.testing.assert_allclose(found, x, rtol=0.04)


def test_steps_of_one_axis_in_words():
    found = coarsest_steps({"a": {"bias": np.float32([-1, 3])}, "b": {"bias": np.float32([np.nan, -1])}})
    assert found == {"a/bias": np.inf}


def test_leaves_of_few_weights_are_finer():
    params = {"few": normal(16, 16), "many": normal(512, 512)}
    found = unpacked(params)
    few, many = (float(np.sqrt(np.mean((found[n] - params[n]) ** 2))) for n in ("few", "many"))
    assert many / few == pytest.approx((512 / 16) ** 0.5, rel=0.15)


def test_small_tables_are_finer_and_those_of_words_coarser():
    params = {
        "positions": {"embedding": normal(512, 64)}, "dense": {"kernel": normal(512, 64)},
        "words_embedding": normal(4096, 64),
    }  # fmt: skip
    found = unpacked(params)
    errors = [
        float(np.sqrt(np.mean((now - was) ** 2)))
        for (_, was), (_, now) in zip(named_leaves(params), named_leaves(found), strict=True)
    ]
    dense, positions, words = errors
    assert dense / positions == pytest.approx(4.0, rel=0.2)
    assert words / dense == pytest.approx(3.0 * 8**0.25, rel=0.2)


def test_what_is_chosen():
    for options, changed in (
        ({"only": "**/kernel"}, {"conv/kernel", "dense/kernel"}),
        ({"only": ("dense/*", "norm/bias"), "keep": "dense/kernel"}, {"dense/bias", "norm/bias"}),
        ({"min_ndim": 2}, {"conv/kernel", "dense/kernel"}),
        ({"min_ndim": 4}, {"conv/kernel"}),
        ({"min_ndim": 5}, set()),
    ):
        found = unpacked(NETWORK, **options)
        pairs = zip(named_leaves(NETWORK), named_leaves(found), strict=True)
        assert {name for (name, was), (_, now) in pairs if (was != now).any()} == changed
        assert mz.smallest(**options).encoded_names(NETWORK, calibrated=False) == changed
    with pytest.raises(mz.errors.PatternError, match="nowhere"):
        unpacked(NETWORK, only="nowhere")


def test_pruned_before_and_goes_on_training_so(tmp_path):
    search = mz.smallest(bytes=20_000, before=mz.prune(sparsity=0.7))
    packed = mz.compress(NETWORK, search)
    assert 19_800 <= file_sizes(packed).total <= 20_000
    mz.save(tmp_path / "m.mz", packed)
    loaded = mz.load(tmp_path / "m.mz")
    found = mz.unpack(loaded)
    assert np.mean(np.asarray(found["dense"]["kernel"]) == 0) >= 0.699
    assert np.all(np.asarray(found["norm"]["bias"]) != 0)
    transform, encoded = mz.resume(loaded)
    np.testing.assert_array_equal(transform.decode(encoded)["dense"]["kernel"], found["dense"]["kernel"])
    apply = lambda p, x: x @ p["dense"]["kernel"]  # noqa: E731
    with pytest.raises(TransformError, match="before= goes without calibrate="):
        mz.compress(NETWORK, search, calibrate=(apply, [normal(4, 512)]))


def test_tries_are_told():
    told = []
    packed = mz.compress(NETWORK, mz.smallest(bytes=30_000, tried=lambda *each: told.append(each)))
    assert [number for number, _, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][1] == file_sizes(packed).total
    assert {drop for _, _, drop in told} == {None}
    told.clear()
    score = lambda p: -np.square(np.asarray(p["dense"]["kernel"]) - NETWORK["dense"]["kernel"]).mean(0)  # noqa: E731
    mz.compress(NETWORK, mz.smallest(max_drop=1e-6, measure=score, tried=lambda *each: told.append(each)))
    assert len(told) > 1
    assert all(size is None and drop >= 0 for _, size, drop in told)


def test_what_it_refuses():
    for wrong in ({"only": 3.0}, {"only": (1,)}, {"min_ndim": -1}, {"min_ndim": 1.5}, {"before": mz.quantize(4)},
                  {"before": "prune"}, {"tried": 3}):  # fmt: skip
        with pytest.raises((TransformError, TypeError)):
            mz.smallest(**wrong)


def test_nothing_to_encode_is_no_error_where_nothing_is_asked_for():
    params = {"n": np.arange(4), "b": np.float32([0.5])}
    found = unpacked(params)
    np.testing.assert_array_equal(found["n"], params["n"])
    np.testing.assert_array_equal(found["b"], params["b"])


def test_each_leaf_is_freed_once_it_is_packed():
    """What the caller does not hold: of 8 leaves of 3 MB at most 4 are left at the end."""
    held = [{f"w{i}": normal(3 << 9, 1 << 9) for i in range(8)}]
    alive = [weakref.ref(leaf) for leaf in held[0].values()]
    counts = []

    def progress(name, size):
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))

    mz.compress(held.pop(), mz.smallest(), progress=progress)
    assert len(counts) == 8
    assert counts[0] >= 7
    assert counts[-1] <= 4


def test_scales_and_biases_of_stacked_layers_are_no_kernels():
    rng = np.random.default_rng(0)
    params = {
        "blocks": {
            "kernel": rng.normal(size=(3, 32, 32)).astype("f4"),
            "norm": {
                "scale": rng.normal(1, 0.1, (3, 32)).astype("f4"),
                "bias": rng.normal(size=(3, 32)).astype("f4"),
            },
        }
    }
    packed = mz.unpack(mz.compress(params, mz.smallest(before=mz.prune(sparsity=0.5))))["blocks"]
    assert np.mean(np.asarray(packed["kernel"]) == 0) > 0.45
    for name in ("scale", "bias"):
        error = np.abs(np.asarray(packed["norm"][name]) - params["blocks"]["norm"][name])
        assert error.max() < 0.03
