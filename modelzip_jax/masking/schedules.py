"""Sparsity as a function of the optimizer step."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.recipe import recordable

__all__ = [
    "Alternating",
    "Constant",
    "Followed",
    "Polynomial",
    "Schedule",
    "alternating",
    "as_schedule",
    "check_sparsity",
    "cubic",
    "dense_sparse_dense",
    "polynomial",
]


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """Base of schedules: the sparsity as a function of the optimizer step, and the steps at which masks change.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Late(Schedule):
    ...     begin: int
    ...
    ...     def __call__(self, step):
    ...         return jnp.where(step < self.begin, 0.0, 0.5)
    >>> late = Late(begin=100)
    >>> float(late(99)), float(late(100)), bool(late.refreshes(100, every=25))
    (0.0, 0.5, True)
    """

    @abc.abstractmethod
    def __call__(self, step: Any) -> jax.Array:
        """The sparsity at a step (int32 scalar): float32 scalar in [0, 1]."""

    def refreshes(self, step: Any, every: int) -> jax.Array:
        """Whether masks are chosen anew at a step: every so many, unless overridden."""
        return step % every == 0

    @property
    def last(self) -> float:
        """The sparsity that it ends at; 1 where nobody knows."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same sparsity at every step.

    >>> Constant(0.5)(7), Constant(0.5).last
    (Array(0.5, dtype=float32), 0.5)
    """

    sparsity: float

    def __call__(self, step: Any) -> jax.Array:
        return jnp.asarray(self.sparsity, jnp.float32)

    @property
    def last(self) -> float:
        return self.sparsity


@dataclasses.dataclass(frozen=True)
class Followed(Schedule):
    """A function of the step that is no `Schedule`, such as those of optax; values are clipped to [0, 1].

    >>> [round(float(Followed(lambda step: 0.4 * step)(step)), 3) for step in range(4)]
    [0.0, 0.4, 0.8, 1.0]
    """

    function: Callable[[Any], Any]

    def __call__(self, step: Any) -> jax.Array:
        return jnp.clip(jnp.asarray(self.function(step), jnp.float32), 0.0, 1.0)


def as_schedule(sparsity: Any) -> Schedule:
    """The schedule of a number, of a function of the step, or the one given.

    >>> float(as_schedule(0.5)(7)), float(as_schedule(lambda step: 0.01 * step)(7))
    (0.5, 0.07000000029802322)
    """
    if isinstance(sparsity, Schedule):
        return sparsity
    return Followed(sparsity) if callable(sparsity) else Constant(float(sparsity))


def check_sparsity(sparsity: Any) -> None:
    """Raises `TransformError` unless a number is in [0, 1), or a function begins in [0, 1]; later ones are clipped.

    >>> check_sparsity(80)
    Traceback (most recent call last):
    modelzip_jax.errors.TransformError: sparsity must be in [0, 1), not 80; 80 % is 0.8
    """
    if not callable(sparsity):
        _check_sparsity("sparsity", sparsity)
        return
    if isinstance(sparsity, Schedule):
        return
    found = []
    for step in (0, *(10**power for power in range(8))):
        try:
            with jax.ensure_compile_time_eval():
                found.append(np.asarray(sparsity(jnp.int32(step)), np.float64))
        except jax.errors.JAXTypeError:  # It closes over something traced, as under a vmap over sparsities.
            return
        except (TypeError, ValueError, AttributeError) as error:
            raise TransformError(f"the sparsity at step {step} is no number: {error}") from error
        begins = step <= 1
        if found[-1].size != 1 or not 0.0 <= float(found[-1]) <= (1.0 if begins else math.inf):
            raise TransformError(
                f"the sparsity at step {step} is {found[-1]}; a schedule returns a share in [0, 1]"
            )
    # What still rises is clipped on its way; what stays above 1 was meant otherwise, such as in percent.
    if found[-1] == found[-2] > 1.0:
        raise TransformError(f"the sparsity ends at {found[-1]}; a schedule returns a share in [0, 1]")


@recordable
@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """`final + (initial - final) (1 - t)^power`, t running from 0 at `begin` to 1 at `end`.

    See `polynomial`. Being a dataclass, it can be recorded in a file's recipe.
    """

    final: float
    begin: int
    end: int
    initial: float
    power: float

    def __call__(self, step: Any) -> jax.Array:
        """The sparsity at a step (int32 scalar): float32 scalar."""
        span = max(self.end - self.begin, 1)
        t = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / span, 0.0, 1.0)
        ramp = self.final + (self.initial - self.final) * (1.0 - t) ** self.power
        return jnp.where(jnp.asarray(step) >= self.end, jnp.float32(self.final), ramp)

    @property
    def last(self) -> float:
        return self.final

    def refreshes(self, step: Any, every: int) -> jax.Array:
        """Whether masks are chosen anew at a step: every so many from `begin`, and at `end`."""
        on_beat = ((step - self.begin) % every == 0) | (step == self.end)
        return on_beat & (step >= self.begin) & (step <= self.end)


def polynomial(final: float, begin: int, end: int, initial: float = 0.0, power: float = 3.0) -> Polynomial:
    """Gradual pruning from `initial` to `final` sparsity (Zhu & Gupta 2017, eq. 1).

    Args:
      final: the sparsity from step `end` on, in [0, 1).
      begin: the last optimizer step at the `initial` sparsity.
      end: the first optimizer step at the `final` sparsity; not before `begin`.
      initial: the sparsity up to `begin`, in [0, 1).
      power: 1 is linear, 3 the paper's cubic.

    Raises:
      TransformError: a sparsity outside [0, 1), or `end` before `begin`.

    >>> schedule = polynomial(0.9, begin=100, end=200, power=1)
    >>> [round(float(schedule(s)), 3) for s in (0, 150, 300)]
    [0.0, 0.45, 0.9]
    """
    _check_sparsity("final sparsity", final)
    _check_sparsity("initial sparsity", initial)
    _check_order(begin, end)
    return Polynomial(float(final), int(begin), int(end), float(initial), float(power))


def cubic(final: float, begin: int, end: int, initial: float = 0.0) -> Polynomial:
    """Gradual pruning with the cubic ramp of Zhu & Gupta 2017; see `polynomial`.

    >>> round(float(cubic(0.9, begin=0, end=10)(10)), 6)
    0.9
    """
    return polynomial(final, begin, end, initial, power=3.0)


@recordable
@dataclasses.dataclass(frozen=True)
class Alternating(Schedule):
    """See `alternating` and `dense_sparse_dense`. Masks are chosen when a phase begins, and at no other step."""

    sparsity: float
    begin: int
    end: int
    sparse: int
    dense: int
    final: float

    def __call__(self, step: Any) -> jax.Array:
        """The sparsity at a step (int32 scalar): float32 scalar."""
        step = jnp.asarray(step)
        within = (step - self.begin) % (self.sparse + self.dense) < self.sparse
        during = jnp.where((step >= self.begin) & within, jnp.float32(self.sparsity), 0.0)
        return jnp.where(step >= self.end, jnp.float32(self.final), during)

    @property
    def last(self) -> float:
        return self.final

    def refreshes(self, step: Any, every: int) -> jax.Array:
        """Whether the sparsity changes at a step."""
        return self(step) != self(step - 1)


def alternating(sparsity: float, begin: int, end: int, sparse: int, dense: int) -> Alternating:
    """AC/DC: sparse and dense phases in turn, the first at `begin`, a sparse one at the end.

    Peste et al. 2021, arXiv:2106.12379, algorithm 1. Pass `remember=False` to `prune`, so that weights come back
    from zero, as there.

    Args:
      sparsity: of the sparse phases, in [0, 1).
      begin: the first step of the first sparse phase; dense warm-up before.
      end: the step from which on everything stays sparse.
      sparse: steps of a sparse phase. dense: steps of a dense phase.

    Raises:
      TransformError: a sparsity outside [0, 1), an empty phase, or `end` before `begin`.

    >>> schedule = alternating(0.5, begin=2, end=9, sparse=2, dense=3)
    >>> [float(schedule(s)) for s in range(11)]
    [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    """
    _check_sparsity("sparsity", sparsity)
    _check_order(begin, end)
    if sparse < 1 or dense < 1:
        raise TransformError(f"phases take a step or more, not sparse={sparse} and dense={dense}")
    return Alternating(float(sparsity), int(begin), int(end), int(sparse), int(dense), float(sparsity))


def dense_sparse_dense(sparsity: float, begin: int, end: int) -> Alternating:
    """Dense, then sparse from step `begin`, then dense again from step `end` (Han et al. 2017, arXiv:1607.04381).

    The sparse phase is a regulariser: the weights that it silenced start again from zero with
    `prune(..., remember=False)`, and the network that is kept has all its weights.

    Args:
      sparsity: of the sparse phase, in [0, 1); the paper takes 0.25 to 0.5.

    Raises:
      TransformError: a sparsity outside [0, 1), or `end` not after `begin`.

    >>> [float(dense_sparse_dense(0.5, begin=2, end=4)(s)) for s in range(6)]
    [0.0, 0.0, 0.5, 0.5, 0.0, 0.0]
    """
    _check_sparsity("sparsity", sparsity)
    _check_order(begin, end - 1)
    return Alternating(float(sparsity), int(begin), int(end), int(end) - int(begin), 0, 0.0)


def _check_sparsity(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0.0 <= value < 1.0:
        percent = isinstance(value, int | float) and 1.0 < value < 100.0
        hint = f"; {value} % is {value / 100}" if percent else ""
        raise TransformError(f"{name} must be in [0, 1), not {value!r}{hint}")


def _check_order(begin: int, end: int) -> None:
    for name, step in (("begin", begin), ("end", end)):
        if isinstance(step, bool) or not isinstance(step, int | np.integer):
            raise TransformError(f"{name} counts optimizer steps, a whole number, not {step!r}")
    if end < begin:
        raise TransformError(f"the schedule ends at step {end}, before it begins at step {begin}")
