"""scikit-learn's digits, as studies of many small runs use them."""

from __future__ import annotations

import numpy as np

from modelzip_jax.training import data

__all__ = ["digits_by_split"]


def digits_by_split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each split images `(n, 8, 8, 1)` between 0 and 1, and labels."""
    found = {}
    for split in ("train", "validation", "test"):
        arrays = data.load_split("digits", split)
        found[split] = (arrays["inputs"].astype(np.float32) / 16.0, arrays["labels"])
    return found
