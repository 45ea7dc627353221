"""Laws of the losses on features and on relations: what they do not see, and how they meet what is degenerate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from modelzip_jax import distillation
from modelzip_jax.distillation.pooling import nearest_resized, pool_alike, pooled_to
from modelzip_jax.distillation.safe_norms import pearson, safe_norm, unit_vectors

RNG = np.random.default_rng(0)
RELATIONS = {
    "similarity": jax.jit(distillation.similarity),
    "relational_distance": jax.jit(distillation.relational_distance),
    "relational_angle": jax.jit(distillation.relational_angle),
    "correlation_congruence": jax.jit(distillation.correlation_congruence),
}
SHIFTS_TOO = ("relational_distance", "relational_angle")
SEEDS = st.integers(0, 2**31)


def normal(*shape, scale=1.0):
    return jnp.asarray(RNG.normal(size=shape) * scale, jnp.float32)


@pytest.mark.parametrize("name", RELATIONS)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, factor=st.floats(1e-3, 1e3))
def test_turning_and_scaling_features_changes_no_relation(name, seed, factor):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
    turned = factor * student @ ortho_group.rvs(4, random_state=rng)
    turned += rng.normal(size=4) * factor * (name in SHIFTS_TOO)
    found, plain = (RELATIONS[name](jnp.float32(x), jnp.float32(teacher)) for x in (turned, student))
    np.testing.assert_allclose(found, plain, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_relations_of_tiny_and_huge_features(name, scale):
    student, teacher = normal(4, 3), normal(4, 5)
    value, gradient = jax.jit(jax.value_and_grad(RELATIONS[name]))(student * 1e15, teacher * 1e-12)
    np.testing.assert_allclose(value, RELATIONS[name](student, teacher), rtol=1e-4)
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.isfinite(RELATIONS[name](student * scale, teacher))


@pytest.mark.parametrize("name", RELATIONS)
def test_equal_examples_have_finite_gradients(name):
    student = jnp.ones((4, 3)).at[3].set(2.0)
    value, gradient = jax.jit(jax.value_and_grad(RELATIONS[name]))(student, normal(4, 3))
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("name", SHIFTS_TOO)
def test_an_example_is_at_no_distance_from_itself_whatever_it_is_fused_with(name):
    student, teacher, factors = (
        normal(5, 3).at[1].set(0.3).at[2].set(0.3),
        normal(5, 3),
        jnp.float32([0.7, 0.3, 0.9]),
    )
    made = student * factors
    fused = jax.jit(lambda x, f: RELATIONS[name](x * f, teacher))
    np.testing.assert_allclose(fused(student, factors), RELATIONS[name](made, teacher), rtol=1e-5)


def test_distances_far_from_the_origin():
    # By Gram matrices nothing would be left of them.
    near, teacher = normal(5, 4), normal(5, 4)
    found = distillation.relational_distance(near + 512.0, teacher)
    np.testing.assert_allclose(found, distillation.relational_distance(near, teacher), rtol=1e-3)


def test_attention_is_where_and_not_how_wide():
    student, teacher = normal(3, 4, 4, 2), normal(3, 4, 4, 5)
    loss = jax.jit(distillation.attention_transfer)
    wider = jnp.concatenate([student, student[..., ::-1]], -1)
    np.testing.assert_allclose(loss(7.0 * wider, teacher), loss(student, teacher), rtol=1e-5)
    # Of sequences, too.
    flat = [x.reshape(3, 16, -1) for x in (student, teacher)]
    np.testing.assert_allclose(loss(*flat), loss(student, teacher), rtol=1e-5)
    assert jnp.isfinite(loss(1e30 * student, teacher))


def test_attention_of_odd_powers_and_of_roots():
    student, teacher = normal(2, 3, 4).at[0, 0].set(0.0), normal(2, 3, 4)
    for power in (0.5, 1.0, 3.0):
        gradient = jax.grad(distillation.attention_transfer)(student, teacher, power=power)
        assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_allclose(distillation.attention_transfer(-student, student, power=3.0), 0.0, atol=1e-7)


def test_attention_at_other_positions_is_pooled():
    student, teacher = normal(2, 8, 8, 3), normal(2, 4, 4, 3)
    pooled = student.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    for pair in ((student, teacher), (teacher, student)):
        found = distillation.attention_transfer(*pair)
        np.testing.assert_allclose(found, distillation.attention_transfer(pooled, teacher), rtol=1e-5)


def test_flow_of_dense_layers_is_an_outer_product():
    first, second, ones = normal(3, 4), normal(3, 2), jnp.zeros((3, 4))
    found = distillation.flow((first, second), (ones, jnp.zeros((3, 2))))
    np.testing.assert_allclose(found, np.mean((first[:, :, None] * second[:, None]) ** 2), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_windows_are_those_of_adaptive_pooling(length, size):
    x = RNG.normal(size=(1, length, 2)).astype(np.float32)
    want = [x[:, i * length // size : -(-(i + 1) * length // size)].mean(1) for i in range(size)]
    np.testing.assert_allclose(pooled_to(jnp.asarray(x), (size,)), np.stack(want, 1), atol=1e-6)
    nearest = nearest_resized(jnp.asarray(x), (size,))
    np.testing.assert_array_equal(nearest, x[:, [i * length // size for i in range(size)]])


def test_each_axis_is_pooled_to_the_smaller_number():
    a, b = pool_alike(normal(2, 6, 3, 1), normal(2, 3, 6, 4))
    assert (a.shape, b.shape) == ((2, 3, 3, 1), (2, 3, 3, 4))


def test_norms_have_derivatives_at_zero():
    np.testing.assert_array_equal(jax.grad(lambda x: safe_norm(x).sum())(jnp.zeros((2, 3))), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda x: unit_vectors(x).sum())(jnp.zeros((2, 3))), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda x: pearson(x, jnp.arange(3.0)))(jnp.full(3, 0.1)), 0.0)
    np.testing.assert_allclose(unit_vectors(jnp.array([3e-10, 4e-10])), [0.6, 0.8], rtol=1e-6)
