"""Crops, flips, standardising and subsets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelzip_jax.errors import DataError
from modelzip_jax.training import data

KEY = jax.random.key(0)


def images(batch=64, dtype=np.uint8):
    return jnp.asarray(np.random.default_rng(0).integers(1, 256, (batch, 8, 6, 3)).astype(dtype))


def test_a_crop_is_a_window_of_the_padded_image():
    x = images()
    cropped = np.asarray(jax.jit(data.random_crop)(KEY, x))
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for image, source in zip(cropped, padded, strict=True):
        windows = {(i, j): source[i : i + 8, j : j + 6] for i in range(9) for j in range(9)}
        found = [offset for offset, window in windows.items() if (window == image).all()]
        assert len(found) == 1
        seen.update(found)
    assert cropped.dtype == np.uint8
    assert len(seen) > 30
    assert {i for i, _ in seen} == {j for _, j in seen} == set(range(9))


def test_a_crop_fills_with_a_level_a_channel():
    cropped = data.random_crop(KEY, jnp.zeros((64, 2, 2, 3), jnp.uint8), padding=2, fill=(1, 2, 3))
    assert {tuple(pixel) for pixel in np.asarray(cropped).reshape(-1, 3).tolist()} == {(0, 0, 0), (1, 2, 3)}


def test_no_padding_is_no_crop():
    np.testing.assert_array_equal(data.random_crop(KEY, images(), padding=0), images())


def test_flips_are_mirrors_of_half_of_the_images():
    x = np.asarray(images(400))
    flipped = np.asarray(jax.jit(data.random_flip)(KEY, x))
    same, mirrored = ((flipped == y).all(axis=(1, 2, 3)) for y in (x, x[:, :, ::-1]))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_keys_decide():
    other = jax.random.key(1)
    for augment in (data.random_crop, data.random_flip):
        np.testing.assert_array_equal(augment(KEY, images()), augment(KEY, images()))
        assert (augment(KEY, images()) != augment(other, images())).any()


def test_standardised_training_images_have_mean_0_and_deviation_1():
    spec = data.spec("digits")
    x = jax.jit(data.normalize)(data.load_split("digits", "train")["inputs"], spec.mean, spec.std)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-3)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    part=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
@example(labels=[0, 1, 2, 3, 3, 3, 3, 3], part=0.625, seed=0)  # One large class among small ones.
def test_subsets_keep_the_shares_of_the_classes(labels, part, seed):
    arrays = {"inputs": np.arange(len(labels)), "labels": np.array(labels)}
    count = max(1, round(part * len(labels)))
    small = data.subset(arrays, part, seed=seed)
    assert len(small["labels"]) == count == len(set(small["inputs"].tolist()))
    np.testing.assert_array_equal(arrays["labels"][small["inputs"]], small["labels"])
    assert (np.diff(small["inputs"]) > 0).all()
    exact = np.bincount(labels, minlength=5) * count / len(labels)
    assert (np.abs(np.bincount(small["labels"], minlength=5) - exact) < 1).all()


def test_subsets_differ_by_seed():
    arrays = data.load_split("digits", "train")
    first, same, other = (data.subset(arrays, 100, seed=seed)["inputs"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_windows_of_text_are_drawn_alike():
    arrays = {"inputs": np.arange(20).reshape(10, 2), "labels": np.arange(20).reshape(10, 2)}
    assert data.subset(arrays, 0.3)["inputs"].shape == (3, 2)


@pytest.mark.parametrize("size", [0, 0.0, 1.5, -1, 11, True, "all"])
def test_impossible_sizes(size):
    with pytest.raises(DataError, match=f"size={size!r} must be"):
        data.subset({"labels": np.zeros(10, int)}, size)
