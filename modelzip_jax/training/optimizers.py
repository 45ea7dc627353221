"""Optimizers and learning-rate schedules from a config's plain fields."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.errors import ConfigError
from modelzip_jax.loop.averaging import with_average
from modelzip_jax.naming import require_known
from modelzip_jax.tree import PyTree

__all__ = ["learning_rate", "optimizer", "sgdr"]


def sgdr(peak: float, first: int, steps: int, *, mult: float = 2.0, floor: float = 0.0) -> optax.Schedule:
    """Cosine annealing with warm restarts: each cycle `mult` times as long as the one before.

    η = floor + (peak - floor) (1 + cos(π t / T)) / 2 within a cycle of T steps (Loshchilov & Hutter 2017,
    arXiv:1608.03983, eq. 5).

    Args:
      peak: the rate at each restart. first: steps of the first cycle. steps: steps of the whole run,
        which says how many cycles are needed; the last one goes on past it. floor: the lowest rate.

    >>> schedule = sgdr(1.0, first=10, steps=30)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 20)]
    [1.0, 0.5, 1.0, 0.5]
    """
    if first < 1 or mult < 1.0:
        raise ConfigError(f"a cycle lasts at least one step and never shrinks, got {first} and {mult}")
    lengths, begins = [first], [0]
    while begins[-1] + lengths[-1] < steps:
        begins.append(begins[-1] + lengths[-1])
        lengths.append(max(round(lengths[-1] * mult), 1))
    cycles = [optax.cosine_decay_schedule(peak, length, alpha=floor / peak) for length in lengths]
    return optax.join_schedules(cycles, begins[1:])


def learning_rate(config: Any, steps: int) -> optax.Schedule:
    """The schedule that `config` (see `config.base().schedule`) describes, for a run of `steps`.

    Raises:
      ConfigError: an unknown name.
    """
    name = require_known("schedule.name", config.name, ("constant", "cosine", "sgdr", "step"))
    peak, warmup = float(config.peak), int(config.warmup)
    rest = max(steps - warmup, 1)
    if name == "constant":
        main = optax.constant_schedule(peak)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=config.floor)
    elif name == "sgdr":
        main = sgdr(peak, config.first or rest, rest, mult=config.mult, floor=config.floor * peak)
    else:
        drops = {round(rest * share): config.gamma for share in config.drops}
        main = optax.piecewise_constant_schedule(peak, drops)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """The optimizer of the weights: clipping, then sgd, adamw or lamb, then the moving average.

    Gradient accumulation is not in it: `optax.MultiSteps` stands outside of `mz.wrap`.

    Args:
      config: the fields of `config.base().optimizer`, with `schedule`.
      steps: optimizer steps of the whole run.

    Raises:
      ConfigError: an unknown name.
    """
    name = require_known("optimizer.name", config.name, ("sgd", "adamw", "lamb"))
    rate, decay = learning_rate(config.schedule, steps), float(config.weight_decay)
    if name == "sgd":
        # The papers' L2 term, which goes through the momentum, unlike adamw's decoupled decay.
        momentum = float(config.momentum) or None
        core = optax.chain(
            optax.add_decayed_weights(decay, matrices), optax.sgd(rate, momentum, nesterov=config.nesterov)
        )
    elif name == "adamw":
        core = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=decay, mask=matrices)
    else:
        core = optax.lamb(rate, b1=config.b1, b2=config.b2, weight_decay=decay, mask=matrices)
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    tx = optax.chain(*parts, core)
    averaged = tuple(config.get("averaged", ())) or "**"
    return with_average(tx, config.average, averaged) if config.average else tx


def matrices(params: PyTree) -> PyTree:
    """The mask of what weight decay is for: leaves of two axes or more, not biases and norms.

    >>> matrices({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
