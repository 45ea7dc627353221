"""Loading a `.mz` file: a whole model, or one of its tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator

import jax
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.coding import skeleton
from modelzip_jax.coding.reader import Archive
from modelzip_jax.coding.writer import Progress
from modelzip_jax.errors import FormatError, PatternError, TransformError, TreeError
from modelzip_jax.jax_settings import unwatched
from modelzip_jax.packed import Dense, PackedArray, is_packed
from modelzip_jax.packing import Packed
from modelzip_jax.patterns import require_matches
from modelzip_jax.recipe import recorded
from modelzip_jax.tree import PyTree

__all__ = ["load", "load_tensor"]


def _model_names(archive: Archive) -> list[str]:
    """The path of every leaf of a file that holds a model.

    Raises:
      FormatError: it holds something else, variables that are packed, or two leaves of one path.
    """
    outline = archive.header.outline
    if not isinstance(outline, dict) or set(outline) != {"params", "variables"}:
        raise FormatError(f"{archive.path}: it holds {str(outline)[:80]} instead of params and variables")
    names = archive.names
    try:
        skeleton.check_names(names)
    except TreeError as error:
        raise FormatError(f"{archive.path}: the header: {error}") from error
    for name, spec in zip(names, archive.header.specs, strict=True):
        if spec[0] != Dense.tag and (name == "variables" or name.startswith("variables/")):
            raise FormatError(
                f"{archive.path}: {name[:200]!r} is of the kind {spec[0]!r}; variables are dense"
            )
    return names


@unwatched()
def load(
    path: str | os.PathLike[str],
    like: PyTree = None,
    *,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Packed:
    """Reads a compressed model.

    Args:
      path: a `.mz` file.
      like: params of the same leaf paths and shapes, such as `nnx.state(model, nnx.Param)`, `eqx.filter(module,
        eqx.is_array)` or the output of `jax.eval_shape`; the loaded params take its structure. Without it,
        dicts, lists and tuples come back as they were, boxes of one array as the array and other nodes as dicts.
      progress: called with each leaf's path and its bytes in the file once it is decoded.
      limit: bytes that the file's tensors may take in memory, unpacked and with what unpacking needs; 256 MiB and
        1,024 times the file's size unless you say so. It is held against the header before anything is decoded.

    Returns:
      A `Packed` model, bit for bit the one that was saved; `mz.unpack` gives the weights. If its recipe names
      a class that is not registered, only training on needs that (`mz.resume` says so).

    Raises:
      FormatError: the file is foreign, newer, truncated or damaged, or claims more than `limit`; the message names
        the place.
      OutOfMemoryError: this machine has too little memory for it.
      OSError: it cannot be opened.
      RecipeError: what stands for the recipe is none.
      TreeError: `like` has other leaves.

    >>> import tempfile, modelzip_jax as mz
    >>> packed = mz.compress({"w": np.float32([1.0, -2.0])}, mz.prune(sparsity=0.5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sizes = mz.save(folder + "/model.mz", packed)
    ...     mz.unpack(load(folder + "/model.mz"))
    {'w': Array([ 0., -2.], dtype=float32)}
    """
    if not isinstance(path, str | os.PathLike) and not hasattr(path, "read"):
        raise TransformError(f"load() takes the path of a .mz file, not a {type(path).__name__}")
    with Archive(path, limit=limit) as archive:
        header, paths = archive.header, _model_names(archive)
        leaves = list(_told(archive, progress))
    tree = skeleton.unflatten_outline(header.outline, iter(leaves))
    variables = jax.tree.map(lambda p: np.asarray(p.unpack()), tree["variables"], is_leaf=is_packed)
    params = tree["params"]
    if like is not None:  # By the names of the file: a tree of dicts has lost which node was a box.
        inside = {
            name.removeprefix("params/"): leaf
            for name, leaf in zip(paths, leaves, strict=True)
            if name == "params" or name.startswith("params/")
        }
        params = trees.restructured({"": inside["params"]} if "params" in inside else inside, like, is_packed)
    return Packed(params, variables, recorded(header.recipe), header.step, header.metadata)


def _told(archive: Archive, progress: Progress | None) -> Iterator[PackedArray]:
    """All leaves; tells of each."""
    if progress is None:
        yield from archive.leaves()
        return
    for name, size, leaf in zip(archive.names, archive.coded_bytes(), archive.leaves(), strict=True):
        progress(name, size)
        yield leaf


def load_tensor(path: str | os.PathLike[str], name: str, *, limit: int | None = None) -> PackedArray:
    """Reads one tensor, decoding only the chunks that hold it.

    Args:
      path: a `.mz` file.
      name: the leaf's path in the params, such as "Dense_0/kernel".
      limit: as of `load`.

    Raises:
      FormatError: as of `load`.
      PatternError: there is no such leaf; the message lists the paths.

    >>> import tempfile, modelzip_jax as mz
    >>> packed = mz.compress({"Dense_0": {"kernel": np.float32([1.0, -2.0])}}, mz.prune(sparsity=0.5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sizes = mz.save(folder + "/model.mz", packed)
    ...     load_tensor(folder + "/model.mz", "Dense_0/kernel").unpack()
    Array([ 0., -2.], dtype=float32)
    """
    with Archive(path, limit=limit) as archive:
        names = _model_names(archive)
        if f"params/{name}" not in names:
            inside = [n.removeprefix("params/") for n in names if n.startswith("params/")]
            require_matches([name], inside)
            raise PatternError(f"{name!r} is a pattern; give the path of one tensor")
        return archive.leaf(names.index(f"params/{name}"))
