"""Quantization as a transform: a grid, ranges, rounding, and step sizes that are fixed, learned, or follow training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view
from modelzip_jax.errors import LeafError, NonFiniteError, TransformError
from modelzip_jax.given_values import as_flag, as_whole
from modelzip_jax.quantization.blank_groups import is_blank
from modelzip_jax.quantization.channel_axis import check_axis
from modelzip_jax.quantization.discretization import Discretization, resolved_discretization
from modelzip_jax.quantization.fits import FoundSteps, LevelFit, LevelLeaf, UniformFit, UniformLeaf, chosen_by
from modelzip_jax.quantization.granularity import Granularity, check_granularity
from modelzip_jax.quantization.grids.evenly import UniformGrid
from modelzip_jax.quantization.grids.grid import Grid, check_bits, table
from modelzip_jax.quantization.group_offsets import with_offset
from modelzip_jax.quantization.host_codes import step_bounds
from modelzip_jax.quantization.level_codes import scale_bounds
from modelzip_jax.quantization.levelled import Levelled
from modelzip_jax.quantization.quantizer import QuantizedLeaf, Quantizer, QuantizeState
from modelzip_jax.quantization.ranges.extremes import FixedRange, MinMax
from modelzip_jax.quantization.ranges.range import Range, limits
from modelzip_jax.quantization.ranges.searched import LeastSquares
from modelzip_jax.quantization.rounding.plain import Nearest
from modelzip_jax.quantization.rounding.strategy import Problem, Rounding
from modelzip_jax.quantization.steps import choose_step
from modelzip_jax.quantization.strategy_names import strategy_meant
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import as_layers
from modelzip_jax.transform import Context

__all__ = ["Quantize", "quantize"]

_RANGES: dict[str, Range] = {"max": MinMax(), "mse": LeastSquares()}


@recordable
@dataclasses.dataclass(frozen=True)
class Quantize(Quantizer):
    """See `quantize`. grid: None for the uniform one, of which `symmetric` says where zero is."""

    range: str | Range
    grid: Grid | None = dataclasses.field(default=None, kw_only=True)
    rounding: Rounding | None = dataclasses.field(default=None, kw_only=True)
    discretization: str | Discretization = dataclasses.field(default="static", kw_only=True)
    offset: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def _range(self) -> Range:
        return _RANGES[self.range] if isinstance(self.range, str) else self.range

    def _fit(self, groups: Granularity) -> UniformFit | LevelFit:
        return (
            UniformFit(self.bits, self.symmetric, groups)
            if self.grid is None
            else LevelFit(self.grid, self.bits, groups)
        )

    @property
    def shifted(self) -> bool:
        return self.offset

    @property
    def least_step(self) -> float:
        if self.grid is None:
            return super().least_step
        if self.grid.scale == "fp8":
            return 2.0**-9
        levels = None if self.grid.follows_weights else table(self.grid, self.bits).levels
        return float(scale_bounds(levels, jnp.float32)[0])

    def chosen(
        self, name: str, w: jax.Array, groups: Granularity, importance: jax.Array | None
    ) -> FoundSteps:
        one_bit = self.grid is None and self.symmetric and self.bits == 1
        if self.grid is not None:
            _check_reach(name, w, self.grid)
        elif not self.symmetric:
            _check_range(name, w)
        if self.grid is None and (
            self._range == MinMax() or (one_bit and isinstance(self._range, LeastSquares))
        ):
            return FoundSteps(*choose_step(w, self.bits, self.symmetric, groups))
        return chosen_by(self._range, w, self._fit(groups), importance)

    def leaf_of(self, s: QuantizeState, step: jax.Array, zero: jax.Array) -> QuantizedLeaf:
        groups = self._groups(s.axis.value)
        if self.grid is None:
            return UniformLeaf(step, zero, groups, self.bits, self.symmetric)
        scale = step if s.gain is None else step * s.gain
        return LevelLeaf(
            scale, zero if self.offset else None, s.levels, step, s.gain, groups, self.bits, self.grid
        )

    def rounded(
        self, name: str, w: jax.Array, s: QuantizeState, layers: tuple[int, ...], context: Context
    ) -> tuple[jax.Array, QuantizeState]:
        rounding = Nearest() if self.rounding is None else self.rounding
        if self.offset and not rounding.moves_zero:
            near, zero = with_offset(
                Problem(name, w, self.leaf_of(s, s.step, s.zero), support=context.support)
            )
            s, w = s._replace(zero=zero), near if rounding == Nearest() else w
        missing = context.lacks(rounding.needs)
        if missing:
            measured = " or calibrate=" if "stats" in missing else ""
            raise TransformError(
                f"the rounding {type(rounding).__name__} needs {', '.join(missing)}: pass "
                f"{', '.join(f'{name}=' for name in missing)}{measured} to mz.compress, or in "
                "mz.wrap(..., given={...})"
            )
        found = rounding(
            Problem(
                name, w, self.leaf_of(s, s.step, s.zero), layers, context.stats, context.importance,
                context.curvature, context.support, context.key,
            )
        )  # fmt: skip
        new = {"step": found.step, "zero": found.zero}
        return found.weights, s._replace(**{field: x for field, x in new.items() if x is not None})

    def followed(
        self, latents: list[jax.Array], states: list[QuantizeState], context: Context
    ) -> list[QuantizeState]:
        how = resolved_discretization(self.discretization, self._range)
        if how is None:
            return super().followed(latents, states, context)
        return [how(self, w, s, context) for w, s in zip(latents, states, strict=True)]

    def moving(self, state: QuantizeState) -> dict[str, jax.Array]:
        if self.grid is None:
            return super().moving(state)
        held = {"step": state.step, "levels": state.levels, "gain": state.gain}
        return {name: x for name, x in held.items() if x is not None}

    def widened(self, latents: list[jax.Array], states: list[QuantizeState]) -> list[dict[str, jax.Array]]:
        if self.grid is None:
            return super().widened(latents, states)
        return [self._wider(w, s) for w, s in zip(latents, states, strict=True)]

    def _wider(self, w: jax.Array, s: QuantizeState) -> dict[str, jax.Array]:
        """As `widened`, of levels: what belongs to the whole leaf is chosen once it has any weight."""
        groups = self._groups(s.axis.value)
        fit = LevelFit(self.grid, self.bits, groups)  # type: ignore[arg-type]
        scale, zero = fit.steps(*limits(w, groups))
        new, never = fit.finished(w, scale, zero, None), jnp.all(s.blank)
        found = {"step": new.step}
        if s.gain is not None and new.gain is not None:
            found["gain"] = jnp.where(never, new.gain, s.gain)
            largest = jnp.finfo(jnp.float8_e4m3fn).max.astype(scale.dtype)
            clipped = jnp.clip(scale * (1.0 / found["gain"]), self.least_step, largest)
            found["step"] = clipped.astype(jnp.float8_e4m3fn).astype(scale.dtype)
        if s.levels is not None and new.levels is not None:
            found["levels"] = jnp.where(never, new.levels, s.levels)
        grows = s.blank & ~is_blank(w, groups) & (found["step"] > s.step)
        found["step"] = jnp.where(grows, found["step"], s.step)
        return found

    def resumed_levels(self, packed: Levelled) -> tuple[jax.Array | None, jax.Array | None]:
        _, gain = super().resumed_levels(packed)
        follows = self.grid is not None and self.grid.follows_weights
        return jnp.asarray(packed.levels) if follows else None, gain


def quantize(
    bits: int | None = None,
    *,
    granularity: str | None = None,
    group_size: int | None = None,
    axis: int | tuple[int, ...] | str = "auto",
    symmetric: bool = True,
    learned: bool = False,
    range: str | Range | None = None,
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
    grid: Grid | None = None,
    rounding: Rounding | None = None,
    discretization: str | Discretization = "static",
    offset: bool = False,
) -> Quantize:
    """Rounds weights to few values: the network computes with what is stored.

    What differs between methods is a strategy each: the `grid` of values, the `range` that sets their scale, the
    `rounding` that chooses among them, and the `discretization`, whether values follow training.

    Args:
      bits: 1 to 8; those that suit the grid, 8 without one, if None. Codes take exactly that many bits in memory, their
        entropy in a file.
      granularity: "tensor", "channel" (a step size for each index of `axis`), or "group" (one for
        every `group_size` weights of a channel, in C order; the last group may be shorter). A leaf of
        fewer than two axes counts as one channel. None: groups, for a grid that is meant for them, else "channel".
      group_size: weights in a group, for "group"; those of the grid, or else 128, if None.
      axis: the channel axis: -1, the outputs of Flax kernels; 0, those of PyTorch's and the rows of an embedding;
        several, such as `(0, -1)`, whose indices together number the channels.
        "auto" takes for each leaf, of its first and last axis, the one that is no side of a convolution's window, where
        such a window is seen, and else the one that by the channels' ranges has the smaller squared error for its
        bytes, steps included, and records it; under `jit`, where values cannot be looked at, the last.
      symmetric: zero point 0; one bit takes ± the mean magnitude. Otherwise the grid spans each
        group's own minimum and maximum (0 included) with an integer zero point. Of the uniform grid.
      learned: train the step sizes (and zero points) by the exact LSQ gradient, as relative offsets
        with an optimizer of their own (`mz.wrap(..., offsets_tx=)`). Advised below 4 bits, where
        training at fixed steps often diverges. With `symmetric=False, offset=True` it is LSQ+.
      range: of `mz.ranges`. "max", `min_max()`, covers every weight; "mse", `least_squares()`, clips outliers where
        that lowers the squared error. None: what suits the grid, "max" for nearly all.
      layers: axes that count layers, of leaves that hold many tensors (`nn.scan`, vmapped experts), each of which is
        quantized as a tensor of its own, `axis` being one of its axes: an axis, several, or those of each path
        pattern, `{"blocks/**": 0}`; `modelzip_jax.trace.layer_axes` finds them.
      grid: of `mz.grids`, or your own; integers times the step if None.
      rounding: of `mz.rounding`; to nearest if None. It chooses once, at `init`, and training begins with its choice.
      discretization: "static": scales and levels are chosen at `init` and stay, but for what is learned. "dynamic":
        they are chosen anew from the latents in every optimizer step. Or `mz.discretization.error_controlled(...)`.
      offset: give each group a zero point, stored beside its step, with which the mean of its rounded weights is the
        mean of its weights: the survey's offset on weights at test time. It need not be an integer, so that 0 is not
        among the values, but for weights under a mask. Another rounding than to nearest then chooses on the shifted
        grid, or chooses the offset itself, as `mz.rounding.half_quadratic` does.

    Raises:
      TransformError: a number out of range, an unknown granularity or strategy, an axis that is none, or options that
        do not go together.
      LeafError (at `init`): a selected leaf is not floating-point, or has no such axis.
      NonFiniteError (at `init`): the range of a leaf is beyond the largest float, and `symmetric` is False.

    A group of zeros has no range: its step grows with its largest latent, so that layers that start at zero train.

    Jacob et al. 2018, arXiv:1712.05877; Esser et al. 2020 (LSQ), arXiv:1902.08153; Bhalgat et al. 2020 (LSQ+),
    arXiv:2004.09576.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([[-1.0], [0.2], [0.9]])}, quantize(bits=2, granularity="tensor"))["w"].ravel()
    Array([-1.,  0.,  1.], dtype=float32)
    >>> found = mz.decoded({"w": jnp.array([[-1.0], [0.2], [0.9]])}, quantize(grid=mz.grids.nf4()))["w"]
    >>> [round(float(x), 3) for x in found.ravel()]
    [-1.0, 0.161, 1.0]
    """
    for name, value, kind, words in (
        ("grid", grid, Grid, ()),
        ("rounding", rounding, Rounding, ()),
        ("range", range, Range, tuple(_RANGES)),
        ("discretization", discretization, Discretization, ("static", "dynamic")),
    ):
        known = isinstance(value, kind) or (isinstance(value, str) and value in words)
        if value is not None and not known:
            meant = strategy_meant(name, value, words)
            raise TransformError(f"quantize() takes a {name}{meant}, not {value!r:.100}")
    bits = check_bits(bits, grid)
    flags = {"symmetric": symmetric, "learned": learned, "offset": offset}
    symmetric, learned, offset = (as_flag(value, name) for name, value in flags.items())
    if isinstance(grid, UniformGrid):
        if grid.symmetric != symmetric and not symmetric:
            raise TransformError(f"{grid} is symmetric, and symmetric={symmetric!r} is not")
        symmetric, grid = grid.symmetric, None
    own = None if grid is None else grid.group_size
    if granularity is None:
        granularity = "channel" if own is None or group_size is not None else "group"
    check_granularity(granularity)
    group_size = None if group_size is None else as_whole(group_size, "group_size", 1)
    if group_size is not None and granularity != "group":
        raise TransformError(
            f"group_size={group_size} goes with granularity='group', not with {granularity!r}"
        )
    chosen = Quantize(
        bits, granularity, group_size or own or 128, check_axis(axis), symmetric, learned,
        range or ("max" if grid is None else grid.default_range), layers=as_layers(layers), grid=grid,
        rounding=rounding, discretization=discretization, offset=offset,
    )  # fmt: skip
    _check_together(chosen)
    return chosen


def _check_reach(name: str, w: jax.Array, grid: Grid) -> None:
    """Raises `LeafError` for weights that no scale of levels reaches; of a tracer nobody can tell."""
    seen = None if isinstance(w, jax.core.Tracer) else host_view(w)
    reach = float(step_bounds(w.dtype)[1])
    if seen is not None and np.max(np.abs(seen), initial=0.0) > reach:
        raise LeafError(
            f"leaf {name!r} has weights beyond {reach:.2g}, which no scale of {grid} reaches: masks hold such numbers; "
            "leave the leaf out with mz.only or mz.partition"
        )


def _check_range(name: str, w: jax.Array) -> None:
    """Raises `NonFiniteError` for weights whose smallest and largest are too far apart for a step to be a number."""
    seen = None if isinstance(w, jax.core.Tracer) else host_view(w)
    if seen is None or not seen.size:
        return
    least, most = float(seen.min()), float(seen.max())
    if max(most, 0.0) - min(least, 0.0) > float(jnp.finfo(w.dtype).max):
        raise NonFiniteError(
            f"leaf {name!r} reaches from {least:.2g} to {most:.2g}, a range that is no {w.dtype}: an asymmetric "
            "grid has no step for it; take symmetric=True, or leave the leaf out with mz.only or mz.partition"
        )


def _check_together(q: Quantize) -> None:
    """Raises `TransformError` for options that do not go together."""
    if q.grid is not None:
        if not q.symmetric:
            raise TransformError(f"symmetric=False is of the uniform grid, not of {q.grid}")
        if not q.grid.follows_weights:
            table(q.grid, q.bits)  # What is wrong with it is said here.
    held = q.grid is not None and q.grid.scale != "float"
    sides = (q._range.low, q._range.high) if isinstance(q._range, FixedRange) else (-1.0, 1.0)
    moves, decay = q.discretization != "static", q._range.decay
    for wrong, words in (
        (q.symmetric and 0.0 in sides,
         f"{q._range} is of one sign, and the grid reaches as far below zero as above: symmetric=False"),
        (held and q.learned, f"the scales of {q.grid} are no floats, so that they cannot be learned"),
        (held and q.offset, f"the scales of {q.grid} are no floats; offset=True needs a grid with floating scales"),
        (moves and q.learned, "learned steps do not follow anything else: discretization='static'"),
        (moves and q.offset, "an offset is chosen once, for steps that stay: discretization='static'"),
        (q.rounding is not None and q.rounding.moves_zero and (q.grid is not None or not q.offset),
         f"{q.rounding} finds zero points, of the uniform grid, that need not be integers: offset=True, and no grid="),
        (moves and q.rounding is not None, "rounding chooses once, for steps that stay: discretization='static'"),
        (held and decay is not None, f"the scales of {q.grid} are no floats, so that they have no running mean"),
        (decay is not None and q.discretization != "dynamic",
         "a moving average needs something that moves: discretization='dynamic'"),
        (held and isinstance(q.discretization, Discretization),
         f"the scales of {q.grid} are no floats, so that they cannot follow the training error"),
    ):  # fmt: skip
        if wrong:
            raise TransformError(words)
