"""Wavelet, packet and cosine bases as transforms of a network's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.linear import Linear, LinearState
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.packed import PackedArray, is_packed
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Encoded
from modelzip_jax.tree import PyTree, Static
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.coefficients import Coefficients
from modelzip_jax.wavelets.shapes import crop, kept_bands, scale, synthesize, viewed

__all__ = ["Wavelet", "cosines", "wavelet"]


@trees.static_node
@dataclasses.dataclass(frozen=True)
class Geometry:
    """Of one leaf: its shape, the shape that is transformed, and the kept corner (all static)."""

    shape: tuple[int, ...]
    view: tuple[int, ...]
    corner: tuple[int, ...]

    @property
    def latent(self) -> tuple[int, ...]:
        """The shape of the latents."""
        return self.shape if self.corner == self.view else self.corner


@recordable
@dataclasses.dataclass(frozen=True)
class Wavelet(Linear):
    """See `wavelet` and `cosines`."""

    basis: Basis
    view: tuple[int, ...]
    keep: int | None
    gains: tuple[float, ...]

    def prepare(self, name: str, w: Any) -> Geometry:
        shape = tuple(jnp.shape(w))
        view = viewed(shape, self.view, name)
        if view and not all(-len(view) <= axis < len(view) for axis in self.basis.axes):
            raise LeafError(
                f"leaf {name!r} of shape {view} has no axes {self.basis.axes}; select other leaves, for "
                "example with min_ndim=2"
            )
        try:
            self.basis.work(view, bool(self.gains)) if view else 0
        except LeafError as error:
            raise LeafError(f"leaf {name!r} of shape {view}: {error}") from error
        corner = view if self.keep is None or not view else self.basis.corner(view, self.keep)
        return Geometry(shape, view, corner)

    def _gains(self) -> jax.Array | None:
        return jnp.asarray(self.gains, jnp.float32) if self.gains else None

    def analysis(self, w: jax.Array, leaf: Geometry) -> jax.Array:
        if not leaf.view:  # A scalar has no neighbours.
            return w

        def analyse(w: jax.Array) -> jax.Array:
            z = crop(self.basis.analysis(w.reshape(leaf.view)), leaf.corner)
            gains = None if not self.gains else 1.0 / jnp.asarray(self.gains, jnp.float32)
            return scale(z, gains, kept_bands(self.basis, leaf.view, leaf.corner)).reshape(leaf.latent)

        return under_any_mesh(analyse, (w,), spec_of(w) if leaf.latent == w.shape else PartitionSpec())

    def synthesis(self, z: jax.Array, leaf: Geometry) -> jax.Array:
        return synthesize(z, self.basis, leaf.view, leaf.corner, self._gains(), leaf.shape)

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def wrap(_: Any, leaf: Geometry, dtype: Static, packed: PackedArray) -> PackedArray:
            basis = self.basis
            frame = Coefficients(
                packed, None, self._gains(), leaf.shape, dtype.value, leaf.view, leaf.corner, basis.kind,
                basis.filter, basis.size, basis.axes,
            )  # fmt: skip
            return frame.with_inner(packed)

        return jax.tree.map(wrap, encoded.latents, encoded.state.maps, encoded.state.dtypes, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def over(function: Callable[[Coefficients], Any]) -> PyTree:
            return jax.tree.map(function, packed, is_leaf=is_packed)

        maps = over(lambda p: Geometry(tuple(p.shape), tuple(p.view), tuple(p.corner)))
        return (), LinearState(maps, over(lambda p: Static(p.dtype))), over(lambda p: p.gathered())


def wavelet(
    filter: str = "haar",
    levels: int = 3,
    axes: int | tuple[int, ...] = 0,
    *,
    packets: bool = False,
    view: tuple[int, ...] = (),
    keep: int | None = None,
    gains: tuple[float, ...] = (),
) -> Wavelet:
    """Weights as wavelet coefficients: what the optimizer trains, and what is pruned, quantized and stored.

    Linear, and exact up to rounding. Coefficients lie in place (Mallat's layout, see `dwt`), in the leaf's own
    shape: masks, step sizes a channel and optimizers go on working. Chained with `prune` and `quantize`:

        mz.chain(mz.wavelet("db4", axes=0), mz.quantize(bits=4, granularity="tensor"))

    One step size for all coefficients of an orthonormal basis is reverse water-filling (Cover & Thomas 2006,
    section 10.3.3): every sub-band gets the same squared error, or its whole variance if that is
    smaller. In a file, sub-bands are coded by statistics of their own where that pays.

    It pays where an axis has an order in which neighbours resemble each other (pixels, kernels), and
    nowhere else: see `docs/wavelets.md`, and `mz.best_basis`, which chooses and falls back on none.

    Args:
      filter: of `modelzip_jax.wavelets.filters.FILTERS`. bior2.2 and bior4.4 are not orthonormal.
      levels: how often the low-pass band is split; a band of one coefficient is not split further.
      axes: the axis, or axes, that are transformed together.
      packets: split the high-pass bands, too.
      view: shape to transform a leaf in, one -1 allowed: `(28, 28, -1)` gives the pixels of a
        `(784, 300)` kernel their two axes. `axes` then are axes of the view.
      keep: drop the sub-bands of frequency `keep` and above: only the corner of lower ones is trained
        and stored. Frequency 0 is the approximation; each level adds one.
      gains: how many times coarser the steps of each frequency are, from 0 on; the last one holds for
        all higher frequencies: `(1, 1, 4)` quantizes frequencies of 2 and more four times coarser.

    Raises:
      TransformError: an unknown filter, levels below 0, a gain that is not positive, `keep` below 1.
      LeafError (at `init`): a leaf without those axes, or that cannot be viewed so.

    >>> import modelzip_jax as mz
    >>> smooth = {"w": jnp.array([1.0, 1.0, 2.0, 2.0])}
    >>> t = mz.chain(mz.wavelet("haar", levels=1), mz.prune(sparsity=0.5))
    >>> mz.decoded(smooth, t)["w"].round(4)
    Array([1., 1., 2., 2.], dtype=float32)
    """
    kind = "packets" if packets else "wavelet"
    return _make(Basis(kind, filter, levels, _tuple(axes)), view, keep, gains)


def cosines(
    block: int = 8,
    axes: int | tuple[int, ...] = 0,
    *,
    view: tuple[int, ...] = (),
    keep: int | None = None,
    gains: tuple[float, ...] = (),
) -> Wavelet:
    """Weights as DCT-II coefficients of blocks; otherwise like `wavelet`.

    Args:
      block: weights in a block; a last one may be shorter. A block of an axis' length takes it whole.
      axes, view, keep, gains: as in `wavelet`; a block has frequencies 0 to `block` - 1.

    Raises:
      TransformError: a block below 1, a gain that is not positive, `keep` below 1.
      LeafError (at `init`): a leaf without those axes, or that cannot be viewed so.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([1.0, 3.0, 2.0, 2.0])}, cosines(block=4, keep=1))["w"].round(4)
    Array([2., 2., 2., 2.], dtype=float32)
    """
    return _make(Basis("dct", "", block, _tuple(axes)), view, keep, gains)


def _tuple(axes: int | tuple[int, ...]) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


def _make(basis: Basis, view: tuple[int, ...], keep: int | None, gains: tuple[float, ...]) -> Wavelet:
    if keep is not None and keep < 1:
        raise TransformError(f"keep must leave frequency 0 at least: 1 or more, not {keep}")
    if not all(0.0 < gain < float("inf") for gain in gains):
        raise TransformError(f"gains must be positive, not {gains}")
    return Wavelet(basis, tuple(view), keep, tuple(float(gain) for gain in gains))
