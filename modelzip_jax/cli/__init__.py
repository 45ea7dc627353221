"""The `modelzip` command: compress, decompress, inspect, report on and evaluate checkpoints; train networks."""

from modelzip_jax.cli import (
    comparing,
    compressing,
    decompressing,
    evaluating,
    inspecting,
    reporting,
    sensing,
    training,
)
from modelzip_jax.cli.application import app, main

__all__ = [
    "app",
    "comparing",
    "compressing",
    "decompressing",
    "evaluating",
    "inspecting",
    "main",
    "reporting",
    "sensing",
    "training",
]
