"""The `modelzip` command: compress, decompress, inspect, report on and evaluate checkpoints; train; worked examples."""

from modelzip_jax.cli import (
    comparing,
    compressing,
    decompressing,
    evaluating,
    examples,
    inspecting,
    reporting,
    training,
)
from modelzip_jax.cli.application import app, main

__all__ = [
    "app",
    "comparing",
    "compressing",
    "decompressing",
    "evaluating",
    "examples",
    "inspecting",
    "main",
    "reporting",
    "training",
]
