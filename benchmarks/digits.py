"""scikit-learn's digits, as studies of many small runs use them."""

from __future__ import annotations

import numpy as np

from modelzip_jax.training import data

__all__ = ["digits"]


def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each split images `(n, 8, 8, 1)` between 0 and 1, and labels."""
    found = {}
    for split in ("train", "validation", "test"):
        arrays = data.load("digits", split)
        found[split] = (arrays["inputs"].astype(np.float32) / 16.0, arrays["labels"])
    return found
