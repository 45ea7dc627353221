"""Weights that share values: codebooks of scalars and vectors, neurons that share one vector."""

from modelzip_jax.sharing.clustering import cluster
from modelzip_jax.sharing.grouping import draw_features, group_neurons, share_initialization
from modelzip_jax.sharing.lloyd import KMeans, assign, kmeans
from modelzip_jax.sharing.neurons import share_neurons
from modelzip_jax.sharing.vectors import vector_kmeans

__all__ = [
    "KMeans",
    "assign",
    "cluster",
    "draw_features",
    "group_neurons",
    "kmeans",
    "share_initialization",
    "share_neurons",
    "vector_kmeans",
]
