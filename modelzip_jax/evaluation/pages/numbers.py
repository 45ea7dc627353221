"""Numbers as a page shows them, and as its cells keep them."""

from __future__ import annotations

import math

from modelzip_jax.evaluation.estimate import Estimate

__all__ = ["exact", "share", "shown"]


def exact(value: float | int | Estimate | None) -> str:
    """As JSON writes it, for sorting and for whoever reads the page by a program; empty for what is unknown.

    >>> exact(0.1), exact(3), exact(None)
    ('0.1', '3', '')
    """
    if value is None:
        return ""
    return repr(value if isinstance(value, int) else float(value))


def shown(value: float | Estimate | None) -> str:
    """Four digits, or a value with its standard error.

    >>> shown(Estimate(0.9, 0.03, 100)), shown(12345.678), shown(None)
    ('0.9000 ± 0.0300', '1.235e+04', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, Estimate) and not math.isnan(value.standard_error):
        return str(value)
    return f"{float(value):.4g}"


def share(value: float | None) -> str:
    """In percent; a dash for nothing at all.

    >>> share(0.8), share(0.00123), share(0.0)
    ('80.0 %', '0.12 %', '–')
    """
    if not value:
        return "–"
    return f"{100 * value:.{1 if value >= 0.01 else 2}f} %" if math.isfinite(value) else str(value)
