"""The numbers of one product, which remember what they were made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from modelzip_jax.errors import NonFiniteError, TransformError
from modelzip_jax.quantization.activations.operand import ActivationQuantizer
from modelzip_jax.tree import is_array

__all__ = ["ProductNumbers", "check_numbers", "known_to_flax"]


class ProductNumbers(dict[str, Any]):
    """A dict of arrays by name, and `meaning`: of the quantizer that it was made for.

    To JAX, optax and files it is a dict; in JAX's trees and flax's checkpoints it keeps its meaning.

    >>> import jax.numpy as jnp
    >>> numbers = ProductNumbers({"step": jnp.float32(0.5)}, "steps of 4 bits")
    >>> twice = jax.tree.map(lambda x: 2 * x, numbers)
    >>> twice, twice.meaning, jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(twice)[0][0])
    ({'step': Array(1., dtype=float32)}, 'steps of 4 bits', "['step']")
    """

    meaning: str = ""

    def __init__(self, numbers: Mapping[str, Any], meaning: str) -> None:
        super().__init__(numbers)
        self.meaning = meaning


def _parts(numbers: ProductNumbers) -> tuple[list[tuple[Any, Any]], tuple[tuple[str, ...], str]]:
    names = tuple(sorted(numbers))
    return [(jax.tree_util.DictKey(name), numbers[name]) for name in names], (names, numbers.meaning)


def _whole(made: tuple[tuple[str, ...], str], values: Iterable[Any]) -> ProductNumbers:
    names, meaning = made
    return ProductNumbers(dict(zip(names, values, strict=True)), meaning)


jax.tree_util.register_pytree_with_keys(ProductNumbers, _parts, _whole)


def known_to_flax() -> None:
    """Lets `flax.serialization` store the numbers as a dict, and restore them into a target that has their meaning.

    >>> known_to_flax()
    >>> from flax.serialization import from_bytes, to_bytes
    >>> numbers = ProductNumbers({"step": np.ones(1)}, "steps of 4 bits")
    >>> from_bytes(numbers, to_bytes(numbers)).meaning
    'steps of 4 bits'
    """
    from flax.serialization import from_state_dict, register_serialization_state, to_state_dict

    def stored(numbers: ProductNumbers) -> Any:
        return to_state_dict(dict(numbers))

    def restored(numbers: ProductNumbers, state: Any) -> ProductNumbers:
        return ProductNumbers(from_state_dict(dict(numbers), state), numbers.meaning)

    register_serialization_state(ProductNumbers, stored, restored, override=True)


def check_numbers(how: ActivationQuantizer, name: str, own: Any) -> None:
    """Raises unless these numbers of a product are what a quantizer takes.

    Tracers pass unread, as do arrays of several hosts.

    Raises:
      TransformError: they were made for another quantizer, or are no steps. NonFiniteError: one is NaN or infinite.

    >>> import modelzip_jax as mz
    >>> check_numbers(mz.activations.pact(4), "w", {"step": 1.0})
    Traceback (most recent call last):
    modelzip_jax.errors.TransformError: the scales of 'w' have 'step', and ClippedActivations(...) takes 'clip': ...
    """
    again = "calibrate with the same `how`"
    if not isinstance(own, Mapping):
        raise TransformError(
            f"the scales of {name!r} are numbers by name, as calibrate gives them, not {own!r:.80}"
        )
    if how.kept and set(own) != set(how.kept):
        has, takes = (", ".join(map(repr, sorted(names))) or "none" for names in (own, how.kept))
        raise TransformError(f"the scales of {name!r} have {has}, and {how} takes {takes}: {again}")
    meaning = getattr(own, "meaning", "")
    if how.meaning and meaning and meaning != how.meaning:
        raise TransformError(f"the scales of {name!r} are {meaning}, and {how} takes {how.meaning}: {again}")
    for key, value in own.items():
        if isinstance(value, jax.core.Tracer):
            continue
        if not is_array(value):
            raise TransformError(f"the scale {key!r} of {name!r} is a {type(value).__name__}, not a number")
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            continue  # no host has all of it
        seen = np.asarray(value, np.float64)
        if not np.isfinite(seen).all():
            raise NonFiniteError(f"the scale {key!r} of {name!r} is NaN or infinite")
        if key in how.positive and not (seen > 0).all():
            raise TransformError(
                f"the scale {key!r} of {name!r} is {seen.min():g}, and {how} takes positive ones"
            )
