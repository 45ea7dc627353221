"""Subsets against plain NumPy, brute force and counts by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax import distillation
from modelzip_jax.distillation.subsets import farthest_first
from modelzip_jax.errors import DataError, DistillationError, NonFiniteError

RNG = np.random.default_rng(0)


def herded(features, count):
    """Welling's recursion in float64, one example at a time."""
    mean = features.mean(axis=0)
    weights, chosen = mean.copy(), []
    for _ in range(count):
        products = features @ weights
        products[chosen] = -np.inf
        best = int(np.argmax(products))
        weights += mean - features[best]
        chosen.append(best)
    return chosen


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def greedy_centres(features, count, pool=()):
    """Farthest first in float64, with all distances."""
    apart = np.linalg.norm(features[:, None] - features[None], axis=-1)
    chosen = list(pool)
    if not chosen:
        chosen = [int(np.argmin(np.linalg.norm(features - features.mean(axis=0), axis=1)))]
    while len(chosen) < count + len(pool):
        near = apart[:, chosen].min(axis=1)
        near[chosen] = -1.0
        chosen.append(int(np.argmax(near)))
    return chosen[len(pool) :]


@pytest.mark.parametrize(("examples", "count"), [(1, 1), (40, 40), (300, 60)])
def test_herding_is_the_plain_loop(examples, count):
    features = RNG.normal(size=(examples, 7)) + 0.3
    chosen = distillation.herding(features, count)
    assert chosen.dtype == np.int32
    assert chosen.tolist() == herded(unit(features), count)
    assert distillation.herding(features, count, normalize=False).tolist() == herded(features, count)


def test_herding_makes_the_mean_least_distant_in_each_step():
    # iCaRL's rule, written as what it minimises.
    features = unit(RNG.normal(size=(120, 5)) + 0.5)
    mean, chosen = features.mean(axis=0), []
    for k in range(1, 21):
        means = (features + features[chosen].sum(axis=0)) / k
        error = np.linalg.norm(mean - means, axis=1)
        error[chosen] = np.inf
        chosen.append(int(np.argmin(error)))
    assert distillation.herding(features, 20).tolist() == chosen


def test_herding_keeps_to_the_mean_better_than_random_draws():
    features = unit(RNG.normal(size=(2000, 16)) + 0.5)
    error = lambda chosen: np.linalg.norm(features[chosen].mean(axis=0) - features.mean(axis=0))  # noqa: E731
    drawn = [error(RNG.choice(2000, 200, replace=False)) for _ in range(20)]
    assert error(distillation.herding(features, 200)) < 0.2 * min(drawn)


@pytest.mark.parametrize(("examples", "count"), [(1, 1), (30, 30), (65, 40), (64, 20), (500, 150)])
@pytest.mark.parametrize("pooled", [False, True])
def test_k_centre_is_farthest_first(examples, count, pooled):
    features = RNG.normal(size=(examples + 3, 4)) * RNG.uniform(0.2, 3.0, (examples + 3, 1)) + 20.0
    pool = [examples, examples + 2] if pooled else []
    chosen = distillation.k_centre(features, count, pool=pool)
    assert chosen.tolist() == greedy_centres(features, count, pool)


def test_k_centre_is_the_same_in_many_blocks(monkeypatch):
    features = RNG.normal(size=(333, 6))
    whole = distillation.k_centre(features, 100)
    monkeypatch.setattr(farthest_first, "_ROWS", 50)
    monkeypatch.setattr(farthest_first, "_CANDIDATES", 7)
    jax.clear_caches()
    assert distillation.k_centre(features, 100).tolist() == whole.tolist()
    assert distillation.k_centre(features, 5, pool=whole).tolist() == greedy_centres(features, 5, whole)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_k_centre_is_at_most_twice_the_best(seed, count):
    features = np.random.default_rng(seed).normal(size=(9, 2)) ** 3
    chosen = distillation.k_centre(features, count)
    apart = np.linalg.norm(features[:, None] - features[None], axis=-1)
    best = min(apart[:, list(c)].min(axis=1).max() for c in itertools.combinations(range(9), count))
    radius = apart[:, chosen].min(axis=1).max()
    assert radius <= 2.0 * best * (1 + 1e-5)
    np.testing.assert_allclose(distillation.covering_radius(features, chosen), radius, rtol=1e-3, atol=1e-3)


def test_equal_examples_are_chosen_once_each():
    for choose in (distillation.herding, distillation.k_centre):
        assert sorted(choose(np.ones((5, 2)), 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("choose", [distillation.herding, distillation.k_centre])
def test_each_class_chooses_among_its_own(choose):
    labels = RNG.permutation(np.repeat([0, 3, 9], [50, 30, 20]))
    features = RNG.normal(size=(100, 3, 2)) + 1.0
    chosen = choose(features, 0.2, labels)
    expected = []
    for label, share in ((0, 10), (3, 6), (9, 4)):
        rows = np.flatnonzero(labels == label)
        expected += rows[choose(features[rows], share)].tolist()
    assert chosen.tolist() == expected


def test_a_beginning_is_a_smaller_subset():
    features = RNG.normal(size=(90, 3))
    for choose in (distillation.herding, distillation.k_centre):
        assert choose(features, 30)[:11].tolist() == choose(features, 11).tolist()


def test_el2n_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    by_hand = [np.sqrt(0.25 + 0.0625 + 0.0625), np.sqrt(0.01 + 0.81 + 0.64)]
    np.testing.assert_allclose(distillation.el2n(jnp.asarray(logits), np.array([0, 1])), by_hand, rtol=1e-6)
    two = jnp.stack([jnp.asarray(logits), jnp.zeros((2, 3))])
    even = np.sqrt(4 / 9 + 2 / 9)
    expected = [(h + even) / 2 for h in by_hand]
    np.testing.assert_allclose(distillation.el2n(two, np.array([0, 1])), expected, rtol=1e-6)
    extreme = distillation.el2n(jnp.array([[1e4, -1e4]], jnp.bfloat16), np.array([1]))
    np.testing.assert_allclose(extreme, [np.sqrt(2.0)], rtol=1e-6)
    assert distillation.el2n(jnp.ones((2, 1)), np.array([0, 0])).tolist() == [0.0, 0.0]


def test_forgetting_by_hand():
    # Of each example, whether it was right whenever it was in the batch; None where it was not.
    seen = {
        0: [True, True, True, True],  # never forgotten
        1: [True, False, True, False],  # twice
        2: [False, True, None, False],  # once, although it was not seen in between
        3: [False, False, False, False],  # never learned
        4: [None, None, None, None],  # never seen
    }
    state = distillation.start_forgetting(5)
    record = jax.jit(distillation.record_forgetting)
    for step in range(4):
        here = [i for i, history in seen.items() if history[step] is not None]
        state = record(state, jnp.array(here), jnp.array([seen[i][step] for i in here]))
    assert state.events.tolist() == [0, 2, 1, 0, 0]
    assert distillation.forgetting_scores(state).tolist() == [0.0, 2.0, 1.0, np.inf, np.inf]


def test_the_hardest_of_all_and_of_each_class():
    scores = np.array([3.0, 1.0, np.inf, 2.0, 1.0, 0.0])
    assert distillation.hardest(scores, 3).tolist() == [2, 0, 3]
    assert distillation.hardest(scores, 5).tolist() == [2, 0, 3, 1, 4]
    assert distillation.hardest(scores, 2, skip=0.34).tolist() == [3, 1]
    labels = np.array([0, 0, 1, 1, 1, 0])
    assert distillation.hardest(scores, 4, labels).tolist() == [0, 1, 2, 3]
    assert distillation.hardest(scores, 2, labels, skip=0.34).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f: distillation.herding(f, 0), DataError, "size=0"),
        (lambda f: distillation.k_centre(f, 21), DataError, "from 1 to 20"),
        (lambda f: distillation.herding(f, 1.5), DataError, "size=1.5"),
        (lambda f: distillation.herding(f[:, 0], 2), DistillationError, r"\(20,\)"),
        (
            lambda f: distillation.k_centre(f, 2, labels=np.zeros(3, int)),
            DistillationError,
            r"\(20,\).*\(3,\)",
        ),
        (lambda f: distillation.k_centre(f, 2, labels=np.zeros(20)), DistillationError, "float64"),
        (lambda f: distillation.k_centre(f, 2, pool=[20]), DistillationError, "0 to 19"),
        (lambda f: distillation.k_centre(f, 20, pool=[3]), DistillationError, "pool of 1"),
        (lambda f: distillation.covering_radius(f, []), DistillationError, "indices"),
        (lambda f: distillation.herding(np.where(f == f[7], np.nan, f), 2), NonFiniteError, "example 7"),
        (lambda f: distillation.el2n(f, np.zeros(3, int)), DistillationError, r"\(20,\).*\(3,\)"),
        (lambda f: distillation.el2n(f.astype(int), np.zeros(20, int)), DistillationError, "int"),
        (lambda f: distillation.hardest(f, 2), DistillationError, r"\(20, 3\)"),
        (lambda f: distillation.hardest(np.array([0.0, np.nan]), 1), NonFiniteError, "example 1"),
        (lambda f: distillation.hardest(f[:, 0], 15, skip=0.5), DistillationError, "leaves 10"),
        (lambda f: distillation.hardest(f[:, 0], 15, skip=1.0), DistillationError, "skip"),
    ],
)
def test_bad_calls_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call(RNG.normal(size=(20, 3)))
