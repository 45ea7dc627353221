"""Arrays of what is known of a variable's elements, of length 1 along axes where nothing varies.

In front stand axes of the scans around (`lead` of them): one entry for each iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.usage.views import blocks

__all__ = ["aligned_lead", "joined", "moved", "scan_depth", "transposed_to", "varying"]

Move = Callable[[Equation, np.ndarray, int], "np.ndarray | None"]


def scan_depth(path: str) -> int:
    """How many scans stand around an equation.

    >>> scan_depth("4:scan/2:jit/0:dot_general"), scan_depth("4:scan")
    (1, 0)
    """
    return sum(step.endswith(":scan") for step in path.split("/")[:-1])


def aligned_lead(x: np.ndarray, lead: int, wanted: int) -> np.ndarray:
    """With more axes of scans, of which the outermost come first."""
    return x.reshape(*x.shape[:lead], *[1] * (wanted - lead), *x.shape[lead:])


def varying(x: np.ndarray, lead: int) -> tuple[int, ...]:
    """The variable's axes along which anything varies."""
    return tuple(i for i, size in enumerate(x.shape[lead:]) if size != 1)


def transposed_to(x: np.ndarray, lead: int, positions: Sequence[int | None]) -> np.ndarray:
    """An array whose axis i is axis `positions[i]`, or new where None; axes that are left out must not vary.

    >>> transposed_to(np.ones((1, 3)), 0, [None, 1, None]).shape
    (1, 3, 1)
    """
    kept = [p for p in positions if p is not None]
    gone = [i for i in range(x.ndim - lead) if i not in kept]
    x = x.transpose(*range(lead), *(lead + p for p in kept), *(lead + i for i in gone))
    x = x.reshape(x.shape[: lead + len(kept)])
    sizes = iter(x.shape[lead:])
    return x.reshape(*x.shape[:lead], *(1 if p is None else next(sizes) for p in positions))


def moved(equation: Equation, x: np.ndarray, lead: int) -> np.ndarray | None:
    """The result of what moves the elements of its only operand; None where no rule covers it."""
    rule = _MOVES.get(equation.primitive)
    return rule(equation, x, lead) if rule else None


def joined(arrays: Sequence[np.ndarray], axis: int, sizes: Sequence[int], lead: int) -> np.ndarray:
    """Several one after the other along an axis of the variable."""
    at = lead + axis
    rest = np.broadcast_shapes(*(a.shape[:at] + a.shape[at + 1 :] for a in arrays))
    full = [np.broadcast_to(a, (*rest[:at], size, *rest[at:])) for a, size in zip(arrays, sizes, strict=True)]
    return np.concatenate(full, axis=at)


def _reshape(equation: Equation, x: np.ndarray, lead: int) -> np.ndarray | None:
    old, new = equation.operand_shapes[0], equation.result_shapes[0]
    if equation.params.get("dimensions") is not None or 0 in new:
        return None
    kept, wide = ([i for i, n in enumerate(shape) if n != 1] for shape in (old, new))
    full, shape = list(x.shape), [*x.shape[:lead], *[1] * len(new)]
    for before, after in blocks([old[i] for i in kept], [new[i] for i in wide]):
        if any(x.shape[lead + kept[i]] != 1 for i in before):
            for i in before:
                full[lead + kept[i]] = old[kept[i]]
            for j in after:
                shape[lead + wide[j]] = new[wide[j]]
    return np.broadcast_to(x, full).reshape(shape)


def _transpose(equation: Equation, x: np.ndarray, lead: int) -> np.ndarray:
    return x.transpose(*range(lead), *(lead + i for i in equation.params["permutation"]))


def _squeeze(equation: Equation, x: np.ndarray, lead: int) -> np.ndarray:
    return x.squeeze(tuple(lead + i for i in equation.params["dimensions"]))


def _broadcast_in_dim(equation: Equation, x: np.ndarray, lead: int) -> np.ndarray:
    places, shape = list(equation.params["broadcast_dimensions"]), equation.result_shapes[0]
    return transposed_to(x, lead, [places.index(i) if i in places else None for i in range(len(shape))])


def _slice(equation: Equation, x: np.ndarray, lead: int) -> np.ndarray:
    p = equation.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    bounds = zip(p["start_indices"], p["limit_indices"], strides, x.shape[lead:], strict=True)
    cuts = [slice(i, j, k) if n != 1 else slice(None) for i, j, k, n in bounds]
    return x[(*[slice(None)] * lead, *cuts)]


def _rev(equation: Equation, x: np.ndarray, lead: int) -> np.ndarray:
    return np.flip(x, tuple(lead + i for i in equation.params["dimensions"]))


_MOVES: dict[str, Move] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": _slice,
    "rev": _rev,
}
