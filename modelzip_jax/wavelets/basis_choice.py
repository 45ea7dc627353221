"""Which basis stores a tensor in the fewest bits at equal squared error; none of them, often."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.chaining import chain
from modelzip_jax.coding import histograms
from modelzip_jax.errors import TransformError
from modelzip_jax.partitioning import Partition, partition
from modelzip_jax.transform import Transform
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.entropy import cheapest_cuts, coded_bits
from modelzip_jax.wavelets.fixed_step import quantize_step
from modelzip_jax.wavelets.shapes import viewed
from modelzip_jax.wavelets.wavelet_domain import Wavelet

__all__ = ["Choice", "best_basis", "candidates", "choices"]

PyTree = Any
BITS = 8
_REACH = (1 << (BITS - 1)) - 0.5
_BASIS_BITS = 8.0 * 48
"""Description of a basis in a file's header and recipe."""
_WORTH = 1e-3
"""The share of the bits that a basis has to save."""
_TOLERANCE = 2e-4
"""How far below the target the error of a step size may lie, relatively."""


class Choice(NamedTuple):
    """A basis for one tensor. basis: None for the weights as they are. view: shape that is transformed.

    step: of the quantizer. bits: of the coded tensor, tables and descriptions included.
    error: squared error of the weights over their squared norm.
    """

    basis: Basis | None
    view: tuple[int, ...]
    step: float
    bits: float
    error: float

    def transform(self) -> Transform:
        """What `mz.compress` stores the tensor by."""
        quantizer = quantize_step(self.step, BITS)
        return quantizer if self.basis is None else chain(Wavelet(self.basis, self.view, None, ()), quantizer)


def candidates(shape: tuple[int, ...]) -> list[tuple[Basis, tuple[int, ...]]]:
    """Bases to try for a tensor, each with the view it works on (empty for the shape itself).

    Along each axis, and along each pair of short axes: Haar, db2, db4 and bior4.4 in three levels, and the DCT.
    An axis of a square length is also viewed as the rows of a square image.

    >>> [str(basis) for basis, _ in candidates((3, 3, 8, 8))][:2]
    ['dct block 3 over 0', 'haar 1 over 0']
    """
    found: list[tuple[Basis, tuple[int, ...]]] = []
    for axis, n in enumerate(shape):
        found += [(basis, ()) for basis in _along((axis,), n)]
        side = math.isqrt(n)
        if side * side == n and side >= 8:
            view = (*shape[:axis], side, side, *shape[axis + 1 :])
            found += [(basis, view) for basis in _along((axis, axis + 1), side)]
    short = [axis for axis, n in enumerate(shape) if 1 < n <= 32]
    for pair in itertools.combinations(short, 2):
        found += [(basis, ()) for basis in _along(pair, min(shape[axis] for axis in pair))]
    return found


def _along(axes: tuple[int, ...], n: int) -> list[Basis]:
    if n < 2:
        return []
    if n < 8:
        return [Basis("dct", "", n, axes), Basis("wavelet", "haar", 1, axes)]
    blocks = sorted({8, n} if n <= 64 else {8, 32})
    filters = ("haar", "db2", "db4", "bior4.4") if n >= 16 else ("haar", "db2")
    return [Basis("dct", "", b, axes) for b in blocks] + [Basis("wavelet", f, 3, axes) for f in filters]


@jax.jit
def _coded(y: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes as bytes, and the values that they stand for."""
    q = jnp.clip(jnp.round(y / step), -127, 127)
    return (q + 128).astype(jnp.uint8), q * step


@functools.partial(jax.jit, static_argnums=2)
def _error(x: jax.Array, values: jax.Array, basis: Basis | None) -> jax.Array:
    return jnp.sum(jnp.square((values if basis is None else basis.synthesis(values)) - x))


class _Trial(NamedTuple):
    step: float
    error: float
    codes: np.ndarray


def _fit(x: jax.Array, basis: Basis | None, target: float) -> _Trial | None:
    """The step size whose squared error meets the target; None if eight bits cannot."""
    y = x if basis is None else basis.analysis(x)
    smallest = float(jnp.max(jnp.abs(y))) / (_REACH - 1e-3)
    step = max(math.sqrt(12.0 * target / x.size), smallest)
    low, high = math.log(smallest), math.inf
    trial = None
    for _ in range(12):
        codes, values = _coded(y, jnp.float32(step))
        error = float(_error(x, values, basis))
        if error <= target and (trial is None or step > trial.step):
            trial = _Trial(step, error, np.asarray(codes))
        if abs(error / target - 1.0) < _TOLERANCE and error <= target:
            break
        low, high = (max(low, math.log(step)), high) if error <= target else (low, math.log(step))
        # Newton for an error that grows as step²; aimed a little below, since it has to be met.
        aim = math.log(step) + 0.5 * math.log((1.0 - 0.5 * _TOLERANCE) * target / max(error, 1e-30))
        aim = min(max(aim, low), high) if low < aim < high or high == math.inf else 0.5 * (low + high)
        if aim == math.log(step):
            break
        step = math.exp(aim)
    return trial


def _bits(trial: _Trial, basis: Basis | None, view: tuple[int, ...]) -> float:
    if basis is None:
        return coded_bits(histograms.count(trial.codes))
    codes = trial.codes
    parts = [
        np.concatenate([codes[band.slices].reshape(-1) for band in group])
        for _, group in itertools.groupby(basis.bands(view), key=lambda band: band.frequency)
    ]
    counts = [histograms.count(np.concatenate(parts[a:b])) for a, b in cheapest_cuts(parts)]
    return sum(map(coded_bits, counts)) + _BASIS_BITS


def choices(
    name: str, x: np.ndarray, distortion: float, bases: Iterable[tuple[Basis, tuple[int, ...]]] | None = None
) -> list[Choice]:
    """What one tensor takes in each basis at equal squared error, the smallest first.

    The weights as they are come before bases that save less than a thousandth.

    Args:
      name: of the leaf, for messages. x: its weights. distortion: squared error over squared norm; where codes
        of eight bits cannot meet it without any basis, what they can is asked of the bases.
      bases: `(basis, view)` pairs; `candidates` if None.
    """
    x = jnp.asarray(x, jnp.float32)
    norm = float(jnp.sum(jnp.square(x)))
    if norm == 0.0:
        return [Choice(None, (), 1.0, coded_bits(histograms.count(np.full(x.size, 128, np.uint8))), 0.0)]
    target = distortion * norm
    plain = _fit(x, None, target)
    if plain is None:
        step = float(jnp.max(jnp.abs(x))) / (_REACH - 1e-3)
        codes, values = _coded(x, jnp.float32(step))
        plain = _Trial(step, float(_error(x, values, None)), np.asarray(codes))
        target = plain.error
    found = [Choice(None, (), plain.step, _bits(plain, None, ()), plain.error / norm)]
    for basis, view in candidates(x.shape) if bases is None else bases:
        shape = viewed(x.shape, view, name)
        trial = _fit(x.reshape(shape), basis, target)
        if trial is not None:
            found.append(Choice(basis, view, trial.step, _bits(trial, basis, shape), trial.error / norm))
    return sorted(found, key=lambda choice: choice.bits * (1.0 + _WORTH * (choice.basis is not None)))


def best_basis(
    params: PyTree,
    distortion: float = 1e-3,
    *,
    pattern: str = "**",
    bases: Iterable[tuple[Basis, tuple[int, ...]]] | None = None,
    views: Mapping[str, tuple[int, ...]] | None = None,
    min_ndim: int = 2,
) -> Partition:
    """A transform that stores each tensor in the basis of least bits at equal squared error.

    Tries `candidates` and the weights as they are, so that it never loses: each is quantized by the step
    size that meets the same distortion, and its codes are counted as a file codes them (with statistics
    of their own for each part of the spectrum, tables and descriptions included). A basis has to save
    a thousandth: in noise, the best of many saves less by chance.

    Args:
      params: the weights. Call it on what will be compressed: steps belong to these values.
      distortion: squared error over squared norm of each tensor; 1e-3 is 30 dB.
      pattern: path pattern of the leaves to encode.
      bases: `(basis, view)` pairs to try for every leaf instead of `candidates`.
      views: path pattern to a shape with which to try its leaves, too, such as `(28, 28, -1)`; the first axes
        of the view, two of them, are transformed together.
      min_ndim: leaves of fewer axes are left alone.

    Returns:
      A `partition` with one part a leaf, for `mz.compress` or `mz.wrap`.

    Raises:
      TransformError: a distortion outside (0, 1), or no leaf selected.
      PatternError: `pattern`, or one of `views`, matches nothing.

    After Coifman & Wickerhauser 1992, https://doi.org/10.1109/18.119732.

    >>> rng, t = np.random.default_rng(0), np.linspace(0, 3, 256)[:, None]
    >>> params = {"smooth": np.sin(t + rng.normal(size=64)), "rough": rng.normal(size=(64, 64))}
    >>> haar = Basis("wavelet", "haar", 3, (0,))
    >>> [type(part).__name__ for _, part in best_basis(params, bases=[(haar, ())]).parts]
    ['StepQuantize', 'Chain']
    """
    if not 0.0 < distortion < 1.0:
        raise TransformError(f"distortion must be between 0 and 1, not {distortion!r}")
    views, given = dict(views or {}), None if bases is None else tuple(bases)
    leaves = trees.named_leaves(trees.plain(params))
    names = [name for name, _ in leaves]
    trees.require_matches([pattern, *views], names)
    transforms: dict[str, Transform] = {}
    for name, leaf in leaves:
        shape = tuple(np.shape(leaf))
        if not trees.matches(pattern, name) or len(shape) < min_ndim or not math.prod(shape):
            continue
        tried = candidates(shape) if given is None else list(given)
        for view in (v for p, v in views.items() if trees.matches(p, name)):
            whole = viewed(shape, view, name)
            tried += [(basis, whole) for basis in _along((0, 1), min(whole[:2]))]
        transforms[name] = choices(name, leaf, distortion, tried)[0].transform()
    if not transforms:
        raise TransformError(f"{pattern!r} selects no leaf of {min_ndim} axes or more")
    return partition(transforms, {name: name for name in transforms})
