"""Measuring what compression costs: tasks, their metrics with standard errors, latency, sizes and reports.

The tasks `classification`, `generation` and `image_search` have one form: `evaluate(predict, inputs, labels)`
gives a dict of named numbers, as `modelzip evaluate --task` takes them, from scores of each example.
"""

from modelzip_jax.evaluation.compression_findings import Findings, LayerFinding, findings
from modelzip_jax.evaluation.energy_estimate import HOROWITZ, EnergyEstimate, EnergyTable, energy
from modelzip_jax.evaluation.pages.page_building import html_report
from modelzip_jax.evaluation.recipe_comparison import ComparedRecipe, compare_recipes, pareto

__all__ = [
    "HOROWITZ",
    "ComparedRecipe",
    "EnergyEstimate",
    "EnergyTable",
    "Findings",
    "LayerFinding",
    "compare_recipes",
    "energy",
    "findings",
    "html_report",
    "pareto",
]
