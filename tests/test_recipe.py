import dataclasses
import json

import pytest

import modelzip_jax as mz
from modelzip_jax import recipe
from modelzip_jax.recipe import Opaque, from_plain, opaque_fields, recordable, recorded, to_plain

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
        ({"type": "Identity", "fields": {"x": 1}}, "has no field 'x': it has none"),
        (
            {"type": "Quantize", "fields": {"bit": 4}},
            "needs 'axis', .* and has no field 'bit': did you mean 'bits'",
        ),
        ({"type": "Quantise", "fields": {}}, "did you mean 'Quantize'"),
        ({"type": "Identity"}, "not a recipe"),
        ({"type": "Identity", "fields": []}, "not a recipe"),
        ({1: 2}, "not a recipe"),
        (b"bytes", "not a recipe"),
        ({"type": "Chain", "fields": {"parts": 5}}, ".parts. cannot be 5"),
    ],
)
def test_data_that_is_no_recipe_is_refused(data, message):
    with pytest.raises(mz.errors.RecipeError, match=message):
        from_plain(data)


@recordable
@dataclasses.dataclass(frozen=True)
class Saliency:
    """Called like a score of ours."""

    power: float = 1.0


def test_a_users_class_never_stands_for_one_of_ours():
    ours, theirs = mz.scores.saliency(), Saliency(2.0)
    assert to_plain(ours)["type"] == "Saliency"
    assert to_plain(theirs) == {"type": f"{__name__}:Saliency", "fields": {"power": 2.0}}
    assert type(from_plain(to_plain(ours))) is type(ours)
    assert from_plain(to_plain(theirs)) == theirs


def test_a_class_may_be_defined_again():
    def define():
        @recordable
        @dataclasses.dataclass(frozen=True)
        class Mine:
            pass

        return Mine

    older, newer = define()(), define()()
    assert type(from_plain(to_plain(older))) is type(newer)


def test_two_classes_of_ours_cannot_have_one_name():
    cls = dataclasses.make_dataclass("Identity", [])
    cls.__module__ = "modelzip_jax.elsewhere"
    with pytest.raises(mz.errors.RecipeError, match="'Identity' is registered already"):
        recordable(cls)


def test_a_class_that_is_not_recordable_is_no_class_of_ours():
    cls = dataclasses.make_dataclass("Identity", [], frozen=True)
    cls.__module__ = "types"
    assert "opaque" in to_plain(cls())


def test_what_a_file_names_and_nobody_knows_is_opaque():
    plain = to_plain(mz.only("w", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4))))
    chain = plain["fields"]["parts"][0][1]
    chain["fields"]["parts"][0]["fields"]["score"] = {"type": "research:Best", "fields": {"k": [1, None]}}
    chain["fields"]["parts"][1]["fields"]["of_a_newer_version"] = True
    with pytest.raises(mz.errors.RecipeError, match="research"):
        from_plain(plain)
    back = recorded(plain)
    assert [place.partition(" ")[0] for place in opaque_fields(back)] == [
        "parts[0][1].parts[0].score", "parts[0][1].parts[1]",
    ]  # fmt: skip
    assert "import the module research first" in opaque_fields(back)[0]
    assert to_plain(back) == plain
    with pytest.raises(mz.errors.RecipeError, match="not a recipe"):
        recorded({"type": "X"})


def test_renamed_classes_are_found(monkeypatch):
    monkeypatch.setitem(recipe.RENAMED, "Nothing", "Identity")
    assert from_plain({"type": "Nothing", "fields": {}}) == mz.identity()


def test_defaults_are_left_out_and_come_back():
    t = mz.prune(sparsity=0.5)
    plain = to_plain(t)
    assert "structure" not in plain["fields"]
    assert from_plain(plain) == t
    other = mz.prune(sparsity=0.5, structure=mz.structures.channel(0))
    assert from_plain(to_plain(other)) == other
