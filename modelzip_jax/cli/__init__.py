"""The `modelzip` command: compress, decompress, inspect, report on and evaluate checkpoints; train networks."""

from modelzip_jax.cli import compressing, decompressing, evaluating, inspecting, reporting, training
from modelzip_jax.cli.application import app, main

__all__ = ["app", "compressing", "decompressing", "evaluating", "inspecting", "main", "reporting", "training"]
