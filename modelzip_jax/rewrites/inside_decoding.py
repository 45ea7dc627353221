"""A model that computes with packed weights: each is decoded where it is used, inside of scans and loops."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from modelzip_jax import tree as trees
from modelzip_jax.compute.layering import Layered
from modelzip_jax.errors import TraceError
from modelzip_jax.packed import Dense, PackedArray, is_packed, static
from modelzip_jax.packing import Packed
from modelzip_jax.trace.jaxpr.evaluator import Collected, Evaluator, bind
from modelzip_jax.trace.jaxpr.programs import Equation, Jaxpr, Scan, While, inner_jaxpr, program
from modelzip_jax.tree import PyTree

__all__ = ["decode_inside"]


def decode_inside(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The model, unmodified, on packed parameters; same signature.

    Its jaxpr is evaluated with packed arrays in place of leaves. One is decoded by the equation that computes with
    it, inside of `jit`, `remat`, `cond`, `while` and `scan`: a step of a scan over layers slices and decodes the
    packed array of its own layer. What a loop does not scan, such as weights that every token of a generating loop
    needs, is decoded at each of its steps. Of layers in a row XLA decides when each is decoded: on a CPU all at
    first, unless XLA_FLAGS holds `--xla_cpu_enable_concurrency_optimized_scheduler=false`.

    Pure: put it under `jit`, since every call traces the model anew. For inference; gradients of packed arrays are
    nothing.

    Args:
      apply_fn: called as `apply_fn(params, *inputs)`. `params` may hold packed arrays and `Packed` models; leaves
        that are scanned come from `mz.layered`.

    Raises:
      TraceError (at the call): a scan runs over a packed leaf that is not `layered`.

    >>> import jax.numpy as jnp
    >>> import modelzip_jax as mz
    >>> def model(params, x):
    ...     return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])[0]
    >>> params = {"layers": jax.random.normal(jax.random.key(0), (3, 8, 8))}
    >>> packed = mz.compress(params, mz.quantize(4, layers=0))
    >>> held, x = mz.to_device(mz.layered(packed)), jnp.ones((1, 8))
    >>> y = jax.jit(mz.rewrites.decode_inside(model))(held, x)
    >>> bool(jnp.allclose(y, model(mz.unpack(packed), x), atol=1e-6))
    True
    """

    @functools.wraps(apply_fn)
    def decoding(params: PyTree, *inputs: Any) -> Any:
        held = jax.tree.map(
            _inside, trees.plain(params), is_leaf=lambda x: isinstance(x, Packed) or is_packed(x)
        )
        outlines = jax.tree.map(_outline, held, is_leaf=is_packed)
        traced = program(apply_fn, outlines, *inputs)
        arguments = jax.tree.leaves((held, inputs), is_leaf=is_packed)
        outputs, _ = _Decoding({}, lambda a, b: a, lambda shapes: shapes)(traced, arguments)
        return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs)

    return decoding


def _inside(x: Any) -> Any:
    if isinstance(x, Packed):
        return jax.tree.map(_inside, x.params, is_leaf=is_packed)
    return x.unpack() if isinstance(x, Dense) else x


def _outline(x: Any) -> Any:
    return jax.eval_shape(lambda p: p.unpack(), x) if is_packed(x) else x


def _decoded(x: Any) -> Any:
    return x.unpack() if is_packed(x) else x


_LATER = ("convert_element_type", "copy", "reshape", "squeeze", "transpose")
"""What weights pass through on their way to a product; done after decoding, so that it is not done early."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Later(PackedArray):
    """A packed array and an equation of `_LATER` to follow its decoding."""

    packed: PackedArray
    eqn: Any = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.eqn.outvars[0].aval.shape)

    def unpack(self) -> jax.Array:
        return bind(self.eqn, [self.packed.unpack()])[0]


def _postponed(x: PackedArray, eqn: Any) -> PackedArray:
    if isinstance(x, Layered) and eqn.primitive.name == "convert_element_type":  # Of one layer as of all.
        return dataclasses.replace(x, each=_Later(x.each, eqn))
    return _Later(x, eqn)


def _after(operands: list[Any]) -> list[Any]:
    """The operands, the packed ones not before the others.

    Else XLA moves what a loop decodes at each step in front of the loop, since only the activations change.
    """
    arrays = [x for x in operands if isinstance(x, jax.Array)]
    waiting = [x for x in operands if is_packed(x)]
    if not arrays:
        return operands
    arrays, waiting = lax.optimization_barrier((arrays, waiting))
    known, packed = iter(arrays), iter(waiting)
    return [
        next(packed) if is_packed(x) else next(known) if isinstance(x, jax.Array) else x for x in operands
    ]


class _Decoding(Evaluator):
    """Evaluates with packed arrays among the operands, which calls and loops hand on and all else decodes."""

    def _run(
        self, jaxpr: Jaxpr, arguments: Sequence[Any], path: str, feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        results, found = super()._run(jaxpr, arguments, path, feeds)
        return [_decoded(x) for x in results], found

    def _equation(
        self, equation: Equation, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        if not any(map(is_packed, operands)):
            return bind(equation.eqn, operands), {}
        inner = inner_jaxpr(equation.eqn)
        if inner is not None and not equation.primitive.startswith("custom"):
            return self._call(equation, inner, operands, feeds)
        visit = {"scan": self._scan, "while": self._while, "cond": self._cond}.get(equation.primitive)
        if visit is not None:
            return visit(equation, operands, feeds)
        if len(operands) == 1 and equation.primitive in _LATER:
            return [_postponed(operands[0], equation.eqn)], {}
        return bind(equation.eqn, [_decoded(x) for x in _after(operands)]), {}

    def _scan(
        self, equation: Equation, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        scan = Scan.of(equation.eqn)
        first = scan.num_consts + scan.num_carry
        carry = [_decoded(x) for x in operands[scan.num_consts : first]]
        scanned = [_layers(x, equation.path) for x in operands[first:]]
        return super()._scan(equation, [*operands[: scan.num_consts], *carry, *scanned], feeds)

    def _while(
        self, equation: Equation, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        loop = While.of(equation.eqn)
        first = loop.cond_consts + loop.body_consts
        carry = [_decoded(x) for x in operands[first:]]
        return super()._while(equation, [*operands[:first], *carry], feeds)


def _layers(x: Any, path: str) -> Any:
    """What a scan slices: of a packed leaf its layers' packed arrays."""
    if isinstance(x, Layered) and x.axis == 0:
        return x.each
    if is_packed(x):
        raise TraceError(
            f"the scan at {path} runs over a packed leaf of {x.shape}; pack its layers apart: "
            "mz.layered(packed, layers={pattern: 0})"
        )
    return x
