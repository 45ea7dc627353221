"""Recipes that nobody's transform has: a `RecipeError`, or a transform of the types that its fields have."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import ModelzipError, RecipeError
from modelzip_jax.recipe import from_plain, recorded

ROOT = Path(__file__).parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz, fuzz_recipes = script("fuzz"), script("fuzz_recipes")
RECIPES = json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text())
PARTS = {"type": "Identity", "fields": {}}


def partition(labels, parts=(("selected", PARTS),)):
    return {
        "type": "Partition",
        "fields": {"parts": [list(part) for part in parts], "labels": labels, "min_ndim": 0},
    }


@pytest.mark.parametrize(
    "plain",
    [
        {"type": "Chain", "fields": {"parts": "abc"}},
        {"type": "Chain", "fields": {"parts": [1, 2]}},
        {"type": "Identity", "fields": {1: 0, "a": 0}},
        {"type": "Identity", "fields": {1: 0}},
        {"type": 7, "fields": {}},
        {"type": ["Identity"], "fields": {}},
        {"type": "Wavelet", "fields": {"basis": 3, "view": [], "keep": None, "gains": []}},
        {"type": "Quantize", "fields": {"bits": "4"}},
        {"type": "Quantize", "fields": {"bits": 4.5}},
        {"type": "Prune", "fields": {"score": PARTS, "sparsity": 0.5}},
        partition([["**", "other"]]),
        partition([["**"]]),
        partition("ab"),
        partition([["**", "selected"]], [("selected", PARTS), ("selected", PARTS)]),
        partition([["**", "selected"]], [("selected", 3)]),
        b"\x00",
    ],
    ids=repr,
)
def test_what_is_no_recipe(plain):
    with pytest.raises(RecipeError):
        from_plain(plain)


def test_mutations_of_every_recipe():
    rng = np.random.default_rng(16)
    built = 0
    for _ in range(3000):
        plain = RECIPES[rng.integers(len(RECIPES))]
        for _ in range(rng.integers(1, 3)):
            plain = fuzz.changed(plain, rng, RECIPES)
        for read in (recorded, from_plain):
            try:
                read(plain)
                built += 1
            except ModelzipError:
                pass
    assert built > 300


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_recipes_are_refused_or_valid(count):
    assert fuzz_recipes.run(count, seed=16) == []


def test_a_strategy_of_another_kind_is_no_schedule():
    """It can be called, too, but not with a step."""
    plain = {"type": "Prune", "fields": {"score": {"type": "Magnitude", "fields": {}}, "allocation": "uniform",
             "every": 0, "sparsity": {"type": "Given", "fields": {}}}}  # fmt: skip
    with pytest.raises(RecipeError, match="'sparsity' cannot be"):
        from_plain(plain)
    with pytest.raises(mz.errors.TransformError, match="is no number"):
        mz.prune(sparsity=mz.scores.given())


@pytest.mark.parametrize("step", [-1, 2**31, 2**62])
def test_a_number_of_steps_that_cannot_be_counted(step):
    packed = mz.compress({"w": np.ones((4, 4), np.float32)}, mz.quantize(4))
    packed = mz.Packed(packed.params, {}, packed.transform, step)
    with pytest.raises(RecipeError, match="32 bits"):
        mz.start(mz.wrap(optax.sgd(0.1), packed.transform, resume=packed), {"w": np.ones((4, 4), np.float32)})
