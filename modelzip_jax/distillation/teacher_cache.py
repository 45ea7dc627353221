"""What a teacher says of every example of a data set, computed once and kept on disk."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.digests import tree_digest
from modelzip_jax.distillation.argument_checks import check_mapping
from modelzip_jax.distillation.block_files import Manifest, open_whole, require_same, write_blocks
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.distillation.offline_logits import TopK, top_k_logits
from modelzip_jax.distillation.teachers import Teacher
from modelzip_jax.errors import DistillationError, NonFiniteError
from modelzip_jax.tree import PyTree

__all__ = ["cache_outputs", "cached_outputs", "cached_top_k"]

Fields = dict[str, np.ndarray]
DTYPES = ("float16", "float32")

_ALIKE = 0.02
"""Of the largest logit: what other hardware, batch sizes and versions may change, and another preparation would not."""


def cache_outputs(
    folder: str | os.PathLike[str],
    teacher: Teacher,
    inputs: PyTree,
    *,
    batch_size: int = 512,
    dtype: str = "float16",
    top_k: int | None = None,
) -> Fields:
    """The teacher's logits of every example, from disk if they are there, else computed and written.

    By example and in the data's order, so that they are one more field of the data, and any loader gathers a batch's
    logits with its inputs, whatever its shuffling:

        data = {**arrays, **cache_outputs(folder, teacher, arrays["inputs"])}
        batches = Batches(data, batch_size=128)        # batch["teacher_logits"] beside batch["inputs"]

    Killed at any time, the next call goes on after the last whole block; the files end byte for byte as they would
    have. Other processes wait for the one that writes. The teacher sees the inputs as they are here: with random
    augmentation in the loop, that is a fixed teacher (Beyer et al. 2022, https://arxiv.org/abs/2106.05237),
    which teaches less than one that sees what the student sees.

    Args:
      folder: appears when it is whole; until then, `folder.partial`.
      teacher: gives logits `(batch, ..., classes)`; what the inputs need before is in its `apply`.
      inputs: an array, or a pytree of arrays, `(n, ...)`.
      batch_size: examples that the teacher sees at once; a block on disk.
      dtype: "float16" or "float32", of the logits on disk. Half precision rounds them by 1 part in 2,048.
      top_k: keeps only the largest logits of each row and the log of the others' sum, `TopK`, in
        `k (index bytes + dtype bytes) + 4` bytes, for a loss without temperature (see `top_k_logits`). None keeps
        all.

    Returns:
      Read-only memory maps: `{"teacher_logits": (n, ..., classes)}`, or with `top_k` `"teacher_indices"` and
      `"teacher_values"` `(n, ..., k)` and `"teacher_log_rest"` `(n, ...)`, of which `cached_top_k` makes a `TopK`.

    Raises:
      DistillationError: the folder is of another teacher, data, order of the data, or choice of dtype and top_k; it
        is damaged; the teacher's weights are the same, but it computes something else; a teacher that does not give
        one row of floating-point logits an example.
      NonFiniteError: the teacher gives NaN or infinity, or more than float16 can hold; the message names the example.
      OSError: the disk is full, or the folder's parent cannot be written.

    >>> import tempfile
    >>> inputs = np.arange(6, dtype=np.float32).reshape(3, 2)
    >>> teacher = Teacher(lambda params, x: x @ params, jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = cache_outputs(Path(folder) / "logits", teacher, inputs, batch_size=2)
    ...     print(data["teacher_logits"])
    [[0. 1. 1.]
     [2. 3. 5.]
     [4. 5. 9.]]
    """
    folder = _path(folder, "cache_outputs(folder, teacher, inputs)")
    if not isinstance(teacher, Teacher):
        raise DistillationError(
            f"cache_outputs: the teacher must be a Teacher(apply, params), not a {type(teacher).__name__}"
        )
    manifest = _manifest(teacher, inputs, batch_size, dtype, top_k)
    if not folder.exists():
        _fill(folder, manifest, teacher, inputs)
    files = open_whole(folder)
    require_same({**files.manifest, "rows": batch_size}, manifest, folder)
    arrays = files.read()
    _require_alike(teacher, inputs, arrays, manifest, folder)
    return arrays


def cached_outputs(folder: str | os.PathLike[str], inputs: PyTree) -> Fields:
    """What `cache_outputs` wrote of these inputs, where the teacher is not at hand.

    Raises:
      DistillationError: there is none, it is damaged, or of other inputs or another order of them.

    >>> import tempfile
    >>> inputs = np.ones((3, 2), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = cache_outputs(Path(folder) / "logits", Teacher(lambda params, x: x, {}), inputs)
    ...     cached_outputs(Path(folder) / "logits", inputs)["teacher_logits"].shape
    (3, 2)
    """
    folder = _path(folder, "cached_outputs(folder, inputs)")
    files = open_whole(folder)
    require_same({"data": files.manifest.get("data")}, {"data": tree_digest(inputs)}, folder)
    return files.read()


def cached_top_k(batch: Mapping[str, Any]) -> TopK:
    """The `TopK` of a batch of data with the fields that `cache_outputs(..., top_k=k)` gave. Jittable.

    Raises:
      DistillationError: the batch has no such fields.

    >>> batch = {"teacher_indices": np.array([[2]], np.uint8), "teacher_values": np.ones((1, 1), np.float16)}
    >>> cached_top_k({**batch, "teacher_log_rest": np.zeros(1, np.float32)}).indices.dtype
    dtype('int32')
    """
    check_mapping(batch, "cached_top_k", "batch", "a batch with the fields of cache_outputs(..., top_k=k)")
    absent = [name for name in _TOP_K if name not in batch]
    if absent:
        raise DistillationError(
            f"the batch has no {absent[0]!r}, only {', '.join(batch)}: add the fields of cache_outputs(..., top_k=k)"
        )
    indices, values, rest = (batch[name] for name in _TOP_K)
    return TopK(
        jnp.asarray(indices).astype(jnp.int32),
        jnp.asarray(values).astype(jnp.float32),
        jnp.asarray(rest).astype(jnp.float32),
    )


_TOP_K = ("teacher_indices", "teacher_values", "teacher_log_rest")


@functools.partial(jax.jit, static_argnums=(2, 3))
def _stored(teacher: Teacher, inputs: PyTree, dtype: str, top_k: int | None) -> dict[str, jax.Array]:
    """The fields of a batch, as they are on disk."""
    logits = teacher(inputs).astype(jnp.float32)
    if top_k is None:
        return {"teacher_logits": logits.astype(dtype)}
    kept = top_k_logits(logits, top_k)
    fields = kept.indices.astype(_index_dtype(logits.shape[-1])), kept.values.astype(dtype), kept.log_rest
    return dict(zip(_TOP_K, fields, strict=True))


def _path(folder: Any, call: str) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise DistillationError(f"{call}: folder must be a path, not a {type(folder).__name__}")
    return Path(os.path.abspath(folder))


def _index_dtype(classes: int) -> np.dtype:
    return next(np.dtype(d) for d in (np.uint8, np.uint16, np.int32) if classes - 1 <= np.iinfo(d).max)


def _manifest(teacher: Teacher, inputs: PyTree, batch_size: int, dtype: str, top_k: int | None) -> Manifest:
    lengths = {np.shape(x)[0] if np.ndim(x) else 0 for x in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or not min(lengths):
        raise DistillationError(f"inputs need one common number of examples above 0, not {sorted(lengths)}")
    check_count(batch_size, "cache_outputs: batch_size")
    if top_k is not None:
        check_count(top_k, "cache_outputs: top_k")
    if dtype not in DTYPES:
        raise DistillationError(f"dtype={dtype!r} must be one of {DTYPES}")
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *np.shape(x)[1:]), jnp.result_type(x)), inputs
    )
    logits = jax.eval_shape(lambda t, x: t(x), teacher, rows)
    if not isinstance(logits, jax.ShapeDtypeStruct) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise DistillationError(f"a teacher gives one array of floating-point logits, not {logits}")
    if logits.ndim < 2 or logits.shape[0] != batch_size:
        raise DistillationError(
            f"the teacher gives {logits.shape} for a batch of {batch_size}, not (batch, ..., classes)"
        )
    fields = jax.eval_shape(lambda t, x: _stored(t, x, dtype, top_k), teacher, rows)
    return {
        "version": 1,
        "teacher": tree_digest(teacher.params),
        "data": tree_digest(inputs),
        "examples": lengths.pop(),
        "classes": logits.shape[-1],
        "dtype": dtype,
        "top_k": top_k,
        "rows": batch_size,
        "fields": {name: [x.dtype.name, list(x.shape[1:])] for name, x in fields.items()},
    }


def _rows(inputs: PyTree, manifest: Manifest, block: int) -> PyTree:
    """The inputs of a block; the last is filled up with copies of the last example, so that nothing compiles again."""
    start = block * manifest["rows"]
    index = np.minimum(np.arange(start, start + manifest["rows"]), manifest["examples"] - 1)
    return jax.tree.map(lambda x: np.asarray(x[index]), inputs)


def _fields(teacher: Teacher, inputs: PyTree, manifest: Manifest, block: int) -> Fields:
    """What is stored of a block."""
    fields = _stored(teacher, _rows(inputs, manifest, block), manifest["dtype"], manifest["top_k"])
    return {
        name: np.asarray(x)[: manifest["examples"] - block * manifest["rows"]] for name, x in fields.items()
    }


def _fill(folder: Path, manifest: Manifest, teacher: Teacher, inputs: PyTree) -> None:
    with write_blocks(folder, manifest) as files:
        if files is None:
            return
        for block in files.missing():
            fields = _fields(teacher, inputs, manifest, block)
            _require_finite(fields, manifest, block)
            files.write(block, fields)


def _require_finite(fields: Fields, manifest: Manifest, block: int) -> None:
    for name, array in fields.items():
        if name == "teacher_log_rest" and manifest["top_k"] == manifest["classes"]:
            continue  # Nothing is left out: the log of 0.
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            example = block * manifest["rows"] + int(np.argmin(finite))
            told = f"the teacher's logits of example {example} are"
            if np.isnan(array).any() or array.dtype != np.float16:
                raise NonFiniteError(f"{told} NaN or infinite: repair the teacher")
            raise NonFiniteError(
                f"{told} infinite as float16, which ends at 65,504: keep them as float32 (dtype='float32', in a config "
                "distill.cache='float32')"
            )


def _require_alike(
    teacher: Teacher, inputs: PyTree, stored: Fields, manifest: Manifest, folder: Path
) -> None:
    """Asks the teacher for the first block again: a function has no digest, but its outputs tell it from another."""
    then = stored["teacher_values" if manifest["top_k"] else "teacher_logits"][: manifest["rows"]].astype(
        np.float32
    )
    logits = _stored(teacher, _rows(inputs, manifest, 0), "float32", None)["teacher_logits"]
    now = np.asarray(logits)[: len(then)]
    if manifest["top_k"]:
        now = np.take_along_axis(now, stored["teacher_indices"][: len(then)].astype(np.int32), axis=-1)
    apart = np.max(np.abs(now - then))
    if not apart <= _ALIKE * np.max(np.abs(then)):
        raise DistillationError(
            f"{folder} is of a teacher with the same weights that computed something else: logits of the first "
            f"{len(now)} examples differ by up to {apart:.3g}; has the preparation of its inputs changed? Choose "
            "another folder, or remove it to begin anew"
        )
