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

__all__ = ["named_object", "recipe_of", "search_of"]


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


def search_of(target_bytes: int | None, max_drop: float | None, calibrate: str | None) -> tuple[Any, Any]:
    """What finds the smallest file, and `(apply_fn, batches)` or None.

    calibrate: `module:function`, of a function that returns `(apply_fn, batches)`, or behind them what outputs are,
    "categorical" or "gaussian", as `mz.smallest` takes it.

    Raises:
      RecipeError: the function gives something else. TransformError: as of `mz.smallest`; a drop without a model.
    """
    import modelzip_jax as mz

    if calibrate is None:
        if max_drop is not None:
            raise RecipeError("--max-drop needs a model to run: --calibrate module:function")
        return mz.smallest(bytes=target_bytes), None
    function = named_object(calibrate, "--calibrate")
    if not callable(function):
        raise RecipeError(f"--calibrate {calibrate} names a {type(function).__name__}, expected a function")
    with own_code(f"--calibrate {calibrate}"):
        given = function()
    if not isinstance(given, tuple) or len(given) not in (2, 3) or not callable(given[0]):
        raise RecipeError(
            f"--calibrate {calibrate} gives a {type(given).__name__}, expected (apply_fn, batches), or with "
            "'categorical' or 'gaussian' behind them"
        )
    options = {"likelihood": given[2]} if len(given) == 3 else {}
    return mz.smallest(bytes=target_bytes, max_drop=max_drop, **options), given[:2]
