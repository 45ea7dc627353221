"""Whole layers: what the loss says to a residual block that is not there, and taking blocks out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.naming import nearest_name
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.tree import PyTree

__all__ = ["Blocks", "Branch", "block_effects", "drop_blocks", "remove_layers", "stacked_blocks"]


@dataclasses.dataclass(frozen=True)
class Branch:
    """The leaves that make a residual branch vanish when they are zero.

    patterns: of their paths, such as the last scale and bias of a block, or an output kernel and its bias; they may
    match in several places, as in attention and MLP. layer: which index of their first axis, where all layers are
    stacked along it for a `scan`; None for whole leaves.

    >>> Branch(("blocks/mlp_out/*", "blocks/attention/out/*"), layer=3)
    Branch(patterns=('blocks/mlp_out/*', 'blocks/attention/out/*'), layer=3)
    """

    patterns: tuple[str, ...]
    layer: int | None = None


Blocks = Mapping[str, str | Sequence[str] | Branch]
"""Name of each block → its `Branch`, or the pattern or patterns of one."""


def stacked_blocks(params: PyTree, *patterns: str, name: str = "layer_{}") -> dict[str, Branch]:
    """A block for each layer of leaves that hold all layers along their first axis, as `nn.scan` makes them.

    Raises:
      PatternError: a pattern matches nothing.
      LeafError: the leaves have different numbers of layers.

    >>> list(stacked_blocks({"blocks": {"out": jnp.ones((3, 2, 2))}}, "blocks/out"))
    ['layer_0', 'layer_1', 'layer_2']
    """
    layers = _layers(params, patterns)
    return {name.format(i): Branch(patterns, i) for i in range(layers)}


def block_effects(
    loss: Callable[[PyTree], jax.Array], params: PyTree, blocks: Blocks, *, at_once: int = 1
) -> dict[str, float]:
    """What each block does for the loss: the loss without it, less the loss with all blocks.

    The lesion study of Veit et al. 2016 (arXiv:1605.06431, §4.1), which SLEB repeats for the layers of language
    models (Song et al. 2024, arXiv:2402.09025, §3): the block of least effect goes first. Effects do not add up; to
    drop several, drop one and measure again, which compiles nothing anew for the same `loss`.

    One compiled call evaluates all blocks in turn, on params whose branch is zero; memory is that of one.

    Args:
      loss: of the params alone, a scalar: bind a batch. Batch normalisation in evaluation mode.
      params: the tree of the patterns: the params, or all variables.
      blocks: name → the leaves whose zeros make the branch vanish.
      at_once: blocks at a time, by `vmap`, for as many times the memory: for models too small to fill a device.

    Returns:
      The effect of each block, in the unit of the loss; negative if the model is better without it.

    Raises:
      PatternError: a pattern matches nothing.
      LeafError: a leaf has no such layer. TransformError: the loss is no scalar; no blocks; `at_once` below 1.

    >>> params = {"a": {"out": jnp.float32(1.0)}, "b": {"out": jnp.float32(3.0)}}
    >>> loss = lambda p: (5.0 - p["a"]["out"] - p["b"]["out"]) ** 2
    >>> block_effects(loss, params, {"a": "a/out", "b": "b/*"})
    {'a': 3.0, 'b': 15.0}
    """
    if not blocks or at_once < 1:
        raise TransformError(f"expected at least one block and at_once of 1 or more, not {at_once!r}")
    parts = [_gone(params, _branch(block)) for block in blocks.values()]
    flags: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        # The last row is the whole model. Some blocks may take a leaf as a whole and others a layer of it.
        rows = [part.get(name, np.zeros((), bool)) for part in [*parts, {}]]
        flags[name] = np.stack(np.broadcast_arrays(*rows))
    losses = np.asarray(_losses(loss, params, flags, at_once), np.float64)
    if losses.ndim != 1:
        raise TransformError(f"loss must return a scalar, not an array of shape {losses.shape[1:]}")
    return {name: float(x - losses[-1]) for name, x in zip(blocks, losses[:-1], strict=True)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _losses(
    loss: Callable[[PyTree], jax.Array], params: PyTree, flags: dict[str, jax.Array], at_once: int
) -> jax.Array:
    # `lax.map` makes another program of a batch of one.
    size = at_once if at_once > 1 else None
    return jax.lax.map(lambda gone: loss(_without(params, gone)), flags, batch_size=size)


def drop_blocks(params: PyTree, blocks: Blocks, names: Iterable[str]) -> PyTree:
    """The params with these blocks' branches set to zero: the function is that of the model without them.

    Where a shortcut is the identity, the block is; where it strides, what it does remains. To take layers of a scan
    out of the arrays, see `remove_layers`.

    Raises:
      TransformError: a block of another name. PatternError, LeafError: as `block_effects`.

    >>> drop_blocks({"a": jnp.ones(1), "b": jnp.ones(1)}, {"first": "a", "second": "b"}, ["second"])
    {'a': Array([1.], dtype=float32), 'b': Array([0.], dtype=float32)}
    """
    for name in names:
        if name not in blocks:
            raise TransformError(f"no block is called {name!r}; {nearest_name(name, blocks)}")
        params = _without(params, _gone(params, _branch(blocks[name])))
    return params


def remove_layers(
    params: PyTree,
    pattern: str,
    layers: Iterable[int],
    rebuild: Callable[[dict[str, tuple[int, ...]]], Any] | None = None,
) -> Any:
    """Takes layers out of the first axis of leaves that hold all layers of a scan.

    The smaller model computes what the larger one does with these layers dropped.

    Args:
      params: the params, or all variables.
      pattern: of all leaves that are stacked: "blocks/**" for our `LanguageModel`.
      layers: those to remove.
      rebuild: as for `mz.rewrites.shrink`, makes the smaller module from the new shapes (`resized`).

    Returns:
      The smaller params; `(rebuild(shapes), params)` if `rebuild` is given.

    Raises:
      PatternError: the pattern matches nothing. LeafError: the leaves have different numbers of layers.
      TransformError: layers that there are not, or all of them.

    >>> remove_layers({"blocks": {"out": jnp.array([[1.0], [2.0], [3.0]])}}, "blocks/**", [1])["blocks"]["out"]
    Array([[1.],
           [3.]], dtype=float32)
    """
    count = _layers(params, [pattern])
    gone = sorted(set(layers))
    if gone and not 0 <= gone[0] <= gone[-1] < count:
        raise TransformError(f"{pattern!r} has the layers 0 to {count - 1}, not {gone[:8]}")
    if len(gone) == count:
        raise TransformError(f"all {count} layers of {pattern!r} would be removed; keep at least one")
    kept = np.delete(np.arange(count), gone)

    def cut(name: str, x: Any) -> Any:
        return jnp.take(x, kept, axis=0) if matches(pattern, name) else x

    smaller = trees.map_named(cut, params)
    if rebuild is None:
        return smaller
    return rebuild({name: tuple(np.shape(x)) for name, x in trees.named_leaves(smaller)}), smaller


def _branch(block: str | Sequence[str] | Branch) -> Branch:
    if isinstance(block, Branch):
        return block
    return Branch((block,) if isinstance(block, str) else tuple(block))


def _selected(params: PyTree, patterns: Sequence[str]) -> list[tuple[str, Any]]:
    check_float_params(params, "a rewrite of blocks")
    named = trees.named_leaves(params)
    require_matches(patterns, [name for name, _ in named])
    return [(name, x) for name, x in named if any(matches(p, name) for p in patterns)]


def _layers(params: PyTree, patterns: Sequence[str]) -> int:
    """Length of the first axis that all these leaves share."""
    lengths = {name: np.shape(x)[:1] for name, x in _selected(params, patterns)}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        shown = ", ".join(f"{name}: {n[0] if n else 'no axis'}" for name, n in list(lengths.items())[:8])
        raise LeafError(f"stacked leaves share the length of their first axis; here they have {shown}")
    return next(iter(lengths.values()))[0]


def _gone(params: PyTree, branch: Branch) -> dict[str, np.ndarray]:
    """What becomes zero of each leaf: a flag, or one for each layer."""
    found = {}
    for name, x in _selected(params, branch.patterns):
        if branch.layer is None:
            found[name] = np.ones((), bool)
            continue
        if not np.ndim(x) or not 0 <= branch.layer < np.shape(x)[0]:
            raise LeafError(f"leaf {name!r} of shape {np.shape(x)} has no layer {branch.layer}")
        found[name] = np.arange(np.shape(x)[0]) == branch.layer
    return found


def _without(params: PyTree, gone: Mapping[str, Any]) -> PyTree:
    def clear(name: str, x: Any) -> Any:
        if name not in gone:
            return x
        flags = jnp.asarray(gone[name])
        flags = flags.reshape(flags.shape + (1,) * (np.ndim(x) - flags.ndim))
        return jnp.where(flags, jnp.zeros((), jnp.result_type(x)), x)

    return trees.map_named(clear, params)
