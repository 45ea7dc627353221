"""Files and recipes that an older writer made are read bit for bit."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.recipe import from_plain, to_plain
from modelzip_jax.tree import named_leaves

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
RECIPES = json.loads((GOLDEN / "recipes.json").read_text())


def digest(leaf):
    array = np.asarray(leaf)
    content = np.ascontiguousarray(array).tobytes()
    return [str(array.dtype), list(array.shape), hashlib.sha256(content).hexdigest()[:32]]


def digests(tree):
    return {name: digest(leaf) for name, leaf in named_leaves(tree)}


def test_every_file_has_its_expectation():
    assert {path.stem for path in GOLDEN.glob("*.mz")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_file(name):
    packed = mz.load(GOLDEN / f"{name}.mz")
    assert digests(mz.unpack(packed)) == EXPECTED[name]["params"]
    assert digests(packed.variables) == EXPECTED[name]["variables"]
    assert packed.step == EXPECTED[name]["step"]


@pytest.mark.parametrize("plain", RECIPES, ids=lambda plain: plain["type"])
def test_a_golden_recipe(plain):
    transform = from_plain(plain)
    assert isinstance(transform, mz.Transform)
    assert from_plain(to_plain(transform)) == transform
