"""Recipes: transforms as plain data, the form in which a file's header records them."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any, TypeVar

from modelzip_jax.errors import RecipeError
from modelzip_jax.naming import nearest_name
from modelzip_jax.recipe_types import misfits

__all__ = ["Opaque", "alike", "from_plain", "opaque_fields", "recordable", "recorded", "to_plain"]

Class = TypeVar("Class", bound=type)

RENAMED: dict[str, str] = {"Structure": "Unstructured", "ActivationSparsity": "NeuronActivity"}
"""Names that older files have for a class, and the name it has now."""

_OURS = "modelzip_jax"
_classes: dict[str, type] = {}


@dataclasses.dataclass(frozen=True)
class Opaque:
    """Stands for a hyperparameter that a file cannot hold, or that this program does not know.

    A model whose recipe has one loads and unpacks; to train on, pass the transform anew.

    description: of a function without a name, its `repr`; of a class that is not registered, its name and what to
    do. recipe: what the file says of that class, as JSON, so that the file written next says it, too.
    """

    description: str
    recipe: str = ""


def recordable(cls: Class) -> Class:
    """Makes a frozen dataclass (a transform, score or schedule) known by its name in recipes.

    A class of yours is recorded as "module:QualName", so that it never stands for one of ours of the same name;
    whoever trains on from the file imports that module first.

    Raises:
      RecipeError: two classes of this library have one name.

    >>> Mine = dataclasses.make_dataclass("Mine", ["power"], frozen=True)
    >>> Mine.__module__ = "research"
    >>> to_plain(recordable(Mine)(2.0))
    {'type': 'research:Mine', 'fields': {'power': 2.0}}
    """
    if not isinstance(cls, type) or "__dataclass_fields__" not in vars(cls):
        raise RecipeError(
            f"recordable() takes a dataclass, whose fields a file can hold: put @dataclasses.dataclass(frozen=True) "
            f"below @mz.recordable on {getattr(cls, '__name__', cls)}"
        )
    name = _name(cls)
    known = _classes.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise RecipeError(f"{name!r} is registered already, by {known.__module__}")
    _classes[name] = cls
    return cls


def _name(cls: type) -> str:
    """What a recipe calls a class: its bare name if it is ours, else where it is defined as well."""
    ours = cls.__module__.split(".")[0] == _OURS
    return cls.__name__ if ours else f"{cls.__module__}:{cls.__qualname__}"


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
    if isinstance(value, Opaque):
        return json.loads(value.recipe) if value.recipe else {"opaque": value.description}
    name = _name(type(value))
    if name in _classes and dataclasses.is_dataclass(value):
        held = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        fields = {f.name: to_plain(x) for f, x in held if f.default is dataclasses.MISSING or x != f.default}
        return {"type": name, "fields": fields}
    return {"opaque": repr(value)[:200]}


def alike(a: Any, b: Any) -> bool:
    """Whether two transforms have the same recipe, as far as one is recorded: of functions nothing is known.

    >>> import modelzip_jax as mz
    >>> alike(mz.prune(sparsity=lambda step: 0.5), mz.prune(sparsity=lambda step: 0.6))
    True
    >>> alike(mz.quantize(4), mz.quantize(8))
    False
    """

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, dict) and isinstance(y, dict):
            opaque = "opaque" in x and "opaque" in y
            return opaque or (x.keys() == y.keys() and all(same(x[key], y[key]) for key in x))
        if isinstance(x, list) and isinstance(y, list):
            return len(x) == len(y) and all(map(same, x, y))
        return bool(x == y)

    return same(to_plain(a), to_plain(b))


def from_plain(data: Any) -> Any:
    """The inverse of `to_plain`; lists become tuples.

    Raises:
      RecipeError: an unknown class or field, a value of another type than a field has, or data of another shape.

    >>> import modelzip_jax as mz
    >>> t = mz.only("**", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4)))
    >>> from_plain(to_plain(t)) == t
    True
    """
    return _without_depth(data, strict=True)


def recorded(data: Any) -> Any:
    """The recipe of a file: like `from_plain`, with `Opaque` for what this program does not know.

    The weights of a file need no recipe, so that a class of somebody else, or of a newer version, is no reason not
    to read them.

    Raises:
      RecipeError: data of a shape that no recipe has.

    >>> recorded({"type": "others:Best", "fields": {}}).description
    "the recipe names the class 'others:Best', which is not registered: import the module others first"
    """
    return _without_depth(data, strict=False)


def _without_depth(data: Any, strict: bool) -> Any:
    try:
        return _built(data, strict)
    except RecursionError as error:
        raise RecipeError("the recipe is nested too deeply to be read here") from error


def _built(data: Any, strict: bool) -> Any:
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return tuple(_built(item, strict) for item in data)
    if isinstance(data, dict) and set(data) == {"opaque"}:
        return Opaque(str(data["opaque"]))
    if not isinstance(data, dict) or set(data) != {"type", "fields"} or not isinstance(data["fields"], dict):
        raise RecipeError(f"not a recipe: {str(data)[:100]}")
    if not isinstance(data["type"], str) or not all(isinstance(name, str) for name in data["fields"]):
        raise RecipeError(f"not a recipe, whose classes and fields have names: {str(data)[:100]}")
    fields = {name: _built(item, strict) for name, item in data["fields"].items()}
    try:
        return _instance(data["type"], fields)
    except RecipeError as error:
        if strict:
            raise
        return Opaque(str(error), _as_json(data))


def _instance(name: str, fields: dict[str, Any]) -> Any:
    cls = _classes.get(RENAMED.get(name, name))
    if cls is None:
        close = [] if ":" in name else difflib.get_close_matches(name, _classes, 1)
        module = name.partition(":")[0] if ":" in name else "that defines it"
        meant = f"did you mean {close[0]!r}?" if close else f"import the module {module} first"
        raise RecipeError(f"the recipe names the class {name!r}, which is not registered: {meant}")
    names = {f.name for f in dataclasses.fields(cls)}
    needed = {f.name for f in dataclasses.fields(cls) if _is_needed(f)}
    missing, foreign = sorted(needed - set(fields)), sorted(set(fields) - names)
    if missing or foreign:
        lacks = [f"needs {', '.join(map(repr, missing))}"] if missing else []
        known = nearest_name(foreign[0], names) if names and foreign else "it has none"
        more = [f"has no field {', '.join(map(repr, foreign))}: {known}"] if foreign else []
        raise RecipeError(f"the recipe of {name!r} is wrong: {name} {' and '.join(lacks + more)}")
    wrong = misfits(cls, fields, _may_be_any) if ":" not in name else []
    if wrong:
        raise RecipeError(
            f"the recipe of {name!r} is wrong: {wrong[0]!r} cannot be {str(fields[wrong[0]])[:100]}"
        )
    try:
        return cls(**fields)
    except Exception as error:  # Of somebody else's class, any.
        raise RecipeError(f"the recipe of {name!r} does not make one: {error}") from error


def _may_be_any(value: Any) -> bool:
    """Whether nothing can be said of what a value is: unknown here, or somebody else's."""
    return isinstance(value, Opaque) or (type(value) in _classes.values() and ":" in _name(type(value)))


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _as_json(data: Any) -> str:
    try:
        return json.dumps(data)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"not a recipe: {error}") from error


def opaque_fields(value: Any, path: str = "") -> list[str]:
    """Where in a transform hyperparameters are `Opaque`, and of which class if that is known.

    >>> import modelzip_jax as mz
    >>> opaque_fields(from_plain(to_plain(mz.prune(sparsity=lambda step: 0.5))))
    ['sparsity']
    """
    if isinstance(value, Opaque):
        place = path.lstrip(".") or "its root"
        return [f"{place} ({value.description})" if value.recipe else place]
    if isinstance(value, tuple):
        return [p for i, item in enumerate(value) for p in opaque_fields(item, f"{path}[{i}]")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            p for f in dataclasses.fields(value)
            for p in opaque_fields(getattr(value, f.name), f"{path}.{f.name}")
        ]  # fmt: skip
    return []
