"""Projectors are what they are called, can be trained, and reviews have the teacher's shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from modelzip_jax import distillation

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.floats(0.0, 20.0), st.integers(0, 2**31))
def test_any_parameters_give_an_isometry(narrow, more, scale, seed):
    free = np.random.default_rng(seed).normal(size=(narrow + more, narrow)) * scale
    params = {"within": jnp.float32(free[:narrow]), "across": jnp.float32(free[narrow:])}
    w = distillation.orthogonal_matrix(params)
    assert w.shape == (narrow, narrow + more)
    np.testing.assert_allclose(w @ w.T, np.eye(narrow), atol=3e-4)


def test_the_matrix_is_the_exponential():
    params = distillation.init_orthogonal_projector(jax.random.key(0), 3, 5)
    free = np.zeros((5, 5))
    free[:, :3] = np.concatenate([params["within"], params["across"]]).astype(np.float64)
    want = expm(free - free.T)[:, :3].T
    np.testing.assert_allclose(distillation.orthogonal_matrix(params), want, atol=1e-5)


def test_weight_decay_draws_to_what_appends_zeros():
    params = jax.tree.map(jnp.zeros_like, distillation.init_orthogonal_projector(jax.random.key(0), 2, 5))
    x = normal(3, 2)
    np.testing.assert_allclose(
        distillation.project_orthogonally(params, x), jnp.pad(x, ((0, 0), (0, 3))), atol=1e-6
    )


def test_similarities_stay_what_they_are():
    params, x = distillation.init_orthogonal_projector(jax.random.key(0), 4, 9), normal(6, 2, 4)
    y = distillation.project_orthogonally(params, x).reshape(6, -1)
    x = x.reshape(6, -1)
    np.testing.assert_allclose(y @ y.T, x @ x.T, atol=1e-4)


@pytest.mark.parametrize("name", ["project", "project_orthogonally"])
def test_projectors_are_trained(name):
    # The teacher is the student, turned: both can say so exactly.
    student, matrix = normal(32, 3), np.linalg.qr(RNG.normal(size=(6, 3)))[0].T
    teacher = student @ jnp.float32(matrix)
    init = {
        "project": distillation.init_projector,
        "project_orthogonally": distillation.init_orthogonal_projector,
    }[name]
    params, optimizer = init(jax.random.key(1), 3, 6), optax.adam(0.05)

    @jax.jit
    def step(params, state):
        def loss(params):
            return distillation.hint(getattr(distillation, name)(params, student), teacher)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, first = optimizer.init(params), None
    for _ in range(300):
        params, state, value = step(params, state)
        first = value if first is None else first
    assert value < 1e-2 * first


def test_a_projection_is_a_convolution_of_one_position():
    params, x = distillation.init_projector(jax.random.key(0), 3, 5), normal(2, 4, 4, 3)
    params = params | {"bias": normal(5)}
    convolution = jax.lax.conv_general_dilated(
        x, params["kernel"][None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        distillation.project(params, x), convolution + params["bias"], rtol=1e-4, atol=1e-5
    )
    assert distillation.project(params, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_whitened_features_have_no_correlation():
    x = normal(200, 4) @ normal(4, 4) + 3.0
    white = np.asarray(distillation.whiten(x.reshape(20, 10, 4)), np.float64).reshape(200, 4)
    np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(white.T @ white / 200, np.eye(4), atol=2e-2)
    # Symmetric: of all whitening matrices that nearest to the features.
    rows = np.asarray(x, np.float64)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    want = (rows - rows.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(white, want, atol=2e-2)


def test_what_does_not_vary_is_not_blown_up():
    few = distillation.whiten(normal(3, 8))
    np.testing.assert_allclose(few @ few.T, 3.0 * (np.eye(3) - 1 / 3), atol=1e-2)
    for still in (jnp.full((11, 3), 0.1), jnp.zeros((1, 3))):
        np.testing.assert_allclose(distillation.whiten(still), 0.0, atol=1e-6)
        np.testing.assert_allclose(distillation.standardize_features(still), 0.0, atol=1e-5)


def test_teachers_that_are_normalised_are_fixed():
    for normalise in (distillation.whiten, distillation.standardize_features):
        np.testing.assert_array_equal(jax.grad(lambda x, n=normalise: n(x)[0, 0])(normal(4, 3)), 0.0)


def test_standardised_features_have_mean_0_and_variance_1():
    x = distillation.standardize_features(5.0 * normal(2, 3, 16) + 2.0)
    np.testing.assert_allclose(x.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(x.var(-1), 1.0, atol=1e-3)


def test_a_review_has_the_shapes_of_the_teacher_and_reaches_every_parameter():
    student = [normal(3, 6, 6, 2), normal(3, 3, 3, 4), normal(3, 1, 1, 5)]
    teacher = [normal(3, 8, 8, 3), normal(3, 2, 2, 6), normal(3, 1, 1, 7)]
    params = distillation.init_review(jax.random.key(0), [2, 4, 5], [3, 6, 7], width=4)

    @jax.jit
    @jax.grad
    def gradients(params):
        found = distillation.reviewed(params, student, [x.shape[1:3] for x in teacher])
        assert [x.shape for x in found] == [x.shape for x in teacher]
        return distillation.hierarchical_context(found, teacher)

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(params)):
        assert jnp.all(jnp.isfinite(gradient)), path
        assert jnp.any(gradient != 0), path


def test_shallow_features_do_not_reach_deeper_results():
    params = distillation.init_review(jax.random.key(0), [2, 2], [3, 3], width=2)
    student = [normal(2, 4, 4, 2), normal(2, 2, 2, 2)]
    places = [(4, 4), (2, 2)]
    plain, changed = (
        distillation.reviewed(params, s, places) for s in (student, [2 * student[0] + 1, student[1]])
    )
    np.testing.assert_array_equal(plain[1], changed[1])
    deeper = distillation.reviewed(params, [student[0], normal(2, 2, 2, 2)], places)
    assert not np.allclose(plain[0], deeper[0])


def test_a_review_of_one_example_of_one_position_is_finite():
    params = distillation.init_review(jax.random.key(0), [2], [3], width=2)
    (found,) = distillation.reviewed(params, [jnp.ones((1, 1, 1, 2), jnp.bfloat16)], [(1, 1)])
    np.testing.assert_array_equal(found, 0.0)
