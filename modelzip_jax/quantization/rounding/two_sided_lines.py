"""The program of `error_feedback` with both sides where a trellis rounds runs of outputs together.

As in `two_sided_steps`, but that the outputs of a run do not make up for each other: all of them are rounded at once,
for one input after the other. Runs whose turn it is, each at another block of inputs, go side by side.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.quantization.rounding.two_sided_steps import unit_lower_factor
from modelzip_jax.quantization.trellis.leaf import TrellisLeaf

__all__ = ["rounded_by_lines"]

_BLOCK = 64


class _Entries(NamedTuple):
    """Weights, steps, zero points and what is kept, `(runs, outputs of a run, inputs)` each."""

    w: jax.Array
    step: jax.Array
    zero: jax.Array
    kept: jax.Array


def rounded_by_lines(
    leaf: TrellisLeaf, entries: tuple[jax.Array, ...], outputs: jax.Array, inputs: jax.Array, order: bool
) -> jax.Array:
    """The values of one matrix's codes, `(outputs, inputs)`; arguments as of `rounded_two_sided`."""
    lines = leaf.lines
    run, count, width = min(lines.run, lines.length), len(outputs), len(inputs)
    leaf = dataclasses.replace(leaf, lines=lines._replace(length=run, run=run))
    # Where each output stands once all runs are of one length, and those of the largest curvature come first.
    place = jnp.arange(count)
    place = place // lines.length * (lines.runs * run) + place % lines.length
    runs = count // lines.length * lines.runs
    if order:
        weight = jnp.zeros(runs * run, outputs.dtype).at[place].set(jnp.diagonal(outputs)).reshape(runs, run)
        rank = jnp.argsort(jnp.argsort(-jnp.sum(weight, axis=1)))
        place = rank[place // run] * run + place % run
    blocks = -(-width // _BLOCK)
    padded = blocks * _BLOCK
    turn = jnp.argsort(-jnp.diagonal(inputs)) if order else jnp.arange(width)

    def arranged(x: jax.Array) -> jax.Array:
        x = jnp.pad(x[:, turn], ((0, 0), (0, padded - width)), mode="edge" if x.dtype != bool else "constant")
        empty = jnp.ones if x.dtype != bool else jnp.zeros
        return empty((runs * run, padded), x.dtype).at[place].set(x).reshape(runs, run, padded)

    held = _Entries(*map(arranged, entries))
    spread = jnp.eye(runs * run, dtype=outputs.dtype).at[place[:, None], place[None]].set(outputs)
    r = unit_lower_factor(spread)
    # Outputs of one run see nothing of each other.
    same = jnp.arange(runs * run) // run
    r = jnp.where(same[:, None] == same[None], 0.0, r).reshape(runs, run, runs * run)
    s = jnp.pad(unit_lower_factor(inputs[turn][:, turn]), ((0, padded - width), (0, padded - width)))

    def over_front(t: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        errors, seen, values = carry
        block = t - jnp.arange(runs)
        inside = (block >= 0) & (block < blocks)
        start = jnp.where(inside, block, 0) * _BLOCK
        own = _Entries(*(_cut(x, start) for x in held))
        rows = jax.vmap(lambda a: jax.lax.dynamic_slice_in_dim(s, a, _BLOCK))(start)
        # What is not rounded yet has no errors: sums over all are sums over what came before.
        along = _product(errors, jnp.swapaxes(rows, 1, 2))
        flat = seen.reshape(runs * run, padded)
        above = jax.vmap(lambda a: jax.lax.dynamic_slice_in_dim(flat, a, _BLOCK, axis=1))(start)
        made = _rounded_blocks(leaf, own, along, _product(r, above), _cut(rows, start))
        return tuple(
            _put(x, jnp.where(inside[:, None, None], new, _cut(x, start)), start)
            for x, new in zip((errors, seen, values), made, strict=True)
        )

    nothing = jnp.zeros_like(held.w)
    *_, values = jax.lax.fori_loop(0, runs + blocks - 1, over_front, (nothing, nothing, nothing))
    # The nearest code of NaN is a number: what a factor that is none has made of weights must not pass for some.
    values = jnp.where(jnp.all(jnp.isfinite(r)) & jnp.all(jnp.isfinite(s)), values, jnp.nan)
    values = values.reshape(runs * run, padded)[place, :width]
    return jnp.zeros_like(values).at[:, turn].set(values)


def _cut(x: jax.Array, start: jax.Array) -> jax.Array:
    """A block along the last axis of each of the first."""
    return jax.vmap(lambda x, a: jax.lax.dynamic_slice_in_dim(x, a, _BLOCK, axis=1))(x, start)


def _put(x: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    return jax.vmap(lambda x, y, a: jax.lax.dynamic_update_slice_in_dim(x, y, a, axis=1))(x, new, start)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _rounded_blocks(
    leaf: TrellisLeaf, own: _Entries, along: jax.Array, down: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """E, E Sᵀ and values of a block of inputs of each run."""

    def over_input(c: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        errors, seen, values = carry
        before = along[..., c] + _product(errors, s[:, c, :, None])[..., 0]
        step, zero = own.step[..., c], own.zero[..., c]
        near = leaf.values(leaf.codes(own.w[..., c] + before + down[..., c], step, zero), step, zero)
        value = jnp.where(own.kept[..., c], near, 0.0)
        error = own.w[..., c] - value
        made = error, error + before, value
        return tuple(x.at[..., c].set(new) for x, new in zip((errors, seen, values), made, strict=True))

    nothing = jnp.zeros_like(own.w)
    return jax.lax.fori_loop(0, _BLOCK, over_input, (nothing, nothing, nothing))  # type: ignore[no-any-return]
