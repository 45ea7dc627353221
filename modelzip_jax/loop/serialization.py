"""Wrapped optimizer states in flax's own checkpoints: what is static has nothing to store."""

from __future__ import annotations

from typing import Any

from flax.serialization import register_serialization_state

from modelzip_jax import tree as trees

__all__ = ["register_static_nodes"]


def register_static_nodes() -> None:
    """Lets `flax.serialization` take states apart that hold static nodes; they come from the target again.

    >>> register_static_nodes()
    >>> from flax.serialization import from_bytes, to_bytes
    >>> from_bytes(trees.Static("bfloat16"), to_bytes(trees.Static("bfloat16")))
    Static('bfloat16')
    """
    for kind in trees.static_nodes:
        register_serialization_state(kind, _nothing, _target, override=True)


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def _target(target: Any, _: dict[str, Any]) -> Any:
    return target
