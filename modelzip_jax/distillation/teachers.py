"""A teacher: a network that is evaluated and never trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from modelzip_jax.tree import PyTree

__all__ = ["Teacher"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["apply"])
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network: `teacher(inputs)` are its outputs, through which no gradient flows.

    A pytree whose leaves are the weights. Pass it to a jitted step as an argument: weights that a step closes over
    are copied into its program, and another teacher of the same network would compile it again.

    Attributes:
      apply: `(params, inputs) -> outputs`, pure, without randomness: `network.predict` and not a training pass. What
        the inputs need before (standardising) belongs inside.
      params: what `apply` takes first: weights, or `{"params": ..., "batch_stats": ...}`, or a tuple.

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

    def __call__(self, inputs: PyTree) -> PyTree:
        """What the network says of a batch of inputs."""
        return jax.lax.stop_gradient(self.apply(self.params, inputs))
