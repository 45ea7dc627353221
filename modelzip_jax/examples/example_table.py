"""The table at the end of an example: what each stage has stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import modelzip_jax as mz
from modelzip_jax.examples.filter_visits import parameter_count

__all__ = ["shown_table", "table_rows"]

NAMES = {
    "dense": "float network",
    "recovered": "filters have left",
    "sparse": "layers are sparse",
    "quantized": "quantized, biases corrected",
    "tuned": "trained on from the file",
}


def table_rows(folder: Path, stages: Sequence[str]) -> list[dict[str, Any]]:
    """What the table has of each stage, from its `model.mz` and `result.json`; the first is what others compare to.

    "parameters": elements of all arrays, zeros included. "nonzero": those that are not zero. "file_bytes".
    "smaller": the first file's bytes over these. "accuracy", "accuracy_se": on the test split. "below": the first
    one's accuracy less this. "gap": accuracy of the training split less that of the test split.
    """
    rows: list[dict[str, Any]] = []
    for name in stages:
        packed, result = (
            mz.load(folder / name / "model.mz"),
            json.loads((folder / name / "result.json").read_text()),
        )
        params = mz.unpack(packed)
        row: dict[str, Any] = {
            "stage": name,
            "parameters": parameter_count(params),
            "nonzero": sum(int(np.count_nonzero(x)) for _, x in mz.tree.named_leaves(params)),
            "file_bytes": (folder / name / "model.mz").stat().st_size,
            "accuracy": result["test"]["accuracy"],
            "accuracy_se": result["test"]["accuracy_se"],
            "gap": result["gap"],
        }
        first = rows[0] if rows else row
        row["smaller"] = first["file_bytes"] / row["file_bytes"]
        row["below"] = first["accuracy"] - row["accuracy"]
        rows.append(row)
    return rows


def shown_table(found: dict[str, Any]) -> Table:
    """`table.json` for the terminal."""
    table = Table(title=found["title"], box=None, title_justify="left")
    table.add_column("")
    for column in (
        "parameters", "not zero", "bytes in the file", "times smaller", "test accuracy", "below", "train − test",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in found["rows"]:
        table.add_row(
            NAMES.get(row["stage"], row["stage"]), f"{row['parameters']:,}", f"{row['nonzero']:,}",
            f"{row['file_bytes']:,}", f"{row['smaller']:.1f}",
            f"{row['accuracy']:.2%} ± {row['accuracy_se']:.2%}", f"{100 * row['below']:.2f}",
            f"{100 * row['gap']:.2f}",
        )  # fmt: skip
    return table
