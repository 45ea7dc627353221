"""The allowed integers nearest to numbers: Viterbi's algorithm, in integers, so that host and device find the same.

Numbers are in 256ths, errors in 65,536ths, and so are the bits of indices where those count: at `init` what a bit is
worth; later, when weights that were found to be allowed are to give themselves, nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.quantization.trellis.machine import index_of, preceding

__all__ = ["UNIT", "in_256ths", "integers", "integers_on_host"]

UNIT = 256
_LANES = 1024
"""Lines at a time on the host: what is in between stays in the cache."""
_BLOCK = 512
"""As much under jit."""
_FAR = 1 << 29
_REACH = 30000
"""Whose square is an int32; zero is no choice for what is farther from it."""


def in_256ths(u: Any, xp: Any) -> Any:
    """Numbers in 256ths: int32."""
    reach = xp.asarray((1 << 22) - 4, u.dtype)
    return xp.rint(xp.clip(u, -reach, reach) * xp.asarray(UNIT, u.dtype)).astype(xp.int32)


def _candidates(x: Any, bits: Any, xp: Any) -> tuple[Any, Any]:
    """The nearest integers of quantizer 0 with an even and an odd index, and of quantizer 1: `(4, ...)`; their costs.

    bits: costs of magnitudes of indices, int32 `(2, n)`, or None.
    """
    size, sign = xp.abs(x), xp.where(x < 0, -1, 1).astype(xp.int32)
    three = xp.maximum((((size - UNIT) >> 10) << 2) + 3, 0)
    one = (((size + UNIT) >> 10) << 2) + 1
    found = xp.stack([((x + 2 * UNIT) >> 10) << 2, ((x >> 10) << 2) + 2, three * sign, one * sign])
    error = x - found * UNIT
    cost = error * error
    near = xp.minimum(size, _REACH)
    nothing = near * near
    if bits is not None:
        last = bits.shape[1] - 1
        index = xp.minimum(xp.abs(index_of(found)), last)
        cost = cost + xp.concatenate([xp.take(bits[0], index[:2]), xp.take(bits[1], index[2:])])
        zeros = xp.stack([nothing + bits[0, 0], nothing + bits[1, 0]])
    else:
        zeros = xp.stack([nothing, nothing])
    even = xp.stack([cost[0], cost[2]])
    better = zeros < even
    even = xp.where(better, zeros, even)
    whole = xp.where(better, 0, xp.stack([found[0], found[2]]))
    return xp.stack([whole[0], found[1], whole[1], found[3]]), xp.stack([even[0], cost[1], even[1], cost[3]])


def integers_on_host(x: np.ndarray, bits: np.ndarray | None, states: int) -> np.ndarray:
    """The allowed integers of lines with the least sum of costs: int32 `(positions, lines)`, as `x`.

    Args:
      x: int32 `(positions, lines)`, see `in_256ths`. bits: int32 `(2, n)`: what an index of each magnitude costs in
        each quantizer; or None. states: of `machine.POLYNOMIALS`. Every line begins in state 0.

    >>> integers_on_host(in_256ths(np.float32([[1.1], [0.9], [2.2]]), np), None, 4).ravel().tolist()
    [2, 1, 3]
    """
    found = np.empty_like(x)
    for start in range(0, x.shape[1], _LANES):
        part = slice(start, start + _LANES)
        found[:, part] = _path(x[:, part], bits, states)
    return found


def _path(x: np.ndarray, bits: np.ndarray | None, states: int) -> np.ndarray:
    positions, lanes = x.shape
    before, half = preceding(states), states // 2
    cost = np.full((states, lanes), _FAR, np.int32)
    cost[0] = 0
    taken = np.empty((positions, states, lanes), np.bool_)
    choices, own = _candidates(x, bits, np)
    even, odd = np.empty_like(cost), np.empty_like(cost)
    for p in range(positions):
        for reached, sources, at in ((even, before[0], 0), (odd, before[1], 1)):
            cost.take(sources, axis=0, out=reached, mode="clip")
            reached[:half] += own[at, p]
            reached[half:] += own[at + 2, p]
        np.less(odd, even, out=taken[p])
        np.minimum(even, odd, out=cost)
    state = cost.argmin(axis=0)
    lines = np.arange(lanes)
    found = np.empty_like(x)
    for p in range(positions - 1, -1, -1):
        odd = taken[p, state, lines].view(np.int8)
        state = before[odd, state]
        found[p] = choices[2 * (state & 1) + odd, p, lines]
    return found


def integers(x: jax.Array, bits: jax.Array | None, states: int) -> jax.Array:
    """As `integers_on_host`, jittable."""
    count = x.shape[1]
    if count <= _BLOCK:
        return _found(x, bits, states)
    blocks = -(-count // _BLOCK)
    padded = jnp.pad(x, ((0, 0), (0, blocks * _BLOCK - count)))
    parts = jnp.moveaxis(padded.reshape(len(x), blocks, _BLOCK), 1, 0)
    found = jax.lax.map(lambda part: _found(part, bits, states), parts)
    return jnp.moveaxis(found, 0, 1).reshape(len(x), -1)[:, :count]


@functools.partial(jax.jit, static_argnums=2)
def _found(x: jax.Array, bits: jax.Array | None, states: int) -> jax.Array:
    before, half = preceding(states), states // 2

    # Before the loop: XLA would compute them once for each state in it.
    choices, own = (jnp.moveaxis(each, 1, 0) for each in _candidates(x, bits, jnp))

    def forward(cost: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        upper = (jnp.arange(states) >= half)[:, None]
        even = cost[before[0]] + jnp.where(upper, own[2], own[0])
        odd = cost[before[1]] + jnp.where(upper, own[3], own[1])
        return jnp.minimum(even, odd), odd < even

    start = jnp.where(jnp.arange(states) == 0, 0, _FAR).astype(jnp.int32)
    cost, taken = jax.lax.scan(forward, jnp.broadcast_to(start[:, None], (states, x.shape[1])), own)

    def backward(state: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        choices, taken = at
        odd = jnp.take_along_axis(taken, state[None], axis=0)[0].astype(jnp.int32)
        state = jnp.asarray(before.reshape(-1))[odd * states + state]
        return state, jnp.take_along_axis(choices, (2 * (state & 1) + odd)[None], axis=0)[0]

    last = jnp.argmin(cost, axis=0).astype(jnp.int32)
    return jax.lax.scan(backward, last, (choices, taken), reverse=True)[1]
