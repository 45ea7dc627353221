"""A model's program as graphs of nodes and edges, in the JSON that Google's Model Explorer reads.

A graph is `{"id", "nodes"}`, a node `{"id", "label", "namespace", "attrs", "incomingEdges", "outputsMetadata",
"subgraphIds"}`: `graph_builder.py` of https://github.com/google-ai-edge/model-explorer documents them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

from modelzip_jax.trace.jaxpr.programs import Program, equation_path, inner_jaxpr, is_literal

__all__ = ["MAIN", "parameter_id", "program_graphs"]

MAIN = "main"
"""The id of the graph that has the parameters."""
_LONGEST = 200
_CALL_NAME = "name"

Node = dict[str, Any]


class _Source(NamedTuple):
    """Where a value comes from: a node, and which of its outputs."""

    node: str
    output: int


def parameter_id(name: str) -> str:
    """The id of the node of a leaf.

    >>> parameter_id("Dense_0/kernel")
    'params/Dense_0/kernel'
    """
    return f"params/{name}"


def program_graphs(traced: Program) -> list[dict[str, Any]]:
    """The graph of a model, `MAIN`, and one for each body of a loop and branch of a condition in it.

    Nodes are equations, named by their primitive, within layers named by scopes, such as Linen's modules; calls (`jit`,
    `remat`, custom derivatives) are layers, too. Leaves of the parameters stand in the layer that reads them first.

    >>> import jax, jax.numpy as jnp
    >>> from modelzip_jax.trace.jaxpr.programs import program
    >>> shapes = {"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}, jax.ShapeDtypeStruct((1, 3), jnp.float32)
    >>> (graph,) = program_graphs(program(lambda p, x: x @ p["w"], *shapes))
    >>> [node["label"] for node in graph["nodes"]]
    ['w', 'input 0', 'dot_general', 'output 0']
    """
    graphs: list[dict[str, Any]] = []
    jaxpr = traced.jaxpr.jaxpr
    count = len(traced.names)
    graph = _Graph(MAIN, graphs)
    sources = [
        graph.add(parameter_id(name), name.rsplit("/", 1)[-1], "", outputs=[v.aval])
        for name, v in zip(traced.names, jaxpr.invars[:count], strict=True)
    ]
    sources += graph.inputs(jaxpr.invars[count:])
    graph.results(graph.walk(traced.jaxpr, sources, "", ""))
    for name, node in zip(traced.names, graph.nodes, strict=False):
        # Where nothing reads a leaf, or what does has no scope, its own path is the layer.
        node["namespace"] = graph.readers.get(node["id"]) or name.rpartition("/")[0]
    return graphs


class _Graph:
    """One graph in the making. It takes its place in `graphs` at once, before those that its equations refer to."""

    def __init__(self, name: str, graphs: list[dict[str, Any]]):
        self.name, self.graphs = name, graphs
        self.nodes: list[Node] = []
        self.readers: dict[str, str] = {}
        graphs.append({"id": name, "nodes": self.nodes})

    def add(
        self,
        name: str,
        label: str,
        namespace: str,
        sources: Sequence[_Source | None] = (),
        outputs: Sequence[Any] = (),
        attrs: dict[str, str] | None = None,
        subgraphs: Sequence[str] = (),
    ) -> _Source:
        edges = [(i, source) for i, source in enumerate(sources) if source is not None]
        for _, source in edges:
            self.readers.setdefault(source.node, namespace)
        node: Node = {"id": name, "label": label, "namespace": namespace, "attrs": key_values(attrs or {})}
        node["incomingEdges"] = [
            {"sourceNodeId": s.node, "sourceNodeOutputId": str(s.output), "targetNodeInputId": str(i)}
            for i, s in edges
        ]
        node["outputsMetadata"] = [
            {"id": str(i), "attrs": key_values({"tensor_shape": aval.str_short()})}
            for i, aval in enumerate(outputs)
        ]
        self.nodes.append({**node, "subgraphIds": list(subgraphs)})
        return _Source(name, 0)

    def inputs(self, variables: Sequence[Any]) -> list[_Source]:
        return [self.add(f"inputs/{i}", f"input {i}", "", outputs=[v.aval]) for i, v in enumerate(variables)]

    def results(self, sources: Sequence[_Source | None]) -> None:
        for i, source in enumerate(sources):
            self.add(f"outputs/{i}", f"output {i}", "", [source])

    def walk(
        self, closed: Any, sources: Sequence[_Source | None], namespace: str, path: str
    ) -> list[_Source | None]:
        """Adds the equations of a jaxpr; gives back where its results come from, None for numbers."""
        jaxpr = getattr(closed, "jaxpr", closed)
        known: dict[Any, _Source | None] = dict(zip(jaxpr.invars, sources, strict=True))
        for i, v in enumerate(jaxpr.constvars):
            known[v] = self.add(f"{path}/constants/{i}".lstrip("/"), "constant", namespace, outputs=[v.aval])

        def read(atom: Any) -> _Source | None:
            return None if is_literal(atom) else known[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            own = equation_path(path, index, eqn)
            scope = _joined(namespace, str(eqn.source_info.name_stack))
            operands = [read(v) for v in eqn.invars]
            inner = inner_jaxpr(eqn)
            if inner is not None and len(inner.invars) == len(operands):
                layer = _joined(scope, str(eqn.params.get(_CALL_NAME, "")))
                known.update(zip(eqn.outvars, self.walk(inner, operands, layer, own), strict=True))
                continue
            node = self.add(
                own, eqn.primitive.name, scope, operands, [v.aval for v in eqn.outvars], _attributes(eqn),
                [self._subgraph(own, i, body) for i, body in enumerate(jex.jaxprs_in_params(eqn.params))],
            )  # fmt: skip
            known.update((v, node._replace(output=i)) for i, v in enumerate(eqn.outvars))
        return [read(v) for v in jaxpr.outvars]

    def _subgraph(self, path: str, number: int, body: Any) -> str:
        graph = _Graph(f"{path}/{number}", self.graphs)
        jaxpr = getattr(body, "jaxpr", body)
        graph.results(graph.walk(body, graph.inputs(jaxpr.invars), "", ""))
        return graph.name


def key_values(pairs: dict[str, str]) -> list[dict[str, str]]:
    """A dict as Model Explorer has it.

    >>> key_values({"a": "b"})
    [{'key': 'a', 'value': 'b'}]
    """
    return [{"key": key, "value": value} for key, value in pairs.items()]


def _attributes(eqn: Any) -> dict[str, str]:
    """What an equation is told beside its operands, but for programs and functions."""
    bodies = list(map(id, jex.jaxprs_in_params(eqn.params)))
    told = {
        key: " ".join(str(value).split())[:_LONGEST]
        for key, value in eqn.params.items()
        if value is not None and id(value) not in bodies and not callable(value) and "jaxpr" not in key
    }
    return {key: value for key, value in told.items() if "0x" not in value}


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
