"""The protocol of spreads: how step sizes are shared out over the weights of a leaf."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from modelzip_jax.errors import TransformError
from modelzip_jax.transform import Context

__all__ = ["RelativeSteps", "Spread", "over_all_but"]


class RelativeSteps(NamedTuple):
    """Relative step sizes, positive, of the leaf's number of axes, each of its length or 1; the step is times these.

    rows: of what is summed up apart, such as outputs. columns: of what is summed over, or None.
    """

    rows: jax.Array
    columns: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Spread:
    """How the step of `mz.entropy_constrained` is shared out. Subclasses are frozen dataclasses.

    needs: names of what the context must have.

    Twice the step for biases, and all else of fewer than two axes:

    >>> import jax.numpy as jnp
    >>> @dataclasses.dataclass(frozen=True)
    ... class Coarse(Spread):
    ...     def __call__(self, name, w, layers, context):
    ...         return RelativeSteps(jnp.full((1,) * w.ndim, 2.0 if w.ndim < 2 else 1.0))
    >>> import modelzip_jax as mz
    >>> mz.decoded({"bias": jnp.array([0.1, 0.3])}, mz.entropy_constrained(0.1, spread=Coarse()))
    {'bias': Array([0.        , 0.20019531], dtype=float32)}
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, name: str, w: jax.Array, layers: tuple[int, ...], context: Context) -> RelativeSteps:
        """Relative step sizes of a leaf.

        Args:
          name: of the leaf. w: its latents. layers: axes that count layers. context: its trees are the leaf's parts.
        """
        raise TransformError(f"{type(self).__name__} defines no __call__()")


def over_all_but(w: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a leaf that are not among these.

    >>> import numpy as np
    >>> over_all_but(np.zeros((2, 3, 4)), (-1,))
    (0, 1)
    """
    own = {axis % w.ndim for axis in axes} if w.ndim else set()
    return tuple(axis for axis in range(w.ndim) if axis not in own)
