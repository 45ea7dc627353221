"""Where each parameter is used: which activation it meets, in which equation, along which axes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from modelzip_jax.trace.jaxpr.primitives import ELEMENTWISE, IDENTITY
from modelzip_jax.trace.jaxpr.programs import Program, program
from modelzip_jax.trace.usage.origins import Meeting, meetings
from modelzip_jax.trace.usage.views import View
from modelzip_jax.trace.usage.weight_rules import Weight
from modelzip_jax.tree import PyTree

__all__ = ["Use", "telling", "uses", "uses_of"]

_COPIES = IDENTITY | frozenset(
    ["concatenate", "stack", "dynamic_update_slice", "pad", "scatter", "select_n", "scan", "while", "cond"]
)


@dataclasses.dataclass(frozen=True)
class Use:
    """One place where a leaf of the parameters meets an activation.

    leaf: its name. index: the number of this use among the leaf's, from 0; tied weights have several.
    kind: "dot" (`dot_general`), "conv" (`conv_general_dilated`, the leaf being its kernel), "gather" (rows
      picked by data, as in an embedding), "elementwise" (a bias, a scale), "copy" (the leaf's values become
      activations: a class token, a learned initial state, an output of the model) or "opaque": no rule
      covers this primitive, and nothing is known but that the leaf goes in.
    primitive, path, operand: the equation, see `Equation.path`, and which of its operands holds the leaf.
    contracted, batch, output: axes of the leaf that the equation sums over, that it shares with the
      activation (experts, groups), and that it gives to its result. An axis that a reshape has split can
      be in two of them. For a convolution, input features and window are contracted.
    layers: axes of the leaf of which each iteration of a scan sees one slice.
    through: primitives that changed values between leaf and equation, such as ("dot_general", "add")
      for LoRA's W + A B: a *derived* weight; () if the leaf itself is used.
    trips: how often the equation runs in a call; None inside a `while`.
    view: which elements of the leaf the operand holds, axis by axis.

    >>> import jax.numpy as jnp
    >>> (use,) = uses(lambda p, x: x @ (2.0 * p["w"]), {"w": jnp.ones((3, 4))}, jnp.ones((2, 3)))
    >>> use.kind, use.contracted, use.output, use.through, use.derived
    ('dot', (0,), (1,), ('mul',), True)
    """

    leaf: str
    index: int
    kind: str
    primitive: str
    path: str
    operand: int
    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    output: tuple[int, ...]
    layers: tuple[int, ...]
    through: tuple[str, ...]
    trips: int | None
    view: View = dataclasses.field(repr=False)

    @property
    def derived(self) -> bool:
        """Whether arithmetic has changed the leaf before it is used."""
        return bool(self.through)


def uses(apply_fn: Callable[..., Any], params: PyTree, *inputs: Any) -> list[Use]:
    """Every use of every parameter in `apply_fn(params, *inputs)`, from its jaxpr.

    Reshapes, transposes, slices, concatenations, `jit`, `scan`, `while`, `cond`, `remat`,
    custom derivatives and `shard_map` are seen through. Nothing is computed and nothing is
    recognised by shape. A leaf that the model does not use has no entry.

    Args:
      apply_fn: the model. For Linen `model.apply`, with all collections as `params` if it has several;
        for NNX `lambda state, x: nnx.merge(graphdef, state)(x)`.
      params: a pytree of arrays or `jax.ShapeDtypeStruct`.
      *inputs: what else the model takes: arrays or `jax.ShapeDtypeStruct`.

    Returns:
      A list in the order of the equations.

    Raises:
      LeafError: a leaf is no array.
      TraceError: two leaves have the same name.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    >>> found = uses(lambda p, x: x @ p["kernel"] + p["bias"], params, jnp.ones((2, 3)))
    >>> [(u.leaf, u.kind, u.contracted, u.output) for u in found]
    [('kernel', 'dot', (0,), (1,)), ('bias', 'elementwise', (), (0,))]
    """
    return uses_of(program(apply_fn, params, *inputs))


def uses_of(traced: Program) -> list[Use]:
    """`uses` of a model that is traced already."""
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for meeting in meetings(traced):
        for use in _uses_in(meeting):
            found.append(dataclasses.replace(use, index=counts[use.leaf]))
            counts[use.leaf] += 1
    return found


def _uses_in(meeting: Meeting) -> Iterable[Use]:
    equation, operand, weight = meeting
    kind = _kind(meeting)
    contracted, batch = _roles(meeting, kind)
    for view in telling(weight):
        free = [i for i in range(len(view.axes)) if i not in contracted and i not in batch]
        yield Use(
            view.leaf, 0, kind, equation.primitive if equation.eqn else "output", equation.path, operand,
            view.axes_of(contracted), view.axes_of(batch), view.axes_of(free), view.layer_axes,
            weight.through, equation.trips, view,
        )  # fmt: skip


def telling(weight: Weight) -> list[View]:
    """Without what else of a leaf went into a derived weight, such as its norm, beside all of the leaf."""
    if not weight.through:
        return list(weight.views)
    whole = {v.leaf for v in weight.views if v.complete}
    return [v for v in weight.views if v.complete or v.leaf not in whole]


def _kind(meeting: Meeting) -> str:
    equation, operand, _ = meeting
    if equation.eqn is None or equation.primitive in _COPIES:
        return "copy"
    if equation.primitive == "dot_general":
        return "dot"
    if equation.primitive == "conv_general_dilated" and operand == 1:
        return "conv"
    if equation.primitive in ("gather", "dynamic_slice") and operand == 0:
        return "gather"
    return "elementwise" if equation.primitive in ELEMENTWISE else "opaque"


def _roles(meeting: Meeting, kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The operand's contracted and batch axes."""
    equation, operand, _ = meeting
    if kind == "dot":
        contract, batch = equation.params["dimension_numbers"]
        return tuple(contract[operand]), tuple(batch[operand])
    if kind == "conv":
        _, features, *window = equation.params["dimension_numbers"].rhs_spec
        return (features, *window), ()
    return (), ()
