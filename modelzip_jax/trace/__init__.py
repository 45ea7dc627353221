"""Read-only views of a model through its jaxpr: uses, statistics, cost, couplings, Fisher information.

from modelzip_jax import trace

trace.uses(apply_fn, params, x)          # which activation each parameter meets, where, along which axes
trace.layer_axes(apply_fn, params, x)    # which axes of each leaf count layers or experts
trace.cost(apply_fn, params, x)          # FLOPs and bytes
trace.receptive_fields(apply_fn, params, x)  # how much of the input each layer sees
trace.statistics(apply_fn, params, batches)
trace.couplings(apply_fn, params, x)     # what must be removed together
trace.fisher_information(apply_fn, params, batches)
"""

from modelzip_jax.trace.coupling.groups import Couplings, Frozen, Group, Member, Reason, couplings
from modelzip_jax.trace.measures.activity import LayerSparsity, Sparsity, activation_sparsity
from modelzip_jax.trace.measures.channel_moments import KINDS, Channels
from modelzip_jax.trace.measures.costs import Cost, EquationCost, cost
from modelzip_jax.trace.measures.curvature import FisherInformation, fisher_information
from modelzip_jax.trace.measures.input_statistics import Measured, UseStatistics, statistics
from modelzip_jax.trace.measures.kronecker import Factors
from modelzip_jax.trace.measures.receptive_field import ReceptiveField, receptive_fields
from modelzip_jax.trace.measures.taps import PLACES, Place
from modelzip_jax.trace.usage.layers import layer_axes
from modelzip_jax.trace.usage.use import Use, uses

__all__ = [
    "KINDS",
    "PLACES",
    "Channels",
    "Cost",
    "Couplings",
    "EquationCost",
    "Factors",
    "FisherInformation",
    "Frozen",
    "Group",
    "LayerSparsity",
    "Measured",
    "Member",
    "Place",
    "Reason",
    "ReceptiveField",
    "Sparsity",
    "Use",
    "UseStatistics",
    "activation_sparsity",
    "cost",
    "couplings",
    "fisher_information",
    "layer_axes",
    "receptive_fields",
    "statistics",
    "uses",
]
