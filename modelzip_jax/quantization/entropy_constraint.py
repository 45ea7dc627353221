"""Entropy-constrained quantization: the step is chosen and not the bits; what counts is code length."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.given_values import as_positive
from modelzip_jax.host_unpacking import unpacked
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_floating
from modelzip_jax.packed import Dense, is_packed
from modelzip_jax.quantization.integers import LARGEST
from modelzip_jax.quantization.rounding.feedback import ErrorFeedback
from modelzip_jax.quantization.rounding.strategy import Problem, Rounding
from modelzip_jax.quantization.scaled import ScaledCodes, computed_in
from modelzip_jax.quantization.scaled_leaf import ScaledLeaf
from modelzip_jax.quantization.spreads.by_weights import root_deviation
from modelzip_jax.quantization.spreads.spread import RelativeSteps, Spread
from modelzip_jax.quantization.strategy_names import strategy_meant
from modelzip_jax.quantization.trellis.codes import TrellisCodes
from modelzip_jax.quantization.trellis.leaf import FINER, TrellisLeaf, index_costs
from modelzip_jax.quantization.trellis.lines import RUN, SHORTEST, Lines, longest_lines
from modelzip_jax.quantization.trellis.machine import POLYNOMIALS
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import LayerAxes, as_layers, check_layers, stacked_axes
from modelzip_jax.trace.measures.layer_matrices import products
from modelzip_jax.transform import Context, Encoded, Rate, Transform
from modelzip_jax.tree import PyTree, Static

__all__ = ["EntropyConstrained", "entropy_constrained"]

_ROWS, _COLUMNS = 2.0**110, 2.0**15
"""Bounds of step sizes, and the inverse ones: their products, and the reciprocals of these, are normal numbers."""
_SLOPE = math.log(2.0) / 6.0
"""Squared error, in steps, that a bit is worth at high rates: of D = 1/12 · 2^(-2 R) the slope is -2 ln 2 D."""
_PAYING = 1.5
"""Bits of a weight from which on a trellis pays: of fewer, most are zeros, which leave it nothing to choose."""
_RUNS = 6
"""Of the outputs, at least, where they make up for each other: those of one run do not."""
_TRELLIS_SLOPE = 0.18
"""The same of a trellis, whose error is about 0.27 squared steps, halved: more did harm where errors are fed back."""


class ScaledState(NamedTuple):
    """A leaf's step sizes, as of `ScaledLeaf`; static: its dtype before encoding, and `Lines` if it has a trellis."""

    rows: jax.Array
    columns: jax.Array | None
    shift: jax.Array
    dtype: Static
    lines: Static = Static(None)

    @property
    def leaf(self) -> ScaledLeaf:
        """How the leaf is quantized."""
        if self.lines.value is None:
            return ScaledLeaf(self.rows, self.columns, self.shift)
        return TrellisLeaf(self.rows, self.columns, self.shift, lines=self.lines.value)


@recordable
@dataclasses.dataclass(frozen=True)
class EntropyConstrained(Transform):
    """See `entropy_constrained`."""

    step: float
    spread: Spread
    rounding: Rounding | None
    rate_weight: float
    layers: LayerAxes = ()
    states: int = 1

    terminal: ClassVar[bool] = True

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "entropy_constrained")
        check_layers(self.layers, weights)
        begun = [self._begun(*leaf) for leaf in context.by_leaf(weights)]
        treedef = jax.tree.structure(weights)
        latents, states = (treedef.unflatten([pair[i] for pair in begun]) for i in (0, 1))
        return Encoded(latents, (), states)

    def _begun(self, name: str, w: Any, context: Context) -> tuple[jax.Array, ScaledState]:
        layers = stacked_axes(self.layers, name, jnp.shape(w))
        missing = context.lacks(self.spread.needs + getattr(self.rounding, "needs", ()))
        if missing:
            raise TransformError(
                f"entropy_constrained() with {type(self.spread).__name__} and {type(self.rounding).__name__} needs "
                f"{', '.join(missing)}: pass {', '.join(f'{each}=' for each in missing)} to mz.compress"
                + (", or calibrate=" if "stats" in missing else "")
            )
        value = latent(w)
        relative = self.spread(name, value, layers, context)
        rows, columns = _stored_steps(name, value, self.step, relative)
        state = ScaledState(rows, columns, jnp.zeros((), value.dtype), Static(str(jnp.result_type(w))))
        lines = self._lines(name, value, state.leaf, context)
        if lines is not None:
            rows, columns = _stored_steps(name, value, self.step * FINER, relative)
            state = state._replace(rows=rows, columns=columns, lines=Static(lines))
        leaf: Any = state.leaf
        if self.rate_weight and lines is not None:
            costs = index_costs(value / leaf.steps(value.shape)[0], self.rate_weight * _TRELLIS_SLOPE)
            leaf = dataclasses.replace(leaf, costs=costs)
            if self.rounding is None:
                value = _chosen(leaf, value)
        elif self.rate_weight:
            leaf = dataclasses.replace(leaf, shift=self._shift(value / leaf.steps(value.shape)[0]))
        if self.rounding is not None:
            problem = Problem(
                name, value, leaf, layers, context.stats, context.importance, context.curvature,
                context.support, context.key,
            )  # fmt: skip
            value = self.rounding(problem).weights
        return value, state._replace(shift=leaf.shift)

    def _lines(self, name: str, w: jax.Array, leaf: ScaledLeaf, context: Context) -> Lines | None:
        """Along the outputs of a product where errors are fed back, so that those of one input are rounded together."""
        if self.states == 1 or context.support is not None or w.ndim < 2:
            return None
        if not isinstance(w, jax.core.Tracer) and float(_code_length(leaf, w)) < _PAYING:
            return None
        if self.rounding is None:
            return longest_lines(w.shape, self.states)
        layout = products(name, w.shape, context.stats, "error_feedback()").layout
        outputs = layout.places(1, 2)
        if len(layout.split) != w.ndim or not outputs:
            return None
        run = RUN
        if context.curvature is not None:
            run = min(RUN, layout.sizes[1] // _RUNS)
        return None if run < SHORTEST else Lines.along(w.shape, outputs[-1], self.states, run)

    def _shift(self, u: jax.Array) -> jax.Array:
        """δ for magnitudes, in steps, of a geometric distribution: half of what the bits of one more are worth."""
        if not u.size:
            return jnp.zeros((), u.dtype)
        mean = jnp.maximum(jnp.mean(jnp.abs(u)), 1e-3)
        bits = -jnp.log2((jnp.sqrt(1.0 + jnp.square(mean)) - 1.0) / mean)
        return jnp.minimum(0.5 * self.rate_weight * _SLOPE * bits, 0.45).astype(u.dtype)

    def _map(self, function: Any, encoded: Encoded) -> PyTree:
        """Maps over leaves: `function(w, state, leaf)`."""
        return jax.tree.map(
            lambda w, s: function(w, s, s.leaf),
            encoded.latents,
            encoded.state,
        )

    def decode(self, encoded: Encoded) -> PyTree:
        return self._map(lambda w, s, leaf: leaf.fake(w).astype(s.dtype.value), encoded)

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        return self._map(lambda w, s, leaf: leaf.packed(w, s.dtype.value), encoded)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def state(p: ScaledCodes) -> ScaledState:
            dtype = computed_in(p.dtype)
            columns = None if p.columns is None else jnp.asarray(p.columns).astype(dtype)
            lines = p.codes.along if isinstance(p.codes, TrellisCodes) else None
            shifted = self.rate_weight and lines is None
            shift = self._shift(p.elements().astype(dtype)) if shifted else jnp.zeros((), dtype)
            return ScaledState(
                jnp.asarray(p.rows).astype(dtype), columns, shift, Static(p.dtype), Static(lines)
            )

        def over(function: Any) -> PyTree:
            return jax.tree.map(function, packed, is_leaf=is_packed)

        return (), over(state), over(lambda p: Dense(latent(unpacked(p)), p.shape))

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        return self._map(lambda w, s, leaf: Rate(leaf.code_bits(w), jnp.float32(leaf.side_bits())), encoded)


@jax.jit
def _code_length(leaf: ScaledLeaf, w: jax.Array) -> jax.Array:
    return jnp.mean(leaf.code_bits(w))


@jax.jit
def _chosen(leaf: TrellisLeaf, w: jax.Array) -> jax.Array:
    return leaf.fake(w)


def _stored_steps(
    name: str, w: jax.Array, step: float, found: RelativeSteps
) -> tuple[jax.Array, jax.Array | None]:
    """Step sizes as a file holds them, within bounds.

    Relative ones have three bits behind the first: what a step is, to 6 %, does not matter; its bits in a file do. Rows
    are times one number, and so no more in kind.
    """
    for x in found:
        if x is not None and (
            x.ndim != w.ndim or any(n not in (1, m) for n, m in zip(x.shape, w.shape, strict=True))
        ):
            raise LeafError(f"a spread gave leaf {name!r} of shape {w.shape} step sizes of shape {x.shape}")
    columns = None
    if found.columns is not None:
        columns = _short(jnp.clip(found.columns.astype(w.dtype), 1.0 / _COLUMNS, _COLUMNS))
    rows = jnp.clip(_short(found.rows.astype(jnp.float32)) * jnp.float32(step), 1.0 / _ROWS, _ROWS)
    summed = tuple(a for a, n in enumerate(rows.shape) if n == 1)
    # Codes that are too large for exact products get a coarser step.
    reach = _reach(w, columns, summed) * (2.0 / LARGEST)
    return jnp.maximum(rows, reach).astype(jnp.bfloat16).astype(w.dtype), columns


@functools.partial(jax.jit, static_argnums=2)
def _reach(w: jax.Array, columns: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    """The largest magnitude over these axes, which are kept, in units of the columns' steps."""
    size = jnp.abs(w) if columns is None else jnp.abs(w) / columns
    return jnp.max(size, axis=axes, keepdims=True, initial=0.0)


def _short(x: jax.Array) -> jax.Array:
    """Rounded to three bits behind the first one."""
    fraction, exponent = jnp.frexp(x)
    return jnp.ldexp(jnp.round(fraction * 16.0), exponent - 4).astype(x.dtype)


def entropy_constrained(
    step: float,
    *,
    spread: Spread | None = None,
    rounding: Rounding | None = None,
    rate_weight: float = 0.0,
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
    states: int = 1,
) -> EntropyConstrained:
    """Rounds to multiples of a step, with no largest code: an entropy coder tells how many bits that takes.

    Where `mz.quantize` is told bits and fits steps to the range of the weights, so that a few large ones make steps
    coarse for all, this is told a step: at one squared error the code length is least if all weights have the same
    step, and at one loss if each has the step that its errors are worth, which is what `spread` chooses. In memory
    codes take as many bits as their range needs, at most 8, and what is beyond 32 bits each.

    Args:
      step: what the spread's relative step sizes are times; positive. With spreads by curvature an error of this
        quantizer costs about step² / 24 nats a weight.
      spread: of `mz.spreads`; `root_deviation()`, which needs no data, if None.
      rounding: of `mz.rounding`; to nearest if None. It chooses once, at `init`.
      rate_weight: magnitudes are made smaller by δ before they are rounded, by as much as the bits that this saves are
        worth, times this factor: 0 for none, 1 for what is worth a bit at high rates. It is for large steps.
      layers: axes that count layers, as of `mz.quantize`.
      states: of a trellis: 4, 8, 16, 32 or 64; 1 for none. Trellis-coded (or dependent) quantization: which multiples
        of a step a weight may become depends on those before it in its line, and a line's weights are rounded together
        (Viterbi), so that at one error a file is smaller. Lines lie along the outputs of a product where errors are
        fed back, else along the longest axis, and begin anew after 128 weights; after a sixth of the outputs, if those
        make up for each other, too, which they do not within a run. Weights are rounded one by one in
        leaves without lines of at least 16, in those of fewer than 1.5 bits a weight, which gain nothing (but not
        where `init` is jitted, which cannot tell), and behind a mask. Steps are finer by 0.6, at which errors are as
        large. Each decoding searches: training takes longer with it.

    Raises:
      TransformError: a step that is not positive, or what is no strategy, or a number of states that there is no
        trellis of, or one with another rounding than error feedback; or the call lacks what the spread needs.
      LeafError (at `init`): a selected leaf is not floating-point, or no product has it, where a spread needs that.

    Step sizes stay as they are while latents train. Sullivan 1996, doi:10.1109/18.532878 (dead zones); Gish & Pierce
    1968, doi:10.1109/TIT.1968.1054193. Marcellin & Fischer 1990, doi:10.1109/26.46532 (trellises).

    >>> import modelzip_jax as mz
    >>> params = {"w": jnp.array([[0.1, -0.22, 40.0]])}
    >>> t = entropy_constrained(0.1, spread=mz.spreads.even())
    >>> packed = mz.compress(params, t)
    >>> mz.unpack(packed)["w"], packed.params["w"].codes.wide
    (Array([[ 0.10009766, -0.20019531, 40.039062  ]], dtype=float32), array([400], dtype=int32))
    """
    for name, value, kind in (("spread", spread, Spread), ("rounding", rounding, Rounding)):
        if value is not None and not isinstance(value, kind):
            meant = strategy_meant(name, value, ())
            raise TransformError(f"entropy_constrained() takes a {name}{meant}, not {value!r:.100}")
    if rounding is not None and rounding.moves_zero:
        raise TransformError(f"{rounding} finds zero points, of mz.quantize(offset=True)")
    if isinstance(states, bool) or states not in (1, *POLYNOMIALS):
        raise TransformError(
            f"entropy_constrained() has trellises of {sorted(POLYNOMIALS)} states, not {states!r:.80}"
        )
    if states > 1 and not isinstance(rounding, ErrorFeedback | None):
        raise TransformError(
            f"a trellis rounds weights together, which {type(rounding).__name__} does not know of"
        )
    return EntropyConstrained(
        as_positive(step, "step"), root_deviation() if spread is None else spread, rounding,
        as_positive(rate_weight, "rate_weight", or_zero=True),
        as_layers(layers), states,
    )  # fmt: skip
