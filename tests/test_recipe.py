import dataclasses
import json

import pytest

import modelzip_jax as mz
from modelzip_jax.recipe import Opaque, from_plain, opaque_fields, recordable, to_plain

RECIPES = [
    mz.identity(),
    mz.prune(sparsity=0.5),
    mz.prune(sparsity=mz.schedules.cubic(0.9, begin=3, end=7), allocation="global", every=2),
    mz.quantize(3, granularity="group", group_size=7, axis=0, symmetric=False, learned=True, range="mse"),
    mz.only(("a/**", "b"), mz.chain(mz.prune(sparsity=0.25), mz.quantize(4)), min_ndim=2),
    mz.partition({"x": mz.quantize(1), "y": mz.identity()}, {"a": "x", "**": "y"}),
    mz.chain(),
]


@pytest.mark.parametrize("transform", RECIPES, ids=lambda t: type(t).__name__)
def test_recipes_come_back_equal_through_json(transform):
    back = from_plain(json.loads(json.dumps(to_plain(transform))))
    assert back == transform
    assert hash(back) == hash(transform)
    assert repr(back) == repr(transform)
    assert opaque_fields(back) == []


def test_a_function_is_recorded_as_opaque():
    transform = mz.only("**", mz.prune(sparsity=lambda step: 0.5))
    back = from_plain(to_plain(transform))
    assert opaque_fields(back) == ["parts[0][1].sparsity"]
    assert isinstance(back.parts[0][1].sparsity, Opaque)
    assert from_plain(to_plain(back)) == back


def test_a_transform_that_is_not_recordable_is_opaque():
    @dataclasses.dataclass(frozen=True)
    class Mine(mz.Transform):
        pass

    back = from_plain(to_plain(mz.chain(Mine(), mz.quantize(4))))
    assert opaque_fields(back) == ["parts[0]"]
    assert back.parts[1] == mz.quantize(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "Nobody", "fields": {}}, "'Nobody', which is not registered"),
        ({"type": "Identity", "fields": {"x": 1}}, "has the fields"),
        ({"type": "Identity"}, "not a recipe"),
        ({"type": "Identity", "fields": []}, "not a recipe"),
        ({1: 2}, "not a recipe"),
        (b"bytes", "not a recipe"),
        ({"type": "Chain", "fields": {"parts": 5}}, "does not make one"),
    ],
)
def test_data_that_is_no_recipe_is_refused(data, message):
    with pytest.raises(mz.errors.RecipeError, match=message):
        from_plain(data)


def test_a_name_belongs_to_one_class():
    @dataclasses.dataclass(frozen=True)
    class Identity:
        pass

    with pytest.raises(mz.errors.RecipeError, match="'Identity' is registered already"):
        recordable(Identity)


def test_defaults_are_left_out_and_come_back():
    t = mz.prune(sparsity=0.5)
    plain = to_plain(t)
    assert "structure" not in plain["fields"]
    assert from_plain(plain) == t
    other = mz.prune(sparsity=0.5, structure=mz.structures.channel(0))
    assert from_plain(to_plain(other)) == other
