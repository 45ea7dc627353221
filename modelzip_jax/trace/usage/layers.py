"""Which axes of a leaf count layers or experts, so that the leaf is many tensors in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from modelzip_jax.trace.jaxpr.programs import program
from modelzip_jax.trace.usage.origins import Meeting, meetings
from modelzip_jax.trace.usage.use import telling
from modelzip_jax.trace.usage.views import Axis, Misaligned, View, along, split_axis
from modelzip_jax.tree import PyTree

__all__ = ["layer_axes"]


def layer_axes(apply_fn: Callable[..., Any], params: PyTree, *inputs: Any) -> dict[str, tuple[int, ...]]:
    """The axes of each leaf that count layers of a scan or experts of a `vmap`: what `layers=` of transforms takes.

    An axis counts layers if in every use of the leaf each index of it is a tensor of its own:

    - a scan or a loop's counter picks one index an iteration (`nn.scan`, `nnx.scan`, `lax.scan`, `fori_loop`), or
      the model picks each of them somewhere by a constant (`w[0]`, `w[1]`, ... of a loop written in Python);
    - or each index meets activations of its own: a batch axis of a `dot_general`, the groups of a `ragged_dot`, or
      an axis that numbers the groups of a convolution, as `nn.vmap` and `jax.vmap` make them.

    A leaf of which one use says otherwise, such as a tied one, has none. Nor has what nothing tells from one larger
    tensor: biases and scales of vmapped experts, which meet activations element by element (those of scanned layers
    do have the scan's axis), experts that all read one input, and experts that data picks (`w[index]`).

    Args:
      apply_fn, params, *inputs: as for `uses`; shapes suffice. Names are those of `params`, so that it must be the
        tree that the transform is given: `lambda params, x: model.apply({"params": params}, x)`.

    Returns:
      The axes of every leaf by its path, ascending and counted from the front; () for a leaf that is one tensor.

    Raises:
      LeafError: a leaf is no array.
      TraceError: two leaves have the same name.

    >>> import jax, jax.numpy as jnp, modelzip_jax as mz
    >>> params = {"blocks": jnp.ones((3, 4, 4)), "head": jnp.ones((4, 2))}
    >>> def model(params, x):
    ...     return jax.lax.scan(lambda x, w: (x @ w, None), x, params["blocks"])[0] @ params["head"]
    >>> layers = layer_axes(model, params, jnp.ones((1, 4)))
    >>> layers
    {'blocks': (0,), 'head': ()}
    >>> mz.compress(params, mz.cluster(2, layers=layers)).params["blocks"].codebook.shape
    (3, 2)
    """
    traced = program(apply_fn, params, *inputs)
    sights: dict[str, list[_Sight]] = {name: [] for name in traced.names}
    for meeting in meetings(traced):
        if meeting.equation.eqn is not None:  # That a leaf is returned says nothing of what it computes.
            for view in telling(meeting.weight):
                sights[view.leaf].append(_sight(meeting, view))
    return {
        name: tuple(axis for axis, size in enumerate(shape) if _counts(sights[name], axis, size))
        for name, shape in zip(traced.names, traced.shapes, strict=True)
    }


class _Sight(NamedTuple):
    """What one use says of the leaf's axes.

    apart: those of which each index is a tensor of its own. picked: those of which one index is used, and which.
    """

    apart: set[int]
    picked: dict[int, int]


def _sight(meeting: Meeting, view: View) -> _Sight:
    experts, rest = _parted(meeting, list(view.axes))
    apart = {*view.layer_axes, *along(experts)}
    together = {*along(rest), *view.scattered}
    # Behind arithmetic an axis may be missing because it was summed over.
    hidden = bool(meeting.weight.through)
    picked = {a: i for a, i in enumerate(view.starts) if not hidden and a not in apart | together}
    return _Sight(apart - together, picked)


def _counts(sights: list[_Sight], axis: int, size: int) -> bool:
    """Whether every index of an axis is a tensor of its own in all uses, picked by the program or by constants."""
    if not sights:
        return False
    picked = {sight.picked.get(axis) for sight in sights}
    return all(axis in sight.apart for sight in sights) or (size > 1 and picked == set(range(size)))


def _parted(meeting: Meeting, axes: list[Axis]) -> tuple[list[Axis], list[Axis]]:
    """The operand's axes along which each index meets activations of its own, and its others."""
    equation, operand, _ = meeting
    if equation.primitive == "conv_general_dilated" and operand == 1:
        return _groups(equation.params, axes)
    own: set[int] = set()
    if equation.primitive == "dot_general":
        own = set(equation.params["dimension_numbers"][1][operand])
    elif "ragged_dot_dimension_numbers" in equation.params and operand == 1:
        numbers = equation.params["ragged_dot_dimension_numbers"]
        own = {*numbers.dot_dimension_numbers[1][operand], *numbers.rhs_group_dimensions}
    return [a for i, a in enumerate(axes) if i in own], [a for i, a in enumerate(axes) if i not in own]


def _groups(params: dict[str, Any], axes: list[Axis]) -> tuple[list[Axis], list[Axis]]:
    """A kernel's output axis holds its groups outermost; the innermost factor is channels, also of depthwise ones."""
    outputs, count = (
        params["dimension_numbers"].rhs_spec[0],
        params["feature_group_count"] * params["batch_group_count"],
    )
    axis = axes[outputs]
    try:
        groups, within = split_axis(axis, (count, axis.size // count))
    except Misaligned:
        return [], axes
    channels = Axis(axis.size, 0, axis.factors[-1:])
    return [groups], [*axes[:outputs], *axes[outputs + 1 :], within, channels]
