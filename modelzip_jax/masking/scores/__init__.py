"""Scores: how much each weight matters (`mz.scores`)."""

from modelzip_jax.masking.scores.distances import GeometricMedian, geometric_median
from modelzip_jax.masking.scores.gradients import (
    Fisher,
    GradientMagnitude,
    Movement,
    Saliency,
    Taylor,
    fisher,
    gradient_magnitude,
    movement,
    saliency,
    taylor,
)
from modelzip_jax.masking.scores.inputs import (
    NeuronActivity,
    SampledFeatures,
    Wanda,
    neuron_activity,
    sampled_features,
    wanda,
)
from modelzip_jax.masking.scores.score import Score
from modelzip_jax.masking.scores.weights import Magnitude, Outlier, Random, magnitude, outlier, random
from modelzip_jax.masking.scores.zero_cost import Given, given, grasp, iterate, snip, synflow

__all__ = [
    "Fisher",
    "GeometricMedian",
    "Given",
    "GradientMagnitude",
    "Magnitude",
    "Movement",
    "NeuronActivity",
    "Outlier",
    "Random",
    "Saliency",
    "SampledFeatures",
    "Score",
    "Taylor",
    "Wanda",
    "fisher",
    "geometric_median",
    "given",
    "gradient_magnitude",
    "grasp",
    "iterate",
    "magnitude",
    "movement",
    "neuron_activity",
    "outlier",
    "random",
    "saliency",
    "sampled_features",
    "snip",
    "synflow",
    "taylor",
    "wanda",
]
