"""Finding the weights in a checkpoint of a whole train state.

An optimizer's memory has the shapes of the weights, so that nothing but its name and its company tells it from
them. Rounded to a few bits it is worthless, and it is never what a compressed model needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.checkpoints.names import unflatten
from modelzip_jax.errors import CheckpointError
from modelzip_jax.suggestions import listed
from modelzip_jax.tree import named_leaves

__all__ = ["choose"]

Keys = tuple[Any, ...]

PARAMS = "params"
# What libraries call the state of an optimizer.
MEMORY = {
    "opt_state",
    "opt_states",
    "optimizer",
    "optimizer_state",
    "optimizer_states",
    "optimizer_state_dict",
}
# What an optimizer calls two copies of the weights' shapes that it keeps side by side.
MOMENTS = (("mu", "nu"), ("exp_avg", "exp_avg_sq"), ("m", "v"), ("v_row", "v_col"))
# Fields of the state of `mz.wrap`.
_WRAPPED = {"latents", "offsets", "offsets_inner"}


def choose(contents: Contents, key: str | None = None) -> tuple[Contents, dict[str, Any]]:
    """The weights of what a checkpoint holds, and what travels along with them, such as batch statistics.

    Args:
      contents: of the checkpoint. A tree without an optimizer's memory is taken whole; of a train state (flax's,
        `{"params", "opt_state", "step"}`, and others) the params are found.
      key: the path of the subtree to take, such as "params" or "state/params".

    Returns:
      Contents whose tree holds weights only, and a dict of further trees, stored as they are.

    Raises:
      CheckpointError: there is no such key, nothing but an optimizer's memory, or several things that could be
        the weights; the message lists the keys.

    >>> w, moment = np.ones(2), np.zeros(2)
    >>> state = {"params": {"w": w}, "opt_state": [{"mu": {"w": moment}, "nu": {"w": moment}}], "step": 3}
    >>> chosen, others = choose(Contents(state))
    >>> chosen.tree, chosen.notes
    ({'w': array([1., 1.])}, ("'params' is compressed; left out: opt_state, step",))
    """
    at: Keys = ()
    if key is not None:
        at = _find(contents.tree, key)
        if any(_is_memory(_get(contents.tree, at[:depth]), at[depth]) for depth in range(len(at))):
            raise CheckpointError(f"{key!r} is an optimizer's memory and no weights; name those with --key")
        around = [str(name) for name in _children(_get(contents.tree, at[:-1])) if name != at[-1]]
        contents = _inside(contents, at)
        if around:
            said = f"{key!r} is compressed; left out: {listed(around)}"
            contents = dataclasses.replace(contents, notes=(*contents.notes, said))
    memory = list(_memory(contents.tree, ()))
    if not memory and (nested := _nested(contents)) is not contents:
        memory = list(_memory(nested.tree, ()))
        contents = nested if memory else contents
    if not memory:
        return contents, {}
    if () in memory:
        raise CheckpointError("it holds an optimizer's memory and no weights; name them with --key")
    holder, chosen = _weights(contents.tree, memory)
    beside = _children(_get(contents.tree, holder))
    left = {name for path in memory for name in path[len(holder) : len(holder) + 1]}
    others = {
        str(name): child
        for name, child in beside.items()
        if key is None and name != chosen and name not in left and _has_weights(child)
    }
    taken = _inside(contents, (*holder, chosen))
    others = {name: child for name, child in others.items() if not _alike(child, taken.tree)}
    out = [str(name) for name in beside if name != chosen and str(name) not in others]
    notes = f"{'/'.join(map(str, (*at, *holder, chosen)))!r} is compressed"
    notes += f"; kept as they are: {', '.join(others)}" if others else ""
    notes += f"; left out: {', '.join(out)}" if out else ""
    told = (*taken.notes, notes)
    if any(
        set(map(str, _children(node))) >= _WRAPPED for path in memory for node in _within(contents.tree, path)
    ):
        told += (
            "its optimizer is mz.wrap's, so that the weights are those of a compressed model already, and rounded a "
            "second time here; mz.pack(opt_state, params) keeps them as they are",
        )
    return dataclasses.replace(taken, notes=told), others


def _within(tree: Any, path: Keys) -> Iterator[Any]:
    node = _get(tree, path)
    yield node
    yield from _below(node)


def _is_memory(node: Any, name: Any) -> bool:
    """Whether a node's child is an optimizer's memory by its name, or one of two moments side by side."""
    children = _children(node)
    pairs = [pair for pair in MOMENTS if name in pair and set(pair) <= set(children)]
    return name in MEMORY or any(_alike(children[a], children[b]) for a, b in pairs)


def _memory(node: Any, path: Keys) -> Iterator[Keys]:
    """The paths of all that is an optimizer's memory, the outermost nodes."""
    children = _children(node)
    if any(a in children and b in children and _alike(children[a], children[b]) for a, b in MOMENTS):
        yield path
        return
    weights = children.get(PARAMS) if isinstance(node, dict) else None
    for name, child in children.items():
        copies = weights is not None and name != PARAMS and any(_alike(x, weights) for x in _below(child))
        if name in MEMORY or copies:
            yield (*path, name)
        else:
            yield from _memory(child, (*path, name))


def _weights(tree: Any, memory: list[Keys]) -> tuple[Keys, Any]:
    """Where the weights are: the node that holds them and the memory, and their key in it."""
    parents = [path[:-1] for path in memory]
    common = 0
    while all(len(p) > common for p in parents) and len({p[common] for p in parents}) == 1:
        common += 1
    for depth in range(common, -1, -1):
        holder = parents[0][:depth]
        left = {path[depth] for path in memory}
        beside = {k: x for k, x in _children(_get(tree, holder)).items() if k not in left and _has_weights(x)}
        if PARAMS in beside or len(beside) == 1:
            return holder, PARAMS if PARAMS in beside else next(iter(beside))
        if beside:
            break
    found = sorted({"/".join(map(str, path)) for path in _candidates(tree, memory)})
    if not found:
        raise CheckpointError("it holds an optimizer's memory and no weights; name them with --key")
    raise CheckpointError(
        "it holds an optimizer's memory beside several things that may be weights; name them with --key: "
        + ", ".join(found[:8])
    )


def _candidates(tree: Any, memory: list[Keys]) -> Iterator[Keys]:
    for path in memory:
        for depth in range(len(path)):
            for name, child in _children(_get(tree, path[:depth])).items():
                place = (*path[:depth], name)
                if not any(place == m[: len(place)] for m in memory) and _has_weights(child):
                    yield place


def _below(node: Any) -> Iterator[Any]:
    """All nodes below this one."""
    for child in _children(node).values():
        yield child
        yield from _below(child)


def _alike(one: Any, other: Any) -> bool:
    """Whether two subtrees have leaves of the same names and shapes, and any at all."""
    if isinstance(one, dict) != isinstance(other, dict):
        return False
    shapes = [{name: np.shape(x) for name, x in named_leaves(tree)} for tree in (one, other)]
    return bool(shapes[0]) and shapes[0] == shapes[1] and _has_weights(one)


def _has_weights(node: Any) -> bool:
    """Whether there are arrays of real numbers below, and not only counters and keys."""
    return any(
        hasattr(x, "dtype") and np.ndim(x) and jax.numpy.issubdtype(x.dtype, np.inexact)
        for x in jax.tree.leaves(node)
    )


def _children(node: Any) -> dict[Any, Any]:
    if isinstance(node, dict):
        return node
    return dict(enumerate(node)) if isinstance(node, list | tuple) else {}


def _get(node: Any, path: Keys) -> Any:
    for key in path:
        node = _children(node)[key]
    return node


def _inside(contents: Contents, path: Keys) -> Contents:
    positions = None if contents.positions is None else _get(contents.positions, path)
    return dataclasses.replace(contents, tree=_get(contents.tree, path), positions=positions)


def _nested(contents: Contents) -> Contents:
    """A dict of whole paths ("opt_state/0/mu/w"), as `modelzip train` keeps its states, as nested dicts."""
    tree = contents.tree
    if not isinstance(tree, dict) or not any(isinstance(k, str) and "/" in k for k in tree):
        return contents
    return Contents(
        unflatten({str(k): x for k, x in tree.items()}, "/"), None, contents.metadata, contents.notes
    )


def _find(tree: Any, key: str) -> Keys:
    """The path that a key like "state/params" names; a key of the tree may itself hold a slash."""
    path: Keys = ()
    rest = key.strip("/")
    while rest:
        names = {str(name): name for name in _children(_get(tree, path))}
        fitting = [name for name in names if rest == name or rest.startswith(f"{name}/")]
        if not fitting:
            known = ", ".join(sorted(names)[:12]) or "nothing"
            raise CheckpointError(
                f"there is no {key!r} in it; {'/'.join(map(str, path)) or 'it'} holds {known}"
            )
        longest = max(fitting, key=len)
        path, rest = (*path, names[longest]), rest[len(longest) + 1 :]
    return path
