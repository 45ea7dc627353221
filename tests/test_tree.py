import dataclasses

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modelzip_jax import errors
from modelzip_jax import tree as trees
from modelzip_jax.latents import latent_dtype
from modelzip_jax.leaf_checks import all_finite, check_arrays, check_finite, check_floating
from modelzip_jax.patterns import matches, require_matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("kernel", "kernel", True),
        ("kernel", "a/kernel", False),
        ("*", "kernel", True),
        ("*", "a/kernel", False),
        ("**", "a/b/c", True),
        ("**", "kernel", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "a/b/kernel", True),
        ("**/kernel", "a/xkernel", False),
        ("**/kernel", "a/kernel/x", False),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("a/**/kernel", "a/kernel", True),
        ("a/**/kernel", "a/b/c/kernel", True),
        ("a/**/kernel", "a/bkernel", False),
        ("Dense_?/kernel", "Dense_1/kernel", True),
        ("Dense_?/kernel", "Dense_10/kernel", False),
        ("Dense_*/kernel", "Dense_10/kernel", True),
        ("*/kernel", "a/b/kernel", False),
        ("a?c", "a/c", False),
        ("a.c", "abc", False),
        ("a+[0-9]", "aa0", False),
        ("a+[0-9]", "a+[0-9]", True),
        ("kernel", "kernel\n", False),
        ("**", "a\nb/c", True),
        ("*", "a\nb", True),
        ("", "", True),
    ],
)
def test_globs(pattern, name, expected):
    assert matches(pattern, name) is expected


@dataclasses.dataclass
class Pair:
    first: jax.Array
    second: jax.Array


jax.tree_util.register_dataclass(Pair, ["first", "second"], [])


def names(tree):
    return [name for name, _ in trees.named_leaves(tree)]


def test_names_of_containers():
    assert names({"b": 0.0, "a": [1.0, (2.0, 3.0)], "c": {1: 4.0}}) == ["a/0", "a/1/0", "a/1/1", "b", "c/1"]
    assert names(1.0) == [""]
    assert names({"p": Pair(jnp.ones(1), jnp.ones(1))}) == ["p/first", "p/second"]


def test_names_of_models():
    linen = nn.Sequential([nn.Dense(2), nn.Dense(3)]).init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert names(linen) == ["layers_0/bias", "layers_0/kernel", "layers_1/bias", "layers_1/kernel"]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert sorted(names(state)) == ["bias", "kernel"]
    assert sorted(names(trees.plain(state))) == ["bias", "kernel"]
    mlp = eqx.filter(eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0)), eqx.is_array)
    assert names(mlp) == ["layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias"]


def test_only_the_trailing_value_of_a_variable_is_stripped():
    assert names({"value": {"value": 1.0}}) == ["value/value"]


def test_a_pattern_that_matches_nothing_lists_the_paths():
    with pytest.raises(errors.PatternError, match=r"'\*/weight'.*a/kernel, b"):
        require_matches(["**", "*/weight"], ["a/kernel", "b"])
    with pytest.raises(errors.PatternError, match=r"no leaves"):
        require_matches(["**"], [])
    with pytest.raises(errors.PatternError, match=r"\(20 paths\)"):
        require_matches(["x"], [f"p{i}" for i in range(20)])


def test_merge_and_select_are_inverse():
    tree = {"a": 1, "b": [2, 3]}
    treedef = jax.tree.structure(tree)
    chosen = trees.select(tree, [True, False, True], treedef)
    assert chosen == {"a": 1, "b": [trees.Unselected(), 3]}
    assert trees.merge({"a": 0, "b": [9, 0]}, chosen) == {"a": 1, "b": [9, 3]}
    with pytest.raises(errors.TreeError, match="structure"):
        trees.merge({"a": 1}, chosen)


def test_sentinel_and_static_have_no_leaves_and_hash():
    assert jax.tree.leaves([trees.Unselected(), trees.Static("x")]) == []
    assert trees.Unselected() == trees.Unselected() != trees.Static(1)
    assert trees.Static(1) != trees.Static(2)
    assert len({trees.Static(1), trees.Static(1), trees.Unselected(), trees.Unselected()}) == 2
    assert repr((trees.Unselected(), trees.Static("x"))) == "(UNSELECTED, Static('x'))"


@pytest.mark.parametrize("leaf", [lambda x: x, "text", jax.ShapeDtypeStruct((1,), jnp.float32)])
def test_what_is_no_array_is_refused_by_name(leaf):
    with pytest.raises(errors.LeafError, match=r"'layer/act' is a .* not an array"):
        check_arrays({"layer": {"act": leaf, "w": jnp.ones(2)}})


def test_refs_are_refused_by_name():
    with pytest.raises(errors.LeafError, match=r"'w' is a .*Ref"):
        check_arrays({"w": jax.new_ref(jnp.ones(2))})


def test_integer_leaves_are_refused_by_name():
    tree = {"ids": jnp.arange(3), "w": jnp.ones(2)}
    check_arrays(tree)
    with pytest.raises(errors.LeafError, match="prune cannot encode leaf 'ids' of dtype int32"):
        check_floating(tree, "prune")
    with pytest.raises(errors.LeafError, match="complex64"):
        check_floating({"w": jnp.ones(2, jnp.complex64)}, "prune")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_leaves_are_refused_by_name(dtype, bad):
    leaf = jnp.ones((2, 3), dtype).at[1, 1].set(bad)
    with pytest.raises(errors.NonFiniteError, match=r"'a/w' has 1 NaN or infinite values of 6"):
        check_finite({"a": {"w": leaf}, "b": jnp.ones(2), "c": jnp.arange(2)})


def test_finite_numpy_and_empty_leaves_pass():
    check_finite({"a": np.ones(2), "b": jnp.zeros((0, 3)), "c": 1.0, "d": np.arange(3)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype, bad):
    found = jax.jit(all_finite)
    leaves = {
        "scalar": jnp.float32(1.0),
        "bias": jnp.ones(3, dtype),
        "none": jnp.zeros((0, 2)),
        "ids": jnp.arange(2),
    }
    assert bool(found(leaves))
    assert bool(found({}))
    assert not found({**leaves, "scalar": jnp.float32(bad)})
    assert not found({**leaves, "bias": leaves["bias"].at[2].set(bad)})
    assert not found([jnp.ones(2)] * 300 + [jnp.full(1, bad, dtype)])


def test_nbytes_counts_each_dtype():
    assert trees.nbytes({"a": np.zeros(3, np.int64), "b": jnp.zeros(3, jnp.bfloat16), "c": np.zeros(0)}) == 30


def test_latents_of_half_precision_are_float32():
    assert latent_dtype(jnp.bfloat16) == jnp.float32
    assert latent_dtype(jnp.float16) == jnp.float32
    assert latent_dtype(jnp.float32) == jnp.float32


def test_outlines_of_arrays():
    tree = {"a": np.zeros((2, 3)), "b": 1.0, "c": np.arange(3)}
    assert trees.outlines(tree) == [("a", 2, True), ("b", 0, True), ("c", 1, False)]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("**attention**", "**/*attention*/**"),
        ("kernel", "**/kernel"),
        ("attention", "**/attention/**"),
        ("**bias", "**/*bias"),
        ("encoder.attention.kernel", "encoder/attention/kernel"),
        ("encoder/atention/kernel", "encoder/attention/kernel"),
        ("norm*", "**/norm*"),
        ("nothing-like-it", None),
    ],
)
def test_a_pattern_of_nothing_gets_a_suggestion(pattern, meant):
    names = ["encoder/attention/kernel", "encoder/attention/bias", "encoder/norm_0"]
    with pytest.raises(errors.PatternError) as caught:
        require_matches([pattern], names)
    text = str(caught.value)
    assert (f"did you mean {meant!r}?" in text) if meant else ("did you mean" not in text)
    if meant:
        require_matches([meant], names)
