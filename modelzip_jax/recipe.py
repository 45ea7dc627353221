"""Recipes: transforms as plain data, the form in which a file's header records them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from modelzip_jax.errors import RecipeError

__all__ = ["Opaque", "from_plain", "recordable", "to_plain"]

Class = TypeVar("Class", bound=type)

_classes: dict[str, type] = {}


@dataclasses.dataclass(frozen=True)
class Opaque:
    """Stands for a hyperparameter that a file cannot hold, such as a function without a name.

    A model whose recipe has one loads and unpacks; to train on, pass the transform anew.
    """

    description: str


def recordable(cls: Class) -> Class:
    """Makes a frozen dataclass (a transform, score or schedule) known by its name in recipes."""
    known = _classes.get(cls.__name__)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise RecipeError(f"{cls.__name__!r} is registered already, by {known.__module__}")
    _classes[cls.__name__] = cls
    return cls


def to_plain(value: Any) -> Any:
    """A transform (or any hyperparameter) as dicts, lists, numbers and strings.

    Fields at the default of their class are left out: a class may gain fields and still read older files,
    but the default of a recorded class must never change.

    >>> import modelzip_jax as mz
    >>> to_plain(mz.identity())
    {'type': 'Identity', 'fields': {}}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if type(value) in _classes.values():
        held = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        fields = {f.name: to_plain(x) for f, x in held if f.default is dataclasses.MISSING or x != f.default}
        return {"type": type(value).__name__, "fields": fields}
    if isinstance(value, Opaque):
        return {"opaque": value.description}
    return {"opaque": repr(value)[:200]}


def from_plain(data: Any) -> Any:
    """The inverse of `to_plain`; lists become tuples.

    Raises:
      RecipeError: an unknown class or field, or data of another shape.

    >>> import modelzip_jax as mz
    >>> t = mz.only("**", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4)))
    >>> from_plain(to_plain(t)) == t
    True
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return tuple(from_plain(item) for item in data)
    if isinstance(data, dict) and set(data) == {"opaque"}:
        return Opaque(str(data["opaque"]))
    if not isinstance(data, dict) or set(data) != {"type", "fields"} or not isinstance(data["fields"], dict):
        raise RecipeError(f"not a recipe: {str(data)[:100]}")
    cls = _classes.get(str(data["type"]))
    if cls is None:
        raise RecipeError(
            f"the recipe names {data['type']!r}, which is not registered; import the module that "
            f"defines it first. Known: {', '.join(sorted(_classes))}"
        )
    names = {f.name for f in dataclasses.fields(cls)}
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if not needed <= set(data["fields"]) <= names:
        raise RecipeError(f"{data['type']} has the fields {sorted(names)}, not {sorted(data['fields'])}")
    try:
        return cls(**{name: from_plain(item) for name, item in data["fields"].items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"the recipe of {data['type']} does not make one: {error}") from error


def opaque_fields(value: Any, path: str = "") -> list[str]:
    """Where in a transform hyperparameters are `Opaque`."""
    if isinstance(value, Opaque):
        return [path.lstrip(".")]
    if isinstance(value, tuple):
        return [p for i, item in enumerate(value) for p in opaque_fields(item, f"{path}[{i}]")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            p for f in dataclasses.fields(value)
            for p in opaque_fields(getattr(value, f.name), f"{path}.{f.name}")
        ]  # fmt: skip
    return []
