"""What `--calibrate` names: a function of the user's, a training run, or a model that the library knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelzip_jax.cli.failures import own_code
from modelzip_jax.cli.named_objects import named_object
from modelzip_jax.errors import RecipeError

__all__ = ["calibration_of", "search_of"]


def calibration_of(text: str) -> tuple[Any, ...]:
    """`(apply_fn, batches)`, or with what outputs are behind them, "categorical" or "gaussian".

    text: `module:function`, of a function that returns this; the folder of a finished `modelzip train`; or "minilm".

    Raises:
      RecipeError: it is none of these, or the function gives something else.
    """
    if Path(text).is_dir():
        from modelzip_jax.training.calibrating_runs import run_calibration

        return (*run_calibration(text), "categorical")
    if text == "minilm":
        from modelzip_jax.evaluation.docstring_calibration import minilm_calibration

        return minilm_calibration()
    if ":" not in text:
        raise RecipeError(
            "--calibrate takes module:function, the folder of a finished `modelzip train`, or minilm, "
            f"not {text!r}"
        )
    return _given(text)


def _given(text: str) -> tuple[Any, ...]:
    function = named_object(text, "--calibrate")
    if not callable(function):
        raise RecipeError(f"--calibrate {text} names a {type(function).__name__}, expected a function")
    with own_code(f"--calibrate {text}"):
        given = function()
    if not isinstance(given, tuple) or len(given) not in (2, 3) or not callable(given[0]):
        raise RecipeError(
            f"--calibrate {text} gives a {type(given).__name__}, expected (apply_fn, batches), or with "
            "'categorical' or 'gaussian' behind them"
        )
    return given


def search_of(target_bytes: int | None, max_drop: float | None, calibrate: str | None) -> tuple[Any, Any]:
    """What finds the smallest file, and `(apply_fn, batches)` or None.

    calibrate: as `calibration_of` takes it.

    Raises:
      RecipeError: as of `calibration_of`; a drop without a model. TransformError: as of `mz.smallest`.
    """
    import modelzip_jax as mz

    if calibrate is None:
        if max_drop is not None:
            raise RecipeError("--max-drop needs a model to run: --calibrate module:function")
        return mz.smallest(bytes=target_bytes), None
    given = calibration_of(calibrate)
    options = {"likelihood": given[2]} if len(given) == 3 else {}
    return mz.smallest(bytes=target_bytes, max_drop=max_drop, **options), given[:2]
