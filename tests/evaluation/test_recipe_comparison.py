"""Recipes side by side, and the front of those that none other beats."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import modelzip_jax as mz
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import EvaluationError

VALUES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(VALUES, st.booleans())
def test_the_front_is_what_no_other_beats(points, lower):
    costs, values = zip(*points, strict=True)
    sign = -1 if lower else 1
    expected = [
        not any(a <= cost and sign * v >= sign * value and (a, v) != (cost, value) for a, v in points)
        for cost, value in points
    ]
    assert mz.evaluation.pareto(costs, values, lower_is_better=lower).tolist() == expected


def test_a_value_of_nan_is_never_on_the_front():
    assert mz.evaluation.pareto([1, 2], [np.nan, 1.0]).tolist() == [False, True]
    with pytest.raises(EvaluationError):
        mz.evaluation.pareto([1, 2], [1.0])


def test_recipes_are_measured_as_they_compress():
    params = {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    recipes = {"four": mz.quantize(4), "two": mz.quantize(2)}
    task = lambda p: {"error": np.square(np.asarray(p["w"]) - params["w"]).mean(axis=0)}  # noqa: E731
    found = mz.evaluation.compare_recipes(params, recipes, task)
    for one in found:
        packed = mz.compress(params, recipes[one.name])
        assert one.file_bytes == file_sizes(packed).total
        error = np.square(np.asarray(mz.unpack(packed)["w"]) - params["w"]).mean()
        assert one.value("error") == pytest.approx(error, rel=1e-5)
        assert one.scores[0].paired
    with pytest.raises(EvaluationError, match="gives no 'accuracy'; it gives error"):
        found[0].value("accuracy")
    with pytest.raises(EvaluationError, match="no recipes"):
        mz.evaluation.compare_recipes(params, {}, task)
