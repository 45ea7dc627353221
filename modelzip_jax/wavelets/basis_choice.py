"""Which basis stores a tensor in the fewest bits at equal squared error; none of them, often."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.chaining import chain
from modelzip_jax.coding import histograms
from modelzip_jax.coding.contexts import element_bits
from modelzip_jax.coding.entropy import coded_bits, lossless_bits
from modelzip_jax.errors import TransformError
from modelzip_jax.partitioning import Partition, partition
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.transform import Transform, identity
from modelzip_jax.tree import PyTree
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.coefficients import spectral_parts
from modelzip_jax.wavelets.fixed_step import quantize_step
from modelzip_jax.wavelets.host_bases import analysed, synthesized
from modelzip_jax.wavelets.shapes import viewed
from modelzip_jax.wavelets.step_fit import BITS, WHOLE, fit_steps
from modelzip_jax.wavelets.wavelet_domain import Wavelet

__all__ = ["Choice", "best_basis", "candidates", "choices"]

_BASIS_BITS = 8.0 * 48
"""Description of a basis in a file's header and recipe."""
_WORTH = 1e-3
"""The share of the bits that a basis has to save."""
_EXACT = 3
"""Bases whose bits are counted by classes of rows and columns, too: those of fewest bits without."""
_ROUNDING = 1e-5
"""By how much, relatively, errors of weights and of coefficients may differ in float32."""
_GROUPS = (512, 128, 32)
"""Weights that share a step where one for all does not meet the distortion, nor one for each channel."""


class Choice(NamedTuple):
    """A basis for one tensor. basis: None for the weights as they are. view: shape that is transformed.

    step: of the quantizer; 0 for none: lossless. bits: of the coded tensor, tables and descriptions included.
    error: squared error of the weights over their squared norm. groups: which weights may take a larger step together,
    where codes would not reach.
    """

    basis: Basis | None
    view: tuple[int, ...]
    step: float
    bits: float
    error: float
    groups: Granularity = WHOLE

    def transform(self) -> Transform:
        """What `mz.compress` stores the tensor by."""
        if self.step == 0.0:
            return identity()
        kind, axis, size = self.groups.kind, self.groups.axis, self.groups.group_size
        quantizer = quantize_step(self.step, BITS, granularity=kind, group_size=size, axis=axis)
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


def _bits(
    codes: np.ndarray, basis: Basis, view: tuple[int, ...], shape: tuple[int, ...], classes: bool
) -> float:
    """Of coefficients as the file holds them, or with one histogram for what the file holds by classes."""
    inside = element_bits(codes.reshape(shape)) if classes else float(coded_bits(histograms.count(codes)))
    return spectral_parts(codes, basis.bands(view), inside)[1] + _BASIS_BITS


def _plain(x: np.ndarray, target: float, norm: float, lossless: float) -> Choice:
    """The weights as they are: one step for all if eight bits meet the target, else more of them, else lossless."""
    trial = fit_steps(x, target, WHOLE)
    if trial is not None:
        return Choice(None, (), trial.step, element_bits(trial.codes), trial.error / norm)
    found = [Choice(None, (), 0.0, lossless, 0.0)]
    channels = [Granularity("channel", axis, 128) for axis, n in enumerate(x.shape) if n > 1 and x.ndim > 1]
    for groups in channels + [Granularity("group", -1, size) for size in _GROUPS]:
        trial = fit_steps(x, target, groups)
        if trial is not None:
            bits = element_bits(trial.codes) + lossless_bits(trial.steps)
            found.append(Choice(None, (), trial.step, bits, trial.error / norm, groups))
    return min(found, key=lambda choice: choice.bits)


def _in_basis(
    x: np.ndarray, basis: Basis, view: tuple[int, ...], target: float, norm: float, classes: bool = False
) -> Choice | None:
    """What the basis takes, with one step for all; None if eight bits cannot meet the target. classes: see `_bits`."""
    whole = x.reshape(view)
    coefficients = analysed(whole, basis)
    if basis.orthonormal:
        trial = fit_steps(coefficients, target * (1.0 - _ROUNDING), WHOLE)
    else:
        error = lambda off: float(np.sum(np.square(synthesized(off, basis))))  # noqa: E731
        trial = fit_steps(coefficients, target * (1.0 - _ROUNDING), WHOLE, error)
    if trial is None:
        return None
    return Choice(
        basis, view, trial.step, _bits(trial.codes, basis, view, x.shape, classes), trial.error / norm
    )


def choices(
    name: str, x: np.ndarray, distortion: float, bases: Iterable[tuple[Basis, tuple[int, ...]]] | None = None
) -> list[Choice]:
    """What one tensor takes in each basis at equal squared error, the smallest first.

    The weights as they are come before bases that save less than a thousandth. Bases whose coefficients eight bits
    cannot hold at that distortion are left out; the weights as they are are always among them: where one step size
    cannot meet it, channels or groups take steps of their own, and where these cannot, the tensor stays lossless.

    Args:
      name: of the leaf, for messages. x: its weights. distortion: squared error over squared norm.
      bases: `(basis, view)` pairs; `candidates` if None.

    >>> smooth = np.cos(np.linspace(0.0, 3.0, 4096)).astype(np.float32)
    >>> haar = Basis("wavelet", "haar", 3, (0,))
    >>> found = choices("w", smooth, 1e-3, [(haar, ())])
    >>> [str(choice.basis) for choice in found], found[0].bits < found[1].bits
    (['haar 3 over 0', 'None'], True)
    """
    lossless, rounding = lossless_bits(np.asarray(x)), _cast_error(x)
    x = np.ascontiguousarray(np.asarray(x, np.float32))
    # A power of two rounds nothing, and squares of what is near 1 neither vanish nor overflow.
    scale = int(np.frexp(np.abs(x).max(initial=0.0))[1])
    x = np.ldexp(x, -scale)
    norm = float(np.sum(np.square(x), dtype=np.float64))
    if norm == 0.0:
        return [
            Choice(None, (), 1.0, float(coded_bits(histograms.count(np.full(x.size, 128, np.uint8)))), 0.0)
        ]
    target = (distortion - rounding) * norm
    if target <= 0.0:
        return [Choice(None, (), 0.0, lossless, 0.0)]
    tried = []
    for basis, view in candidates(x.shape) if bases is None else bases:
        choice = _in_basis(x, basis, viewed(x.shape, view, name), target, norm)
        if choice is not None:
            tried.append((choice.bits, basis, tuple(view), choice))
    tried.sort(key=lambda each: each[0])
    # Classes take long to learn: only the nearest to being chosen are counted with them.
    exact = [
        (basis, view, _in_basis(x, basis, viewed(x.shape, view, name), target, norm, classes=True))
        for _, basis, view, _ in tried[:_EXACT]
    ]
    rest = [(basis, view, choice) for _, basis, view, choice in tried[_EXACT:]]
    found = [_plain(x, target, norm, lossless)]
    found += [choice._replace(view=view) for _, view, choice in (*exact, *rest) if choice is not None]
    found = [choice._replace(step=math.ldexp(choice.step, scale)) for choice in found]
    return sorted(found, key=lambda choice: choice.bits * (1.0 + _WORTH * (choice.basis is not None)))


def _cast_error(x: Any) -> float:
    """Squared error over squared norm of what a half-precision leaf adds: its values are rounded once more."""
    dtype = jnp.result_type(x)
    return float(jnp.finfo(dtype).eps) ** 2 / 12.0 if jnp.dtype(dtype).itemsize < 4 else 0.0


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
    a thousandth: in noise, the best of many saves less by chance. Where codes of eight bits and one step size
    cannot meet the distortion, as with an outlier, channels or groups that codes do not reach take larger steps and
    the rest smaller ones; where that is not enough, the tensor is left lossless.

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
    require_matches([pattern, *views], names)
    transforms: dict[str, Transform] = {}
    for name, leaf in leaves:
        shape = tuple(np.shape(leaf))
        if not matches(pattern, name) or len(shape) < min_ndim or not math.prod(shape):
            continue
        tried = candidates(shape) if given is None else list(given)
        for view in (v for p, v in views.items() if matches(p, name)):
            whole = viewed(shape, view, name)
            tried += [(basis, whole) for basis in _along((0, 1), min(whole[:2]))]
        transforms[name] = choices(name, leaf, distortion, tried)[0].transform()
    if not transforms:
        raise TransformError(f"{pattern!r} selects no leaf of {min_ndim} axes or more")
    return partition(transforms, {name: name for name in transforms})
