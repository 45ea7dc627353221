"""The smaller module for weights that `mz.rewrites.shrink` has made smaller."""

from __future__ import annotations

import dataclasses
from typing import Any

from modelzip_jax.errors import ModelError
from modelzip_jax.models.language_model import LanguageModel
from modelzip_jax.models.lenet import LeNet5
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.resnet import CifarResNet
from modelzip_jax.models.vgg import VGG

__all__ = ["resized"]

Shapes = dict[str, tuple[int, ...]]


def resized(module: Any, shapes: Shapes) -> Any:
    """The Linen module of the same architecture whose leaves have these shapes: `rebuild` of `mz.rewrites.shrink`.

    Args:
      module: an `MLP`, `LeNet5`, `VGG`, `CifarResNet` or `LanguageModel`.
      shapes: of its leaves by name, with or without "params/" in front.

    Raises:
      ModelError: another kind of module.

    >>> resized(MLP((8, 4)), {"Dense_0/kernel": (3, 5), "Dense_1/kernel": (5, 2)}).widths
    (5, 2)
    """
    shapes = {name.removeprefix("params/"): shape for name, shape in shapes.items()}

    def outputs(name: str) -> int:
        return shapes[f"{name}/kernel"][-1]

    changes: dict[str, Any]
    if isinstance(module, MLP):
        changes = {"widths": tuple(outputs(f"Dense_{i}") for i in range(len(module.widths)))}
    elif isinstance(module, LeNet5):
        changes = {"widths": tuple(map(outputs, ("Conv_0", "Conv_1", "Dense_0")))}
    elif isinstance(module, VGG):
        changes = {"channels": tuple(outputs(f"Conv_{i}") for i in range(sum(module.depths)))}
    elif isinstance(module, CifarResNet):
        blocks = [f"BasicBlock_{i}" for i in range(len(module.stages) * module.blocks)]
        changes = {
            "stages": tuple(outputs(f"{block}/Conv_1") for block in blocks[:: module.blocks]),
            "inner": tuple(outputs(f"{block}/Conv_0") for block in blocks),
        }
    elif isinstance(module, LanguageModel):
        changes = _language_model(module, outputs)
        if module.scan:
            changes["num_layers"] = shapes["blocks/mlp_in/kernel"][0]
    else:
        raise ModelError(
            f"no rule rebuilds a {type(module).__name__}; pass a function of your own as `rebuild`"
        )
    return dataclasses.replace(module, **changes)


def _language_model(module: LanguageModel, outputs: Any) -> dict[str, Any]:
    blocks = ["blocks"] if module.scan else [f"block_{i}" for i in range(module.num_layers)]
    inner = {outputs(f"{block}/mlp_in") for block in blocks}
    heads = {outputs(f"{block}/attention/{name}") for block in blocks for name in ("query", "key", "value")}
    head_dim = module.head_dim or module.embed_dim // module.num_heads
    if len(inner) > 1 or len(heads) > 1 or min(heads) % head_dim:
        raise ModelError(
            f"a LanguageModel has as many hidden units ({inner}) and whole heads ({heads} outputs) in every block"
        )
    return {"mlp_dim": min(inner), "num_heads": min(heads) // head_dim, "head_dim": head_dim}
