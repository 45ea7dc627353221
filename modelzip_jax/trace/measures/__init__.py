"""Numbers about a model: statistics of activations, cost, Fisher information."""
