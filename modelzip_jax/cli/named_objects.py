"""Objects of the user's that options name: tasks and recipes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelzip_jax.cli.failures import own_code
from modelzip_jax.errors import RecipeError

__all__ = ["named_object", "recipe_of"]


def named_object(text: str, option: str) -> Callable[..., Any]:
    """The object that `module:name` names; modules of the current folder are found too.

    Raises:
      RecipeError: there is no such module or name.
      OwnCodeError: the module raises an error while it is imported.
    """
    module, _, name = text.partition(":")
    module = module.removesuffix(".py")
    if not module or not name:
        raise RecipeError(f"{option} takes module:name, such as my_module:my_function, not {text!r}")
    sys.path.insert(0, "")
    try:
        with own_code(f"{option} {text}: the module {module}"):
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                    raise  # one that the user's module imports
                raise _Absent(str(error)) from error
    except Exception as error:
        if isinstance(error.__cause__, _Absent):
            raise RecipeError(f"{option} {text}: {error.__cause__}") from None
        raise
    finally:
        sys.path.remove("")
    if not hasattr(found, name):
        raise RecipeError(f"{option} {text}: the module {module} has no {name!r}")
    return getattr(found, name)


class _Absent(Exception):
    """There is no module of the name that an option gives."""


def recipe_of(text: str) -> Any:
    """A transform from `module:name` or from a JSON file in the form that `inspect --json` prints.

    Raises:
      RecipeError: it gives no transform.
    """
    from modelzip_jax.recipe import from_plain
    from modelzip_jax.transform import Transform

    if text.endswith(".json"):
        try:
            data = json.loads(Path(text).read_text())
            # All that `inspect --json` prints, or the recipe alone.
            transform = from_plain(data["recipe"] if isinstance(data, dict) and "recipe" in data else data)
        except ValueError as error:
            raise RecipeError(f"{text} holds no recipe: {error}") from error
    else:
        transform = named_object(text, "--recipe")
    if callable(transform) and not isinstance(transform, Transform):
        with own_code(f"--recipe {text}"):
            transform = transform()
    if not isinstance(transform, Transform):
        raise RecipeError(f"--recipe {text} gives a {type(transform).__name__}, expected a transform")
    return transform
