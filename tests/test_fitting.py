import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import TransformError
from modelzip_jax.fitting import fit

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": RNG.normal(size=(96, 64)).astype(np.float32), "bias": np.zeros(64, np.float32)},
    "b": {"kernel": RNG.normal(size=(64, 40)).astype(np.float32), "bias": np.zeros(40, np.float32)},
}


def thin(sparsity):
    return mz.only(
        "**/kernel", mz.chain(mz.prune(sparsity=sparsity, allocation="global"), mz.quantize(bits=4))
    )


def saved(packed, path):
    mz.save(path, packed)
    return path.stat().st_size


def test_three_random_budgets(tmp_path):
    largest = file_sizes(mz.compress(PARAMS, thin(0.0))).total
    smallest = file_sizes(mz.compress(PARAMS, thin(0.9999))).total
    for budget in map(int, RNG.integers(smallest + 100, largest, 3)):
        size = saved(fit(PARAMS, thin, bytes=budget), tmp_path / "a.mz")
        assert 0.995 * budget <= size <= budget


def test_the_size_is_that_of_the_file(tmp_path):
    big = {
        "w": RNG.normal(size=(9, 1 << 17)).astype(np.float32),
        "n": np.arange(5),
    }  # raw bytes in two pieces
    for packed in (mz.compress(PARAMS, thin(0.5)), mz.compress(big, mz.only("n*", mz.identity()))):
        assert saved(packed, tmp_path / "a.mz") == file_sizes(packed).total


def test_variables_count_and_travel_along(tmp_path):
    variables = {"mean": RNG.normal(size=300).astype(np.float32)}
    packed = fit(PARAMS, thin, bytes=4000, variables=variables)
    assert 3980 <= saved(packed, tmp_path / "a.mz") <= 4000
    np.testing.assert_array_equal(mz.load(tmp_path / "a.mz").variables["mean"], variables["mean"])


def test_what_fits_as_it_is_stays():
    packed = fit(PARAMS, thin, bytes=1 << 20)
    assert packed.transform == thin(0.0)


def test_levels_in_steps_give_the_largest_that_fits():
    tried = []

    def recipe(level):
        tried.append(level)
        return mz.only("**/kernel", mz.quantize(bits=8 - int(7 * level)))

    sizes = {
        bits: file_sizes(mz.compress(PARAMS, mz.only("**/kernel", mz.quantize(bits)))).total
        for bits in (4, 5)
    }
    packed = fit(PARAMS, recipe, bytes=sizes[5] - 1)
    assert file_sizes(packed).total == sizes[4]
    assert len(tried) <= 40


def test_scores_reach_the_transform():
    scores = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), PARAMS)
    recipe = lambda s: mz.only("**/kernel", mz.prune(mz.scores.given(), sparsity=s))  # noqa: E731
    packed = fit(PARAMS, recipe, bytes=9000, scores=scores)
    kept = np.asarray(mz.unpack(packed)["a"]["kernel"]) != 0
    assert scores["a"]["kernel"][kept].min() > scores["a"]["kernel"][~kept].max()


def test_what_it_refuses():
    with pytest.raises(TransformError, match=r"no file of 300 bytes: the smallest found has \d{3}"):
        fit(PARAMS, thin, bytes=300)
    with pytest.raises(TransformError, match="must be an integer of at least 1, not 0"):
        fit(PARAMS, thin, bytes=0)
    with pytest.raises(TransformError, match="tolerance must be in"):
        fit(PARAMS, thin, bytes=9, tolerance=1.0)
    with pytest.raises(TransformError, match=r"the recipe makes transforms, not 0\.0"):
        fit(PARAMS, lambda level: level, bytes=9)
