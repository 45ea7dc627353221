import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import EvaluationError, TreeError
from modelzip_jax.evaluation import classification
from modelzip_jax.evaluation.candidates import rank_candidates
from modelzip_jax.evaluation.recalibration import adapt_batch_norm

CLASSES, EXAMPLES = 3, 37


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(not train)(nn.Conv(4, (3, 3), use_bias=False)(x)))
        return nn.Dense(CLASSES)(nn.BatchNorm(not train)(x.mean((1, 2))))


@functools.cache
def setting():
    model, rng = Network(), np.random.default_rng(0)
    batches = rng.normal(size=(3, 8, 4, 4, 2)).astype(np.float32)
    x, labels = rng.normal(size=(EXAMPLES, 4, 4, 2)).astype(np.float32), rng.integers(0, CLASSES, EXAMPLES)
    return model, model.init(jax.random.key(0), batches[0]), batches, x, labels


def stacked(seed=0, count=4):
    """Params of several models."""
    _, variables, *_ = setting()
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=(count, *w.shape)), jnp.float32), variables["params"]
    )


def masks(count=4):
    """Of the filters of the convolution; all others broadcast."""
    _, variables, *_ = setting()
    whole = jax.tree.map(lambda w: np.ones((count,) + (1,) * w.ndim, bool), variables["params"])
    kept = np.random.default_rng(1).random((count, 1, 1, 1, 4)) < 0.5
    return {**whole, "Conv_0": {"kernel": kept}}


def directly(candidate, adapt):
    """One candidate by itself, scored in float64."""
    model, variables, batches, x, labels = setting()
    params = jax.tree.map(
        lambda w, c: np.where(c, w, 0) if c.dtype == bool else c, variables["params"], candidate
    )
    own = {**variables, "params": params}
    own = adapt_batch_norm(model.apply, own, batches) if adapt else own
    return classification.score(model.apply(own, x), labels)


@pytest.mark.parametrize(
    ("make", "adapt", "options"),
    [
        (stacked, True, {"batch_size": 10}),
        (masks, True, {"at_once": 2}),
        (masks, False, {}),
    ],
)
def test_every_candidate_is_judged_as_by_itself(make, adapt, options):
    model, variables, batches, x, labels = setting()
    candidates = make()
    ranking = rank_candidates(
        model.apply, variables, candidates, batches if adapt else None, x, labels, adapt=adapt, **options
    )
    assert ranking.count == EXAMPLES
    for i in range(4):
        scores = directly(jax.tree.map(lambda c: np.asarray(c)[i], candidates), adapt)  # noqa: B023
        assert ranking.hits[i] == np.sum(scores.rank == 1)
        np.testing.assert_allclose(ranking.nll[i], scores.nll.mean(), rtol=1e-4)
    assert ranking.hits[ranking.order].tolist() == sorted(ranking.hits, reverse=True)
    assert float(ranking.accuracies[ranking.best]) == ranking.hits.max() / EXAMPLES


def test_all_candidates_are_one_trace():
    model, variables, batches, x, labels = setting()
    chex.clear_trace_counter()
    # Once to adapt and once to evaluate.
    apply = chex.assert_max_traces(n=2)(lambda *args, **kwargs: model.apply(*args, **kwargs))
    found = [rank_candidates(apply, variables, stacked(seed), batches, x, labels) for seed in (0, 1)]
    assert not np.array_equal(found[0].nll, found[1].nll)


def test_ties_go_by_cross_entropy_and_what_is_not_finite_goes_last():
    model, variables, batches, x, labels = setting()
    candidates = stacked()
    kernel = candidates["Dense_0"]["kernel"]
    # Larger logits keep the accuracy; NaN has none.
    kernel = kernel.at[1].set(kernel[0] * 2)
    bias = candidates["Dense_0"]["bias"].at[:2].set(0.0)
    norms = {
        name: {k: w.at[1].set(w[0]) for k, w in candidates[name].items()}
        for name in ("Conv_0", "BatchNorm_0", "BatchNorm_1")
    }
    norms["Conv_0"] = {"kernel": norms["Conv_0"]["kernel"].at[3].set(jnp.nan)}
    candidates = {**norms, "Dense_0": {"kernel": kernel, "bias": bias}}
    ranking = rank_candidates(model.apply, variables, candidates, batches, x, labels)
    order = ranking.order.tolist()
    assert ranking.hits[0] == ranking.hits[1]
    assert (order.index(0) < order.index(1)) == (ranking.nll[0] < ranking.nll[1])
    assert ranking.hits[3] == 0
    assert np.isnan(ranking.nll[3])
    assert order[-1] == 3


def test_bad_requests_are_named():
    model, variables, batches, x, labels = setting()

    def rank(candidates=None, x=x, labels=labels, batches=batches, **options):
        candidates = stacked() if candidates is None else candidates
        return rank_candidates(model.apply, variables, candidates, batches, x, labels, **options)

    with pytest.raises(TreeError, match="structure"):
        rank({"other": jnp.ones(3)})
    with pytest.raises(TreeError, match="does not fit"):
        rank({**stacked(), "Conv_0": {"kernel": jnp.ones((4, 1, 1, 1, 4))}})
    with pytest.raises(TreeError, match="does not fit"):
        rank({**stacked(), "Conv_0": {"kernel": jnp.ones((4, 1, 1, 1, 3), bool)}})
    with pytest.raises(EvaluationError, match="first axis"):
        rank({**stacked(), "Conv_0": {"kernel": jnp.ones((2, 3, 3, 2, 4))}})
    with pytest.raises(EvaluationError, match="one length"):
        rank(labels=labels[1:])
    with pytest.raises(EvaluationError, match="from 0 to 2"):
        rank(labels=labels + 1)
    with pytest.raises(EvaluationError, match="stacked"):
        rank(batches=batches[:0])
    with pytest.raises(EvaluationError, match="at least 1"):
        rank(batch_size=0)
