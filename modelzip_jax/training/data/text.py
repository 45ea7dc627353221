"""Text as bytes: windows for next-byte prediction."""

from __future__ import annotations

import os

import numpy as np

from modelzip_jax.errors import DataError
from modelzip_jax.training.data.prepared import data_directory, missing

__all__ = ["read_text", "windows"]

RUN, PERIOD = 100, 20  # lines in a run, runs in a period: what goes to which split


def read_text(data_dir: str | os.PathLike[str] | None) -> bytes:
    """The King James Version, a verse a line, from `<data_dir>/kjv/kjv.txt`.

    Raises:
      DataError: the file is not there; the message has the command.
    """
    path = data_directory(data_dir) / "kjv" / "kjv.txt"
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise missing("kjv", data_dir) from error


def windows(text: bytes, split: str, sequence_length: int) -> dict[str, np.ndarray]:
    """Windows of bytes and, one byte later, their labels: int32 `(n, sequence_length)` each.

    The 19th and the 20th of every 20 runs of 100 lines are for validation and testing: all parts of the
    text are in all splits, and no line is in two.

    Raises:
      DataError: the split has not one window.

    >>> arrays = windows(b"abcdefgh", "train", sequence_length=3)
    >>> [bytes(row.tolist()) for row in arrays["inputs"]], [bytes(row.tolist()) for row in arrays["labels"]]
    ([b'abc', b'def'], [b'bcd', b'efg'])
    """
    lines = text.splitlines(keepends=True)
    part = b"".join(line for i, line in enumerate(lines) if _split(i // RUN % PERIOD) in split.split("+"))
    tokens = np.frombuffer(part, np.uint8).astype(np.int32)
    count = (len(tokens) - 1) // sequence_length if sequence_length > 0 else 0
    if count < 1:
        raise DataError(
            f"sequence_length={sequence_length}: the split {split!r} has {len(tokens):,} bytes, and a window "
            "needs at least one byte and its label"
        )
    end = count * sequence_length
    return {
        "inputs": tokens[:end].reshape(count, sequence_length),
        "labels": tokens[1 : end + 1].reshape(count, sequence_length),
    }


def _split(run: int) -> str:
    return {PERIOD - 2: "validation", PERIOD - 1: "test"}.get(run, "train")
