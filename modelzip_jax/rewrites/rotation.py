"""Rotation of residual streams: an orthogonal matrix folded into all that writes and reads them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.patterns import require_matches
from modelzip_jax.rewrites.channel_scaling import finite_leaves, rescale
from modelzip_jax.rewrites.orthogonal_matrices import random_hadamard
from modelzip_jax.trace.coupling.labels import Reason
from modelzip_jax.trace.jaxpr.interpreter import interpret
from modelzip_jax.trace.jaxpr.programs import Program, program
from modelzip_jax.trace.symmetry.scalable_channels import ScaleGroup, scales_of
from modelzip_jax.trace.symmetry.turn_domain import FLAT, ZERO, Mark, TurnDomain, Turned, Turns
from modelzip_jax.trace.symmetry.turn_rules import turn_rule_of
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.tree import PyTree

__all__ = ["Rotated", "rotate"]


@dataclasses.dataclass(frozen=True, eq=False)
class Rotated:
    """A network whose streams were rotated.

    params: the same function to rounding. matrices: Q of each stream, float64 `(channels, channels)`, by the name of
    a leaf of it. members: the leaves and axes that were multiplied by it. folded: the norms' scales that went into
    the layers that read them, and are ones now.

    >>> Rotated({}, {}, {}, ()).folded
    ()
    """

    params: PyTree
    matrices: Mapping[str, np.ndarray]
    members: Mapping[str, tuple[tuple[str, int], ...]]
    folded: tuple[str, ...]


class _Stream(NamedTuple):
    members: tuple[tuple[str, int], ...]
    size: int
    reasons: list[Reason]
    keeps_ones: bool
    gains: set[str]


def rotate(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    key: jax.Array | None = None,
    stream: str | None = None,
) -> Rotated:
    """The same network, its residual streams rotated by a random Hadamard matrix: outliers are spread over channels.

    Everything that writes a stream (embeddings, output kernels, their biases) and reads it is multiplied by Q,
    W ← W Q along the stream's axis. A stream is found in the jaxpr: axes that meet in additions and sums of products
    and in nothing that is not linear. An RMS norm commutes with every Q once its scale is ones, a layer norm, which
    subtracts the mean, with those that keep the vector of ones: such a Q is taken where a mean is. The
    scale is folded first, γ into the kernels that read the norm and 1/γ into its bias, so it must not be zero
    and nothing else may read the norm. A tied output matrix therefore cannot stand behind a learned scale.

    A size that is no power of two gets the Kronecker product of a Hadamard matrix and a random orthogonal one (see
    `orthogonal_matrices`). Products are computed in float64 on the host.

    Args:
      apply_fn, params, *inputs: as for `trace.couplings`; of the inputs, shapes suffice.
      key: of the random signs; `jax.random.key(0)` by default.
      stream: path of a leaf of the one stream to rotate, such as the token embedding; all that can be by default.

    Returns:
      `Rotated`, its params of the same structure and dtypes.

    Raises:
      TransformError: no stream can be rotated, or not the one that is named: says which equation or leaf prevents it.
      PatternError: no leaf has the name `stream`. NonFiniteError: a leaf of it holds NaN or infinity.

    Ashkboos et al. 2024, QuaRot, arXiv:2404.00456, §3 and 4, and SliceGPT, arXiv:2401.15024, §3.

    >>> params = {"embedding": jnp.eye(4), "kernel": jnp.ones((4, 2))}
    >>> def model(p, tokens):
    ...     x = p["embedding"][tokens]
    ...     return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)) @ p["kernel"]
    >>> tokens = jnp.array([0, 3])
    >>> rotated = rotate(model, params, tokens)
    >>> rotated.members
    {'embedding': (('embedding', 1), ('kernel', 0))}
    >>> bool(jnp.allclose(model(rotated.params, tokens), model(params, tokens)))
    True
    """
    check_float_params(params, "rotate()")
    traced = program(apply_fn, params, *inputs)
    if stream is not None:
        require_matches([stream], traced.names)
    leaves = dict(trees.named_leaves(params))
    found = _streams(traced, leaves)
    wanted = [s for s in found if stream is None or stream in {leaf for leaf, _ in s.members}]
    free = [s for s in wanted if not s.reasons and len(s.members) > 1]
    folds, refused = _folds(traced, params, {g for s in free for g in s.gains})
    chosen = [s for s in free if not s.gains & set(refused)]
    if not chosen:
        raise TransformError(_refusal(wanted, refused))
    gains = {g for s in chosen for g in s.gains}
    folded = tuple(sorted(name for name in folds if name in gains))
    params = _fold(params, [pair for name in folded for pair in folds[name]], folded)
    rng = np.random.default_rng(np.asarray(jax.random.bits(jax.random.key(0) if key is None else key, (4,))))
    matrices = {s.members[0][0]: random_hadamard(s.size, rng, s.keeps_ones) for s in chosen}
    members = {s.members[0][0]: s.members for s in chosen}
    return Rotated(_turned(params, matrices, members), matrices, members, folded)


def _streams(traced: Program, leaves: dict[str, Any]) -> list[_Stream]:
    """Classes of leaf axes that meet, largest first."""
    by_leaf: dict[str, list[Use]] = collections.defaultdict(list)
    for use in uses_of(traced):
        by_leaf[use.leaf].append(use)
    order = list(by_leaf)
    turns = Turns()
    domain = TurnDomain(turns, turn_rule_of)
    arguments = [Turned(_marks(name, leaves[name], by_leaf[name], turns)) for name in traced.names]
    axes = [(n, i, m) for n, a in zip(traced.names, arguments, strict=True) for i, m in enumerate(a.marks)]
    for i, v in enumerate(traced.jaxpr.jaxpr.invars[len(arguments) :]):
        shape = tuple(getattr(v.aval, "shape", ()))
        arguments.append(Turned(domain.stuck(shape, Reason(f"input:{i}", "", "is an axis of an input"))))
    for i, output in enumerate(interpret(domain, traced, arguments)):
        for mark in output.marks:
            turns.block(mark, Reason(f"output:{i}", "", "is an axis of an output"))
    classes: dict[int, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, axis, mark in axes:
        if mark.node >= 0:
            classes[turns.root(mark.node)].append((name, axis))
    shapes = dict(zip(traced.names, traced.shapes, strict=True))
    streams = [
        _Stream(
            tuple(sorted(own, key=lambda a: order.index(a[0]))),
            shapes[own[0][0]][own[0][1]],
            *turns.facts(root),
        )
        for root, own in classes.items()
        if all(name in by_leaf for name, _ in own)
    ]
    return sorted(streams, key=lambda s: -len(s.members))


def _marks(name: str, leaf: Any, uses: list[Use], turns: Turns) -> tuple[Mark, ...]:
    """Leaves that only multiply have to become ones; zeros and constants need not turn."""
    value = np.asarray(leaf)
    elementwise = bool(uses) and all(use.kind == "elementwise" for use in uses)
    if elementwise and value.size and not value.any():
        return (ZERO,) * value.ndim
    if elementwise and value.size and np.all(value == value.flat[0]):
        return (FLAT,) * value.ndim
    if elementwise and all(use.primitive in ("mul", "div") for use in uses):
        return (Mark("flat", gains=frozenset([name])),) * value.ndim
    return tuple(turns.fresh() if size != 1 else FLAT for size in value.shape)


_Folds = dict[str, list[tuple[ScaleGroup, np.ndarray]]]


def _folds(traced: Program, params: PyTree, gains: set[str]) -> tuple[_Folds, dict[str, str]]:
    """The scalings that make ones of leaves, and why there are none for some."""
    if not gains:
        return {}, {}
    scales = scales_of(traced, linear=True, fixed=lambda use: False)
    values = finite_leaves(params, gains)
    folds: _Folds = {}
    refused: dict[str, str] = {}
    for name in sorted(gains):
        left = np.ones(values[name].size, bool)
        for group in scales.groups:
            own = [m for m in group.members if m.block.leaf == name]
            if len(own) != 1 or abs(own[0].power) != 1 or own[0].indices.shape[1] != 1:
                continue
            places = own[0].indices[:, 0]
            value = values[name].reshape(-1)[places]
            if left[places].all() and value.all():
                folds.setdefault(name, []).append((group, value ** -own[0].power))
                left[places] = False
        if left.any():
            zero = "it has zeros" if not values[name].all() else "it reaches what cannot be scaled with it"
            refused[name] = zero
    return folds, refused


def _fold(params: PyTree, pairs: list[tuple[ScaleGroup, np.ndarray]], folded: tuple[str, ...]) -> PyTree:
    params = rescale(params, pairs)

    def exact(name: str, x: Any) -> Any:
        if name not in folded:
            return x
        value = np.asarray(x, np.float64)
        if not np.allclose(value, 1.0, atol=1e-2):
            raise LeafError(f"scale {name!r} cannot be folded together with the others of {folded}")
        return jnp.ones_like(x) if isinstance(x, jax.Array) else np.ones_like(x)

    return trees.map_named(exact, params)


def _turned(
    params: PyTree, matrices: Mapping[str, np.ndarray], members: Mapping[str, tuple[tuple[str, int], ...]]
) -> PyTree:
    turns: dict[str, list[tuple[int, np.ndarray]]] = collections.defaultdict(list)
    for name, own in members.items():
        for leaf, axis in own:
            turns[leaf].append((axis, matrices[name]))
    finite_leaves(params, turns)

    def turned(name: str, x: Any) -> Any:
        if name not in turns:
            return x
        value = np.asarray(x, np.float64)
        for axis, matrix in turns[name]:
            value = np.moveaxis(np.moveaxis(value, axis, -1) @ matrix, -1, axis)
        made = value.astype(jnp.result_type(x))
        return jnp.asarray(made) if isinstance(x, jax.Array) else made

    return trees.map_named(turned, params)


def _refusal(wanted: list[_Stream], refused: dict[str, str]) -> str:
    """The reasons, of the largest streams first; that an axis is of an input or output goes without saying."""
    lines = []
    for each in wanted:
        leaf, axis = each.members[0]
        gains = [f"the scale {g!r} cannot be folded: {refused[g]}" for g in sorted(each.gains & set(refused))]
        whys = [f"it {r.why} ({r.path})" for r in each.reasons if r.primitive][:3] + gains
        if whys:
            lines.append(f"axis {axis} of {leaf!r} and {len(each.members) - 1} more: {'; '.join(whys)}")
    return "no stream can be rotated exactly. " + (
        ". ".join(lines[:4]) or "No leaf reads what another writes"
    )
