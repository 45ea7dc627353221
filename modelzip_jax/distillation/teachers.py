"""A teacher: a network that is evaluated and never trained."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from modelzip_jax.distillation.argument_checks import check_function
from modelzip_jax.errors import DistillationError
from modelzip_jax.trace.jaxpr.model_inputs import running_on
from modelzip_jax.tree import PyTree, is_array, named_leaves

__all__ = ["Teacher"]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network: `teacher(inputs)` are its outputs, through which no gradient flows.

    A pytree whose leaves are the weights. Pass it to a jitted step as an argument: weights that a step closes over
    are copied into its program, and another teacher of the same network would compile it again.

    Attributes:
      apply: `(params, inputs) -> outputs`, pure, without randomness: `network.predict` and not a training pass. What
        the inputs need before (standardising) belongs inside.
      params: what `apply` takes first: weights, or `{"params": ..., "batch_stats": ...}`, or a tuple; arrays alone.

    Raises:
      DistillationError: `apply` is no function, or a module, which has weights of its own; params hold what is no
        array. TraceError: (when called) the network cannot be run on these params and inputs.

    >>> import jax.numpy as jnp
    >>> teacher = Teacher(lambda params, x: x @ params["w"], {"w": jnp.eye(2)})
    >>> teacher(jnp.array([[1.0, 2.0]]))
    Array([[1., 2.]], dtype=float32)
    >>> jax.grad(lambda t: jnp.sum(t(jnp.ones((1, 2)))))(teacher).params
    {'w': Array([[0., 0.],
           [0., 0.]], dtype=float32)}
    """

    apply: Callable[[PyTree, PyTree], PyTree]
    params: PyTree

    def __post_init__(self) -> None:
        check_function(self.apply, "Teacher(apply, params)", "apply", "(params, inputs) -> outputs")
        _check_no_module(self.apply)
        _check_arrays(self.params)

    def __call__(self, inputs: PyTree) -> PyTree:
        """What the network says of a batch of inputs."""
        given = "the inputs and params given"
        with running_on(given, (inputs, self.params), "the teacher"):
            return jax.lax.stop_gradient(self.apply(self.params, inputs))

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, PyTree]], Any]:
        """What JAX reads of a pytree."""
        return ((jax.tree_util.GetAttrKey("params"), self.params),), self.apply

    @classmethod
    def tree_unflatten(cls, apply: Any, children: tuple[PyTree]) -> Teacher:
        """Nothing is checked: JAX puts whatever it likes in the place of params."""
        teacher = object.__new__(cls)
        for name, value in (("apply", apply), ("params", *children)):
            object.__setattr__(teacher, name, value)
        return teacher


def _check_no_module(apply: Any) -> None:
    """Refuses a network that is called with inputs alone, and says how it becomes a function."""
    nnx, linen, equinox = (sys.modules.get(name) for name in ("flax.nnx", "flax.linen", "equinox"))
    if linen is not None and isinstance(apply, linen.Module):
        how = 'Teacher(lambda p, x: model.apply({"params": p}, x), params)'
    elif nnx is not None and isinstance(apply, nnx.Module):
        how = "graph, state = nnx.split(model), then Teacher(lambda s, x: nnx.merge(graph, s)(x), state)"
    elif (
        equinox is not None
        and isinstance(apply, equinox.Module)
        # Equinox's own wrappers of functions, such as filter_jit's, are modules, too.
        and any(isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(apply))
    ):
        how = f"{_PARTITION}, then Teacher(lambda p, x: eqx.combine(p, rest)(x), params)"
    else:
        return
    raise DistillationError(
        f"Teacher(apply, params): apply is the module {type(apply).__name__}, not a function (params, inputs) -> "
        f"outputs: {how}"
    )


_PARTITION = "params, rest = eqx.partition(model, eqx.is_array)"


def _check_arrays(params: PyTree) -> None:
    """Refuses what no jitted step can be given."""
    for name, leaf in named_leaves(params):
        if not (is_array(leaf) or hasattr(leaf, "shape") or hasattr(leaf, "__jax_array__")):
            how = (
                f"{_PARTITION}, and in apply eqx.combine(params, rest)"
                if callable(leaf)
                else "keep it in apply, of which it is a constant"
            )
            raise DistillationError(
                f"Teacher(apply, params): params {name!r} is a {type(leaf).__name__}, not an array: {how}"
            )
