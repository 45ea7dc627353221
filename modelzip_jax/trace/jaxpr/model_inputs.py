"""What a model is run on: batches as tuples of inputs, and words for those that it cannot be run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import ModelzipError, TraceError

__all__ = ["batch_inputs", "holds_nonfinite", "iterated", "running_on", "shapes_in"]


def iterated(batches: Any) -> Iterable[Any]:
    """The batches, if they are an iterable.

    >>> iterated(None)
    Traceback (most recent call last):
    modelzip_jax.errors.TraceError: batches are an iterable of inputs, [x, ...], one at least for the shapes; not None
    """
    if not hasattr(batches, "__iter__"):
        raise TraceError(
            f"batches are an iterable of inputs, [x, ...], one at least for the shapes; not {shapes_in(batches)}"
        )
    return batches  # type: ignore[no-any-return]


def batch_inputs(batch: Any, number: int) -> tuple[Any, ...]:
    """What `apply_fn` takes after the parameters: a batch, if it is a tuple, or that one array.

    Args:
      number: of the batch, for the message.

    Raises:
      TraceError: the batch's first array has no examples along its first axis.

    >>> batch_inputs(np.zeros((0, 4)), 2)
    Traceback (most recent call last):
    modelzip_jax.errors.TraceError: batch 2 holds no example: its arrays have the shapes ((0, 4),)
    """
    inputs = batch if isinstance(batch, tuple) else (batch,)
    # The first alone: a later one, such as a prefix, may well be empty.
    sizes = next((shape for shape in map(np.shape, jax.tree.leaves(inputs)) if shape), (1,))
    if sizes[0] == 0:
        raise TraceError(f"batch {number} holds no example: its arrays have the shapes {shapes_in(inputs)}")
    return inputs


@contextlib.contextmanager
def running_on(what: str, inputs: Any, who: str = "the model") -> Iterator[None]:
    """Says which inputs a model refused while it was traced.

    Args:
      what: the inputs, in the message. who: the model, likewise.

    Raises:
      TraceError: within, the model raised; what is typed already, and what an accelerator raises, pass.

    >>> with running_on("batch 0", (np.zeros((2, 3)),)):
    ...     np.zeros((2, 3)) @ np.zeros((4, 5))
    Traceback (most recent call last):
    modelzip_jax.errors.TraceError: the model cannot be run on batch 0, of shapes ((2, 3),): ValueError: matmul: ...
    """
    try:
        yield
    except (ModelzipError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        several = isinstance(inputs, tuple) and len(inputs) > 1 and what.startswith("batch")
        hint = "; a tuple is all that apply_fn takes after params, without labels" if several else ""
        raise TraceError(
            f"{who} cannot be run on {what}, of shapes {shapes_in(inputs)}: {type(error).__name__}: "
            f"{said:.300}{hint}"
        ) from error


def shapes_in(tree: Any) -> str:
    """The shapes of a tree's arrays and the types of what is none, on one line.

    >>> shapes_in((np.zeros((2, 3)), [1.0, len]))
    '((2, 3), [(), a builtin_function_or_method])'
    """

    def shown(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(shown, x))
        if isinstance(x, list):
            return list(map(shown, x))
        if isinstance(x, Mapping):
            return {key: shown(value) for key, value in x.items()}
        if x is None or isinstance(x, bool | int | float | complex):
            return x if x is None else ()
        return tuple(x.shape) if hasattr(x, "shape") else _Kind(type(x).__name__)

    text = repr(shown(tree))
    return text if len(text) < 200 else f"{text[:200]}…"


class _Kind(str):
    def __repr__(self) -> str:
        return f"a {self}"


def holds_nonfinite(inputs: Any) -> bool:
    """Whether any array among them holds NaN or infinity.

    >>> holds_nonfinite((np.ones(2), np.array([1.0, np.nan])))
    True
    """
    floats = (x for x in jax.tree.leaves(inputs) if jnp.issubdtype(jnp.result_type(x), jnp.floating))
    return any(not bool(jnp.all(jnp.isfinite(x))) for x in floats)
