"""Rounding with error feedback: weights that are still to be rounded make up for those that are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from modelzip_jax.errors import NonFiniteError
from modelzip_jax.given_values import as_flag, as_positive, as_whole
from modelzip_jax.quantization.rounding.feedback_steps import Matrices, fed_back
from modelzip_jax.quantization.rounding.strategy import Problem, Rounded, Rounding
from modelzip_jax.recipe import recordable
from modelzip_jax.trace.measures.layer_matrices import output_curvature, products

__all__ = ["ErrorFeedback", "error_feedback"]


@recordable
@dataclasses.dataclass(frozen=True)
class ErrorFeedback(Rounding):
    """See `error_feedback`."""

    damping: float
    order: bool
    block: int
    outputs_damping: float = 0.3

    needs = ("stats",)

    def __call__(self, problem: Problem) -> Rounded:
        w = problem.weights
        if w.size == 0:
            return Rounded(w)
        found = products(problem.name, w.shape, problem.measured, "error_feedback()")
        matrices = Matrices(
            found.gram,
            output_curvature(problem.name, found, problem.curvature),
            jnp.float32(self.damping),
            jnp.float32(self.outputs_damping),
        )
        new = fed_back(problem.leaf, w, problem.support, matrices, found.layout, self.block, self.order)
        if not isinstance(new, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(new))):
            raise NonFiniteError(
                f"error feedback of leaf {problem.name!r} is not finite: the Gram matrix is too near to singular for a "
                f"damping of {self.damping}; raise it"
            )
        return Rounded(problem.kept(new))


def error_feedback(
    damping: float = 0.01, order: bool = True, block: int = 128, outputs_damping: float = 0.3
) -> ErrorFeedback:
    """To the values that change a layer's outputs least, each error being made up for by what is still to be rounded.

    For each output the error is (w - ŵ)ᵀ H (w - ŵ), H = E[x xᵀ] + λI of the layer's inputs. Inputs are taken in turn;
    once the weight of input q has got its nearest value, those of later inputs change by
    -(w_q - ŵ_q) / [H⁻¹]_qq · H⁻¹ e_q, H being of the inputs not yet passed. Step sizes, levels and zero points of the
    grid are chosen before, from the weights as they were, and stay.

    Needs `stats=trace.statistics(apply_fn, params, batches, kinds=("gram",))`, which looks at every layer of the
    network as it was; or `mz.compress(..., calibrate=(apply_fn, batches))`, by which each layer meets what those
    before it give once they are rounded. For kernels of dense products and convolutions, on every grid: layers of a
    scan, experts and groups have an H each; tied weights one of all their inputs. Under a mask, errors end only in
    weights that are kept.

    With `curvature=`, what `trace.fisher_information(..., kinds=("outputs",))` gives, errors of one output make up
    for those of others, too: the error of all is tr(G (W - Ŵ) H (W - Ŵ)ᵀ), G being what errors of the outputs cost,
    and each weight takes those of the rows and columns before it into account.

    Args:
      damping: λ, as a share of the mean of H's diagonal; positive.
      order: inputs of the largest mean square first (GPTQ's `act_order`), or as they come.
      block: inputs whose errors are passed on to all later ones in one product; of no effect but on time and memory.
      outputs_damping: of G, as a share of the mean of its diagonal; positive. G is known less well than H.

    Raises:
      LeafError (at `init`): a leaf without a Gram matrix of its own, such as a bias or an embedding; or of zeros; or
        curvature of another leaf.
      NonFiniteError (at `init`, not under `jit`): H is too near to singular, or has NaN or infinite values.

    Frantar et al. 2022 (GPTQ), arXiv:2210.17323, algorithm 1; Frantar & Alistarh 2022 (OBQ), arXiv:2208.11580, eq. 7;
    Tseng et al. 2025 (YAQA), arXiv:2505.22988, for both sides.

    >>> import modelzip_jax as mz
    >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 1.0]])
    >>> params = {"kernel": jnp.array([[1.4], [1.4], [7.0]])}
    >>> stats = mz.trace.statistics(lambda p, x: x @ p["kernel"], params, [x], kinds=("gram",))
    >>> found = mz.decoded(params, mz.quantize(4, rounding=error_feedback()), stats=stats)
    >>> [float(w) for w in found["kernel"].ravel()]  # 2.8 in all, of inputs 0 and 1, which say nearly the same
    [1.0, 2.0, 7.0]
    """
    damping = as_positive(damping, "damping of error_feedback()")
    order = as_flag(order, "order of error_feedback()")
    outputs_damping = as_positive(outputs_damping, "outputs_damping of error_feedback()")
    return ErrorFeedback(damping, order, as_whole(block, "block of error_feedback()", 1), outputs_damping)
