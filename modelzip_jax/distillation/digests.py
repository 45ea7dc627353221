"""Digests of arrays: whether two trees hold the same names, shapes, dtypes and bytes."""

from __future__ import annotations

import hashlib

import numpy as np

from modelzip_jax.leaf_checks import check_arrays
from modelzip_jax.tree import PyTree, named_leaves

__all__ = ["tree_digest"]


def tree_digest(tree: PyTree) -> str:
    """BLAKE2b, 16 bytes in hexadecimal, of all leaves in order: their paths, shapes, dtypes and bytes.

    Leaves are read one by one, memory maps page by page: nothing is copied but what lies on a device.

    Raises:
      LeafError: a leaf is no array.

    >>> tree_digest({"w": np.zeros(2, np.float32)})
    '9c8657612a2d6781ff9e656805e87fe8'
    >>> tree_digest({"w": np.zeros(2, np.float32)}) == tree_digest({"w": np.zeros((2, 1), np.float32)})
    False
    """
    check_arrays(tree)
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in named_leaves(tree):
        array = np.asarray(leaf)
        digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
