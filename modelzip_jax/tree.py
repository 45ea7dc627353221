"""Leaf paths, pattern selection and the static nodes that ride along in state pytrees."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from modelzip_jax.errors import LeafError, TreeError
from modelzip_jax.suggestions import listed

__all__ = [
    "Leaf",
    "PyTree",
    "Static",
    "Unselected",
    "absent",
    "aligned",
    "leaf_name",
    "merge",
    "named_leaves",
    "nbytes",
    "outlines",
    "overlay",
    "plain",
    "restored",
    "restructured",
    "select",
]

PyTree = Any
"""Any tree of containers that JAX knows, with arrays for leaves."""

Class = TypeVar("Class", bound=type)


static_nodes: list[type] = []
"""The classes that are structure wherever they stand in a pytree: they have no leaves."""


def static_node(cls: Class) -> Class:
    """Makes a hashable class a static pytree node."""
    static_nodes.append(cls)
    return jax.tree_util.register_static(cls)


@static_node
class Static:
    """A hashable value carried in a pytree's structure: it has no leaves and never traces.

    >>> jax.tree.leaves((Static("bfloat16"), 1))
    [1]
    """

    __slots__ = ("value",)
    value: Any

    def __init__(self, value: Hashable):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash((Static, self.value))

    def __repr__(self) -> str:
        return f"Static({self.value!r})"


@static_node
class Unselected:
    """Stands where a leaf has no latent, because no transform selected it. It has no leaves.

    >>> jax.tree.map(abs, {"a": -1, "b": Unselected()})
    {'a': 1, 'b': UNSELECTED}
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unselected)

    def __hash__(self) -> int:
        return hash(Unselected)

    def __repr__(self) -> str:
        return "UNSELECTED"


UNSELECTED = Unselected()


def segment(key: Any) -> str:
    """The name of one step of a key path."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def leaf_name(key_path: Sequence[Any]) -> str:
    """A leaf's name: its key path joined by "/", without the ".value" of an NNX variable.

    >>> paths, _ = jax.tree_util.tree_flatten_with_path({"Dense_0": {"kernel": 1.0}})
    >>> leaf_name(paths[0][0])
    'Dense_0/kernel'
    """
    keys = list(key_path)
    if keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return "/".join(segment(key) for key in keys)


class Leaf(NamedTuple):
    """What selection looks at: a leaf's path, its number of axes, and whether it is floating-point.

    >>> Leaf("Dense_0/kernel", ndim=2)
    Leaf(name='Dense_0/kernel', ndim=2, floating=True)
    """

    name: str
    ndim: int
    floating: bool = True


def outlines(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[Leaf]:
    """The `Leaf` of every array (or packed array) in the tree, in flattening order.

    >>> outlines({"n": np.zeros((), int), "w": jnp.zeros((2, 3))})
    [Leaf(name='n', ndim=0, floating=False), Leaf(name='w', ndim=2, floating=True)]
    """
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [Leaf(leaf_name(path), *_look(x)) for path, x in paths]


def _look(leaf: Any) -> tuple[int, bool]:
    """Axes of an array or packed array, and whether it is floating-point (what is encoded always is)."""
    dtype = getattr(leaf, "dtype", None) or getattr(getattr(leaf, "array", leaf), "dtype", None)
    ndim = len(leaf.shape) if hasattr(leaf, "shape") else np.ndim(leaf)
    if dtype is None and not is_array(leaf):
        return ndim, True
    return ndim, bool(jnp.issubdtype(dtype if dtype is not None else jnp.result_type(leaf), jnp.floating))


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """`(name, leaf)` for every leaf, in flattening order.

    >>> named_leaves({"b": 1, "a": [2, 3]})
    [('a/0', 2), ('a/1', 3), ('b', 1)]
    """
    return [(leaf_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]


def select(tree: PyTree, keep: Sequence[bool], treedef: Any) -> PyTree:
    """`tree` with `UNSELECTED` at every position of `treedef` whose `keep` is false.

    >>> tree = {"a": 1, "b": 2}
    >>> select(tree, [True, False], jax.tree.structure(tree))
    {'a': 1, 'b': UNSELECTED}
    """
    parts = treedef.flatten_up_to(tree)
    return treedef.unflatten([part if k else UNSELECTED for part, k in zip(parts, keep, strict=True)])


def has_absent(tree: PyTree) -> bool:
    """Whether a leaf is missing anywhere in the tree."""
    return any(map(absent, jax.tree.leaves(tree, is_leaf=absent)))


def merge(tree: PyTree, selected: PyTree) -> PyTree:
    """`selected`, with the leaves of `tree` where it has `UNSELECTED`.

    Raises:
      TreeError: the two trees do not have the same structure.

    >>> merge({"a": 1, "b": 2}, {"a": 10, "b": UNSELECTED})
    {'a': 10, 'b': 2}
    """
    leaves, treedef = jax.tree.flatten(tree)
    try:
        parts = treedef.flatten_up_to(selected)
    except (ValueError, TypeError, KeyError) as error:
        check_not_module(tree)
        started = "that the transform was started with"
        raise TreeError(
            f"the params do not have the structure {started}: {unlike(tree, selected)}"
        ) from error
    pairs = zip(leaves, parts, strict=True)
    return treedef.unflatten([leaf if absent(part) else part for leaf, part in pairs])


def restructured(tree: PyTree, like: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> PyTree:
    """The leaves of `tree` in the structure of `like`, matched by path.

    Raises:
      TreeError: `like` has other paths or shapes.

    >>> restructured({"0": 1, "1": 2}, [0, 0])
    [1, 2]
    """
    stored = {
        leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    }
    check_not_module(like)
    wanted = named_leaves(like)
    if len(dict(wanted)) < len(wanted):
        raise TreeError("`like` has several leaves of one path")
    if {name for name, _ in wanted} != set(stored):
        differ = unlike(like, tree, is_leaf or absent) + _under(wanted, stored)
        raise TreeError(f"the leaves of `like` are not those that were read: {differ}")
    for name, leaf in wanted:
        if tuple(np.shape(leaf)) != tuple(np.shape(stored[name])):
            raise TreeError(
                f"{name!r} has the shape {np.shape(stored[name])}, `like` {tuple(np.shape(leaf))}"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name, _ in wanted])


def _under(wanted: list[tuple[str, Any]], stored: Mapping[str, Any]) -> str:
    """What to pass where all of the wanted leaves lie under one name more than the stored ones."""
    heads = {name.partition("/")[0] for name, _ in wanted}
    if len(heads) == 1 and {name.partition("/")[2] for name, _ in wanted} == set(stored):
        return f"; pass like[{heads.pop()!r}]"
    return ""


def absent(node: Any) -> bool:
    """Whether a node stands for a leaf that is not there: `UNSELECTED`, or optax's own `MaskedNode`.

    >>> absent(Unselected()), absent(optax.MaskedNode()), absent(None)
    (True, True, False)
    """
    return isinstance(node, Unselected | optax.MaskedNode)


def overlay(tree: PyTree, top: PyTree, is_leaf: Callable[[Any], bool] = lambda _: False) -> PyTree:
    """`tree` with the leaves that `top` has; unlike in `merge`, whole branches of `top` may be absent.

    Raises:
      TreeError: the two trees do not have the same structure.

    >>> overlay({"a": 1, "b": {"c": 2}}, {"a": 10, "b": UNSELECTED})
    {'a': 10, 'b': {'c': 2}}
    """
    try:
        return jax.tree.map(
            lambda new, old: old if absent(new) else new, top, tree, is_leaf=lambda x: absent(x) or is_leaf(x)
        )
    except (ValueError, TypeError, KeyError) as error:
        check_not_module(tree)
        started = "that the transform was started with"
        raise TreeError(
            f"the params do not have the structure {started}: {unlike(tree, top, is_leaf)}"
        ) from error


def unlike(tree: PyTree, other: PyTree, is_leaf: Callable[[Any], bool] = lambda _: False) -> str:
    """What one tree has that another one lacks, in words.

    >>> unlike({"a": 1, "c": {"w": 2}}, {"a": 1, "b": {"w": 2}})
    'they lack b/w; they have c/w too many'
    >>> unlike([1, 2], (1, 2))
    'list in the place of tuple, with the same paths'
    """

    def names(tree: PyTree) -> list[str]:
        return [name for name, _ in named_leaves(tree, lambda x: absent(x) or is_leaf(x))]

    here, there = names(tree), names(other)
    lacking, more = ([x for x in a if x not in set(b)] for a, b in ((there, here), (here, there)))
    found = [f"they lack {listed(lacking)}"] if lacking else []
    found += [f"they have {listed(more)} too many"] if more else []
    return "; ".join(found) or (
        f"{type(tree).__name__} in the place of {type(other).__name__}, with the same paths"
    )


def aligned(tree: PyTree, params: PyTree, what: str) -> PyTree:
    """A tree like the params, with nothing where they are absent; leaves may be subtrees.

    Raises:
      TreeError: it does not have the params' structure; `what` names it.

    >>> aligned({"a": [1, 2], "b": None}, {"a": 0.5, "b": Unselected()}, "stats")
    {'a': [1, 2], 'b': UNSELECTED}
    """
    try:
        return jax.tree.map(lambda p, x: p if absent(p) else x, params, plain(tree), is_leaf=absent)
    except (ValueError, TypeError, KeyError) as error:
        raise TreeError(
            f"{what} does not have the structure of the params, as if of another network: "
            f"{unlike(_above(plain(tree), params), params)}"
        ) from error


def _above(tree: PyTree, params: PyTree) -> dict[str, int]:
    """What stands in a tree where the params have leaves, and what it has elsewhere."""
    leaves = [name for name, _ in named_leaves(params, absent)]
    tops = {name: name for name in leaves}
    paths = [name for name, _ in named_leaves(tree, lambda x: absent(x) or (isinstance(x, tuple) and not x))]
    heads = [[name[:i] for i in [*(j for j, c in enumerate(name) if c == "/"), len(name)]] for name in paths]
    return {next((h for h in each if h in tops), each[-1] if each else ""): 0 for each in heads}


def plain(tree: PyTree) -> PyTree:
    """The tree with NNX variables replaced by the arrays they hold, and NNX states by dicts; others pass unchanged.

    NNX keeps parameters in `Param` and optimizer state in `OptVariable` nodes, so that trees that belong together
    have different structures; their plain forms have the same one. `nnx.State` turns what it holds into states, too.

    >>> from flax import nnx
    >>> plain({"w": nnx.Param(jnp.zeros(2))})
    {'w': Array([0., 0.], dtype=float32)}
    """
    try:
        jax.tree.structure(tree)
    except ValueError as error:
        raise TreeError(
            f"this is no tree that JAX can flatten, as where keys have several types: {error}"
        ) from error
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return tree

    def convert(x: Any) -> Any:
        if isinstance(x, nnx.Variable):
            return x.get_value()
        return {key: plain(child) for key, child in x.items()} if isinstance(x, nnx.State) else x

    return jax.tree.map(convert, tree, is_leaf=lambda x: isinstance(x, nnx.Variable | nnx.State))


def restored(tree: PyTree, like: PyTree) -> PyTree:
    """A plain tree in the structure that it was `plain` of.

    >>> from flax import nnx
    >>> params = {"w": nnx.Param(jnp.zeros(2))}
    >>> restored(jax.tree.map(lambda x: x + 1.0, plain(params)), params)["w"].get_value()
    Array([1., 1.], dtype=float32)
    """
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def _is_instance(kind: type, x: Any) -> bool:
    return isinstance(x, kind)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array (or a NumPy or Python number) that arithmetic can read."""
    numbers = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
    return isinstance(leaf, numbers) and not type(leaf).__name__.endswith("Ref")


def check_not_module(params: PyTree) -> None:
    """Raises `LeafError` if the params are a whole NNX or equinox module with what is no array."""
    nnx, equinox = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
    what = f"params is the module {type(params).__name__}; pass its"
    if nnx is not None and isinstance(params, nnx.Module):
        raise LeafError(f"{what} state: nnx.state(model, nnx.Param)")
    if equinox is None or not isinstance(params, equinox.Module):
        return
    if any(map(callable, jax.tree.leaves(params))):
        raise LeafError(f"{what} arrays: eqx.filter(model, eqx.is_array)")


def nbytes(tree: PyTree) -> int:
    """Bytes of all array leaves, at their own dtypes.

    >>> nbytes({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3, jnp.bfloat16)})
    30
    """
    return sum(int(np.size(x)) * _itemsize(x) for x in jax.tree.leaves(tree))


def _itemsize(x: Any) -> int:
    """Of its own dtype: `jnp.result_type` would narrow a 64-bit NumPy array."""
    return (x.dtype if hasattr(x, "dtype") else jnp.result_type(x)).itemsize


def map_named(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function takes the leaf's name first."""
    return jax.tree_util.tree_map_with_path(lambda path, *x: function(leaf_name(path), *x), tree, *rest)
