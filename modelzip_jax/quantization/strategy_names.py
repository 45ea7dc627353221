"""What somebody meant who gave `mz.quantize` something that is no strategy, for the message."""

from __future__ import annotations

import difflib
from typing import Any

__all__ = ["strategy_meant"]

_CALLS = {
    "grid": ("binary", "fp8", "halving", "mx", "nf4", "nvfp4", "power_of_two", "quantile", "ternary", "uniform",
             "weighted_entropy"),
    "range": ("fixed", "kl_divergence", "least_squares", "min_max", "moving_average", "percentile"),
    "rounding": ("ada_round", "error_feedback", "half_quadratic", "nearest", "stochastic"),
    "discretization": ("error_controlled",),
    "spread": ("by_importance", "even", "root_deviation", "water_filling"),
}  # fmt: skip
_ALSO = {
    "gptq": "error_feedback", "hqq": "half_quadratic", "adaround": "ada_round", "kl": "kl_divergence",
    "entropy": "kl_divergence", "minmax": "min_max", "absmax": "min_max", "normal": "nf4", "mxfp4": "mx",
}  # fmt: skip


def strategy_meant(option: str, value: Any, words: tuple[str, ...]) -> str:
    """Half a sentence: what to write instead.

    Args:
      option: of `mz.quantize`. value: what was given. words: strings that the option takes.

    >>> strategy_meant("rounding", "gptq", ())
    ': mz.rounding.error_feedback(...)'
    >>> strategy_meant("discretization", "learned", ("static", "dynamic"))
    ': learned=True trains the steps'
    >>> strategy_meant("range", 99.9, ("max", "mse"))
    " such as 'max', 'mse', mz.ranges.fixed(...), kl_divergence, least_squares, min_max, moving_average, percentile"
    """
    if callable(value):
        return f": call it, {getattr(value, '__name__', 'it')}()"
    if isinstance(value, str):
        if option == "discretization" and "learn" in value:
            return ": learned=True trains the steps"
        name = value.lower().strip().replace("-", "_")
        close = difflib.get_close_matches(name, (*_CALLS[option], *words, *_ALSO), 1, cutoff=0.7)
        if close:
            found = _ALSO.get(close[0], close[0])
            return f": {found!r}" if found in words else f": mz.{_home(option)}.{found}(...)"
    first, *rest = _CALLS[option]
    quoted = "".join(f"{word!r}, " for word in words)
    return f" such as {quoted}mz.{_home(option)}.{', '.join([f'{first}(...)', *rest])}"


def _home(option: str) -> str:
    return option if option in ("rounding", "discretization") else f"{option}s"
