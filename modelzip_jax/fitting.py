"""`fit`: the least compression with which a model's file is no larger than asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.packing import Packed, compress
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = ["fit"]

_STRONGEST = 1.0 - 1e-6
_FINEST = 1e-6
_INTERPOLATED = 12


class _Try(NamedTuple):
    level: float
    size: int
    packed: Packed


def fit(
    params: PyTree,
    recipe: Callable[[float], Transform],
    *,
    bytes: int,
    variables: PyTree = None,
    tolerance: float = 0.005,
    tries: int = 40,
    **given: Any,
) -> Packed:
    """Compresses to a number of bytes on disk: `mz.save` of the result writes no more.

    Sizes are those of real files, headers and all, coded in memory at each try, by interpolation between a level
    that is too large and one that fits. It ends once a file fits and leaves no more than `tolerance` of the bytes
    unused: usually six to eight tries.

    Args:
      params: as for `mz.compress`.
      recipe: from a compression level in [0, 1) to a transform: 0 is the least, and sizes should fall with it.
        Mostly a sparsity: `lambda s: mz.only("**/kernel", mz.chain(mz.prune(sparsity=s), mz.quantize(4)))`.
      bytes: most bytes of the file.
      variables: what is to travel along, such as batch statistics; the result carries it.
      tolerance: share of the bytes that may stay unused. Where sizes go in steps (a level that sets bits, channels,
        a tiny model) it may not be reached, and the largest file that fits is the result.
      tries: most levels to try.
      **given: as for `mz.compress`.

    Returns:
      The packed model; that of level 0 if it fits as it is.

    Raises:
      TransformError: no level fits, with the smallest size found; bytes, tolerance or tries out of range; a recipe
        that makes no transform.

    >>> import numpy as np, modelzip_jax as mz
    >>> params = {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    >>> packed = fit(params, lambda s: mz.chain(mz.prune(sparsity=s), mz.quantize(bits=4)), bytes=1000)
    >>> 995 <= file_sizes(packed).total <= 1000
    True
    """
    if isinstance(recipe, Transform) or not callable(recipe):
        raise TransformError(
            "fit() takes a function from a level in [0, 1) to a transform, such as lambda s: mz.prune(sparsity=s), "
            f"not {recipe!r:.100}"
        )
    _check(bytes, tolerance, tries)

    def attempt(level: float) -> _Try:
        transform = recipe(level)
        if not isinstance(transform, Transform):
            raise TransformError(f"the recipe makes transforms, not {transform!r}")
        packed = compress(params, transform, variables=variables, **given)
        return _Try(level, file_sizes(packed).total, packed)

    too_large = attempt(0.0)
    if too_large.size <= bytes:
        return too_large.packed
    fits = attempt(_STRONGEST)
    smallest = min(too_large.size, fits.size)
    if fits.size > bytes:
        raise TransformError(
            f"no file of {bytes} bytes: the smallest found has {smallest}, at a level of {_STRONGEST}; what the recipe "
            "does not compress stays as it is"
        )
    best, target = fits, (1.0 - 0.5 * tolerance) * bytes
    over, under = too_large.size - target, fits.size - target
    side = 0
    for number in range(tries - 2):
        if best.size >= (1.0 - tolerance) * bytes or fits.level - too_large.level < _FINEST:
            break
        # Where a straight line meets the target. An end that stays twice counts half, so that both close in
        # (Illinois); what has not ended by then goes in steps, through which bisection is faster.
        share = min(max(over / (over - under), 0.02), 0.98) if number < _INTERPOLATED else 0.5
        found = attempt(too_large.level + share * (fits.level - too_large.level))
        if found.size > bytes:
            too_large, over = found, found.size - target
            under, side = under / 2 if side > 0 else under, 1
        else:
            fits, under = found, found.size - target
            over, side = over / 2 if side < 0 else over, -1
            best = found if found.size > best.size else best
    return best.packed


def _check(size: int, tolerance: float, tries: int) -> None:
    as_whole(size, "bytes", 1)
    if not 0.0 <= tolerance < 1.0 or tries < 2:
        raise TransformError(
            f"tolerance must be in [0, 1) and tries at least 2, not {tolerance!r} and {tries!r}"
        )
