"""Graphs and node data as Model Explorer documents them, and numbers as `inspect` has them."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation.program_graph import program_graphs
from modelzip_jax.models.lenet import LeNet5
from modelzip_jax.trace.jaxpr.programs import program


def check_pairs(pairs):
    for pair in pairs:
        assert set(pair) == {"key", "value"}
        assert all(isinstance(x, str) for x in pair.values())


def check_collection(collection):
    """The fields of `GraphCollection`, `Graph`, `GraphNode`, `IncomingEdge` and `MetadataItem` in graph_builder.py."""
    assert json.loads(json.dumps(collection, allow_nan=False)) == collection
    assert set(collection) == {"label", "graphs"}
    ids = [graph["id"] for graph in collection["graphs"]]
    assert len(set(ids)) == len(ids)
    for graph in collection["graphs"]:
        assert set(graph) <= {"id", "nodes", "groupNodeAttributes"}
        nodes = {node["id"]: node for node in graph["nodes"]}
        assert len(nodes) == len(graph["nodes"])
        for node in graph["nodes"]:
            assert {"id", "label", "namespace"} <= set(node)
            assert set(node) <= {
                "id", "label", "namespace", "attrs", "incomingEdges", "outputsMetadata", "subgraphIds",
            }  # fmt: skip
            assert all(isinstance(node[key], str) for key in ("id", "label", "namespace"))
            check_pairs(node.get("attrs", []))
            for edge in node.get("incomingEdges", []):
                assert set(edge) == {"sourceNodeId", "sourceNodeOutputId", "targetNodeInputId"}
                outputs = nodes[edge["sourceNodeId"]]["outputsMetadata"]
                assert edge["sourceNodeOutputId"] in [item["id"] for item in outputs]
            for item in node.get("outputsMetadata", []):
                assert set(item) == {"id", "attrs"}
                check_pairs(item["attrs"])
            assert set(node.get("subgraphIds", [])) <= set(ids)


def check_data(data, collection):
    """The fields of `ModelNodeData`, `GraphNodeData` and `NodeDataResult` in node_data_builder.py."""
    nodes = {graph["id"]: {node["id"] for node in graph["nodes"]} for graph in collection["graphs"]}
    for graph, found in data.items():
        assert set(found) == {"results", "gradient"}
        assert set(found["results"]) <= nodes[graph]
        assert [item["stop"] for item in found["gradient"]] == [0, 1]
        for result in found["results"].values():
            assert set(result) == {"value"}
            assert math.isfinite(result["value"])


def lenet():
    model = LeNet5(widths=(4, 6, 16))
    x = jnp.ones((2, 28, 28, 1))
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), x)["params"])
    return params, lambda p, x: model.apply({"params": p}, x), x


def files_of(packed, apply, batches, **more):
    found = mz.evaluation.findings(packed, **more)
    return mz.evaluation.model_explorer_files(packed, apply, batches, found, "m"), found


def test_numbers_are_those_of_inspect():
    params, apply, x = lenet()
    packed = mz.compress(
        params, mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4))),
        variables={"batch_stats": {"mean": np.zeros(3, np.float32)}},
    )  # fmt: skip
    files, found = files_of(packed, apply, [(x,)], against=params)
    assert set(files) == {"graph.json", "bytes.json", "bits.json", "sparsity.json", "error.json"}
    check_collection(files["graph.json"])
    for name, data in files.items():
        if name != "graph.json":
            check_data(data, files["graph.json"])
    rows = {row.name: row for row in found.report.tensors}
    values = {
        name: {k.removeprefix("params/"): v["value"] for k, v in files[name]["main"]["results"].items()}
        for name in files
        if name != "graph.json"
    }
    assert values["bytes.json"] == {name: row.file_bytes for name, row in rows.items()}
    assert values["bits.json"] == {name: row.bits_per_weight for name, row in rows.items()}
    assert values["sparsity.json"]["Conv_1/kernel"] == pytest.approx(0.5, abs=0.01)
    assert values["error.json"]["Conv_0/bias"] == 0
    assert values["error.json"]["Conv_0/kernel"] > 0.01
    beside = [node for node in files["graph.json"]["graphs"][0]["nodes"] if "mean" in node["id"]]
    assert [node["namespace"] for node in beside] == ["not in the program"]


def test_layers_and_edges_are_the_models():
    params, apply, x = lenet()
    (graph,) = program_graphs(program(apply, params, x))
    nodes = {node["id"]: node for node in graph["nodes"]}
    (kernel,) = [node for node in nodes.values() if node["id"] == "params/Conv_0/kernel"]
    assert kernel["label"] == "kernel"
    assert kernel["namespace"].endswith("Conv_0")
    assert kernel["outputsMetadata"][0]["attrs"][0]["value"] == "float32[5,5,1,4]"
    readers = [
        node["label"] for node in nodes.values()
        if any(edge["sourceNodeId"] == kernel["id"] for edge in node["incomingEdges"])
    ]  # fmt: skip
    assert readers == ["conv_general_dilated"]
    # From the output back, all parameters are reached.
    seen, todo = set(), ["outputs/0"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [edge["sourceNodeId"] for edge in nodes[name]["incomingEdges"]]
    assert {name for name in nodes if name.startswith(("params/", "inputs/"))} <= seen


def test_loops_and_branches_are_graphs_of_their_own():
    def model(p, x):
        x, _ = jax.lax.scan(lambda x, w: (nn.relu(x @ w), None), x, p["layers"])
        return jax.lax.cond(x.sum() > 0, lambda: x @ p["head"], lambda: jnp.zeros((1, 2)))

    params = {"layers": jnp.ones((3, 4, 4)), "head": jnp.ones((4, 2))}
    graphs = program_graphs(program(model, params, jnp.ones((1, 4))))
    check_collection({"label": "", "graphs": graphs})
    owners = {node["label"]: node["subgraphIds"] for graph in graphs for node in graph["nodes"]}
    assert len(owners["scan"]) == 1
    assert len(owners["cond"]) == 2
    inside = next(graph for graph in graphs if graph["id"] == owners["scan"][0])
    assert "dot_general" in [node["label"] for node in inside["nodes"]]
    # Not repeated in the graph around it.
    assert "dot_general" not in [node["label"] for node in graphs[0]["nodes"]]


def test_a_leaf_that_nothing_reads_and_a_model_without_batches():
    params = {"used": np.eye(4, dtype=np.float32), "layer": {"unused": np.eye(4, dtype=np.float32)}}
    packed = mz.compress(params, mz.quantize(4))
    apply = lambda p, x: x @ p["used"]  # noqa: E731
    files, _ = files_of(packed, apply, [np.ones((1, 4), np.float32)])
    check_collection(files["graph.json"])
    (node,) = [n for n in files["graph.json"]["graphs"][0]["nodes"] if n["label"] == "unused"]
    assert node["namespace"] == "layer"
    with pytest.raises(EvaluationError, match="batch"):
        files_of(packed, apply, [])
