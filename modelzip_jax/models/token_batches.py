"""Batches of tokenized texts without padding: what statistics of a layer's inputs are taken from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["LENGTHS", "unpadded_batches"]

LENGTHS = (12, 24, 48)


def unpadded_batches(
    tokens: Sequence[np.ndarray], batch_size: int = 32, lengths: Sequence[int] = LENGTHS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches `(ids, mask)` for `modelzip_jax.trace` and for `calibrate=`, where padding would count as an input.

    Each text is shortened to the largest of `lengths` that it fills, its end mark kept; one that fills none, and what
    does not fill a batch, is left out.

    Args:
      tokens: ids of each text, from `sentence_encoder.tokenize`.
      batch_size: texts in a batch.
      lengths: of a batch, in tokens; as many shapes are compiled.

    Returns:
      ids, int32 `(batch_size, length)`, and a mask of that shape that is true everywhere.

    >>> ids, mask = unpadded_batches([np.array([101, 7, 8, 9, 102], np.int32)], batch_size=1, lengths=(2, 4))[0]
    >>> ids.tolist(), bool(mask.all())
    ([[101, 7, 8, 102]], True)
    """
    by_length: dict[int, list[np.ndarray]] = {length: [] for length in sorted(lengths)}
    for ids in tokens:
        for length in [n for n in by_length if n <= len(ids)][-1:]:
            by_length[length].append(np.append(ids[: length - 1], ids[-1]))
    return [
        (ids := np.stack(texts[start : start + batch_size]), np.ones_like(ids, bool))
        for texts in by_length.values()
        for start in range(0, len(texts) - batch_size + 1, batch_size)
    ]
