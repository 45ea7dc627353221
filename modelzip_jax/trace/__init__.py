"""Read-only views of a model through its jaxpr: uses, statistics, cost, couplings, Fisher information."""
