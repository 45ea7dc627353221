"""Results of tasks side by side, as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping

from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation.estimate import Estimate

__all__ = ["markdown"]


def markdown(results: Mapping[str, Mapping[str, Estimate | float]]) -> str:
    """One row for each model, one column for each number, such as before and after compression.

    Args:
      results: name of a model to what a task returned for it; a number that a model lacks is left empty.

    Returns:
      Markdown without a final newline; estimates show their standard error.

    Raises:
      EvaluationError: there are no results.

    >>> from modelzip_jax.evaluation.estimate import proportion
    >>> print(markdown({"float32": {"accuracy": proportion(90, 100), "bytes": 4000},
    ...                 "4 bits": {"accuracy": proportion(80, 100), "bytes": 512}}))
    |  | accuracy | bytes |
    | --- | ---: | ---: |
    | float32 | 0.9000 ± 0.0300 | 4,000 |
    | 4 bits | 0.8000 ± 0.0400 | 512 |
    """
    if not results:
        raise EvaluationError("there are no results to show")
    columns = list(dict.fromkeys(name for numbers in results.values() for name in numbers))
    rows = [["", *columns], ["---", *["---:"] * len(columns)]]
    rows += [[model, *(_cell(numbers.get(name)) for name in columns)] for model, numbers in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Estimate | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return str(value) if isinstance(value, Estimate) else f"{value:.4g}"
