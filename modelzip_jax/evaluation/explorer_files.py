"""A compressed model for Google's Model Explorer: its program, and what compression made of each tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation.compression_findings import Findings, LayerFinding
from modelzip_jax.evaluation.program_graph import MAIN, key_values, parameter_id, program_graphs
from modelzip_jax.packed import is_packed
from modelzip_jax.packing import Packed
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs
from modelzip_jax.trace.jaxpr.programs import program

__all__ = ["EXPLORER_FILES", "model_explorer_files"]

EXPLORER_FILES = ("graph.json", "bytes.json", "bits.json", "sparsity.json", "error.json")
"""All that there can be."""

_BESIDE = "not in the program"
_GRADIENT = [{"stop": 0, "bgColor": "#f7fbff"}, {"stop": 1, "bgColor": "#4292c6"}]


def model_explorer_files(
    model: Packed, apply_fn: Callable[..., Any], batches: Sequence[Any], found: Findings, label: str
) -> dict[str, dict[str, Any]]:
    """JSON by file name: "graph.json", and node data of each tensor's bytes, bits a weight, sparsity and error.

    Open "graph.json" in Model Explorer (`pip install ai-edge-model-explorer`), and add the others there as custom node
    data. The bytes of all nodes are the file's, but for its header; tensors that the program is not given, such as
    batch statistics that it closes over, stand by themselves.

    Args:
      model: what `mz.load` and `mz.compress` give.
      apply_fn: the model, `apply_fn(params, *inputs)`.
      batches: inputs, of which the first batch's shapes are taken: a tuple of what follows the params, or one array.
      found: of this model; errors are there if it was compared with what it was made of.
      label: of the graph.

    Raises:
      EvaluationError: there is no batch. TraceError: the model cannot be run on these params and inputs.

    >>> import numpy as np, modelzip_jax as mz
    >>> packed = mz.compress({"w": np.eye(64, dtype=np.float32)}, mz.quantize(4))
    >>> found = mz.evaluation.findings(packed)
    >>> files = model_explorer_files(packed, lambda p, x: x @ p["w"], [np.ones((1, 64), "f4")], found, "eye")
    >>> sorted(files), files["bits.json"]["main"]["results"]
    (['bits.json', 'bytes.json', 'graph.json', 'sparsity.json'], {'params/w': {'value': 0.15625}})
    """
    if not len(batches):
        raise EvaluationError("the program of a model needs a batch of inputs, and there is none")
    shapes = jax.tree.map(
        lambda leaf: jax.eval_shape(lambda p: p.unpack(), leaf), model.params, is_leaf=is_packed
    )
    graphs = program_graphs(program(apply_fn, shapes, *batch_inputs(batches[0], 0)))
    nodes = {node["id"]: node for node in graphs[0]["nodes"]}
    measures: dict[str, dict[str, float]] = {"bytes": {}, "bits": {}, "sparsity": {}, "error": {}}
    for layer in found.layers:
        row = layer.row
        name = parameter_id(row.name)
        if name not in nodes:
            nodes[name] = {"id": name, "label": row.name.rsplit("/", 1)[-1], "namespace": _BESIDE}
            graphs[0]["nodes"].append(nodes[name])
        nodes[name]["attrs"] = key_values(_told(layer))
        measures["bytes"][name] = row.file_bytes
        measures["bits"][name] = row.bits_per_weight
        measures["sparsity"][name] = row.sparsity
        if layer.error is not None and math.isfinite(layer.error.relative):
            measures["error"][name] = layer.error.relative
    report = found.report
    graphs[0]["groupNodeAttributes"] = {
        "": {
            "bytes in the file": f"{report.file_bytes:,}",
            "bytes dense": f"{report.dense_bytes:,}",
            "bits a weight": f"{report.bits_per_weight:.3f}",
        }
    }
    files: dict[str, dict[str, Any]] = {"graph.json": {"label": label, "graphs": graphs}}
    for measure, values in measures.items():
        if values:
            results = {name: {"value": value} for name, value in values.items()}
            files[f"{measure}.json"] = {MAIN: {"results": results, "gradient": _GRADIENT}}
    return files


def _told(layer: LayerFinding) -> dict[str, str]:
    row = layer.row
    told = {
        "stored as": row.form,
        "dtype": row.dtype,
        "values": f"{row.size:,}",
        "bytes in the file": f"{row.file_bytes:,}",
        "bytes packed in memory": f"{row.packed_bytes:,}",
        "bits a weight": f"{row.bits_per_weight:.3f}",
        "sparsity": f"{row.sparsity:.2%}",
    }
    if layer.error is not None:
        told["relative error"] = f"{layer.error.relative:.4g}"
    return told
