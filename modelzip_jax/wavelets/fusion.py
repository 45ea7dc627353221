"""Fusion: tensors of equal shape share one set of coefficients, the mean, and keep coded differences.

`fuse` puts the tensors beside each other as one leaf with a first axis of its own; the orthonormal DCT along
that axis has √T times the mean of T tensors at frequency 0, and differences from it behind. With a basis
over the other axes, the mean's sub-bands are the shared ones:

    fused = fuse(params, "layer_*/kernel")
    packed = mz.compress(fused, mz.chain(mz.cosines(T, axes=0, keep=1), mz.wavelet("db4", axes=1), ...))
    params = unfuse(mz.unpack(packed), "layer_*/kernel", like=params)

where `keep=1` shares everything and `keep=None` codes the differences, too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.tree import PyTree

__all__ = ["Fused", "fuse", "unfuse"]

Fused = dict[str, jax.Array]


def _groups(params: PyTree, pattern: str) -> dict[str, list[tuple[int, str, Any]]]:
    """Leaves by shape and dtype, in flattening order; each its index, name and value."""
    leaves = trees.named_leaves(params)
    require_matches([pattern], [name for name, _ in leaves])
    groups: dict[str, list[tuple[int, str, Any]]] = {}
    for index, (name, leaf) in enumerate(leaves):
        shape = "x".join(map(str, jnp.shape(leaf))) or "scalar"
        fused = matches(pattern, name)
        key = f"fused/{shape}/{jnp.result_type(leaf)}" if fused else f"single/{name}"
        groups.setdefault(key, []).append((index, name, leaf))
    return groups


def fuse(params: PyTree, pattern: str) -> Fused:
    """A flat tree in which the matching leaves of equal shape and dtype are one, `(T, *shape)`, by path order.

    Args:
      params: a tree of arrays. pattern: path pattern of the leaves to fuse.

    Returns:
      `fused/<shape>/<dtype>` to a stack, and `single/<path>` to each other leaf.

    Raises:
      PatternError: nothing matches.

    >>> params = {"a": jnp.ones((2, 2)), "b": jnp.zeros((2, 2)), "bias": jnp.ones(2)}
    >>> {name: leaf.shape for name, leaf in fuse(params, "?").items()}
    {'fused/2x2/float32': (2, 2, 2), 'single/bias': (2,)}
    """
    return {
        key: jnp.stack([leaf for _, _, leaf in group]) if key.startswith("fused/") else group[0][2]
        for key, group in _groups(params, pattern).items()
    }


def unfuse(fused: Fused, pattern: str, like: PyTree) -> PyTree:
    """The inverse of `fuse`: the leaves of `fused` in the structure of `like`.

    Raises:
      LeafError: `like` has other leaves than the tree that was fused.

    >>> params = {"a": jnp.ones((2, 2)), "b": jnp.zeros((2, 2))}
    >>> unfuse(fuse(params, "*"), "*", params)["b"]
    Array([[0., 0.],
           [0., 0.]], dtype=float32)
    """
    groups = _groups(like, pattern)
    if set(groups) != set(fused):
        raise LeafError(f"the fused tree has {sorted(fused)}, `like` would give {sorted(groups)}")
    found: dict[int, Any] = {}
    for key, group in groups.items():
        stacked = key.startswith("fused/")
        if stacked and fused[key].shape[0] != len(group):
            raise LeafError(f"{key!r} holds {fused[key].shape[0]} tensors, and `like` has {len(group)}")
        for place, (index, _, _) in enumerate(group):
            found[index] = fused[key][place] if stacked else fused[key]
    return jax.tree.unflatten(jax.tree.structure(like), [found[index] for index in range(len(found))])
