"""What `mz.compress` takes in the place of a transform: something that finds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from modelzip_jax.errors import TransformError
from modelzip_jax.tree import PyTree

__all__ = ["Search"]


@dataclasses.dataclass(frozen=True)
class Search:
    """Looks at weights, and at inputs if there are any, and compresses by the transform that it finds.

    The model that it gives is packed by that transform, which the file records: training goes on from there.

    >>> class Wider(Search):
    ...     def compressed(self, params, *, variables, calibrate, progress, given):
    ...         import modelzip_jax as mz
    ...
    ...         found = (mz.compress(params, mz.quantize(bits)) for bits in (2, 4, 8))
    ...         return next(packed for packed in found if packed.nbytes > 100)
    >>> import modelzip_jax as mz, numpy as np
    >>> mz.compress({"w": np.eye(16, dtype=np.float32)}, Wider()).transform.bits
    2
    """

    def compressed(
        self,
        params: PyTree,
        *,
        variables: PyTree,
        calibrate: tuple[Callable[..., Any], Sequence[Any]] | None,
        progress: Callable[[str, int], None] | None,
        given: dict[str, Any],
    ) -> Any:
        """The packed model; arguments as of `mz.compress`."""
        raise TransformError(f"{type(self).__name__} defines no compressed()")
