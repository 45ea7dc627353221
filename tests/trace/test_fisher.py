"""Fisher information equals that of gradients taken one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from trace_models import normal

from modelzip_jax.errors import LeafError, TraceError
from modelzip_jax.trace import fisher_information

BOTH = ("diagonal", "kronecker")


def mlp(p, x):
    return jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]


PARAMS = {"a": normal(4, 5), "bias": normal(5, seed=2), "b": normal(5, 3, seed=3)}
X = normal(6, 4, seed=4)
LABELS = jnp.array([0, 1, 2, 0, 1, 1])


def log_loss(p, x, label):
    return -jax.nn.log_softmax(mlp(p, x[None]))[0, label]


def test_the_diagonal_and_the_factors_are_second_moments_of_gradients():
    batches = [(X[:3], LABELS[:3]), (X[3:], LABELS[3:])]
    found = fisher_information(mlp, PARAMS, batches, BOTH, labels="given", examples_at_once=2)
    gradients = jax.vmap(jax.grad(log_loss), (None, 0, 0))(PARAMS, X, LABELS)
    for name, g in gradients.items():
        np.testing.assert_allclose(found[name].diagonal, (g**2).mean(0), rtol=1e-4, atol=1e-7)
    hidden = jnp.tanh(X @ PARAMS["a"] + PARAMS["bias"])
    delta = jax.nn.softmax(mlp(PARAMS, X)) - jax.nn.one_hot(LABELS, 3)
    back = (delta @ PARAMS["b"].T) * (1 - hidden**2)
    for name, a, g in (("a", X, back), ("b", hidden, delta)):
        (factors,) = found[name].factors
        np.testing.assert_allclose(factors.inputs, a.T @ a / 6, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(factors.outputs, g.T @ g / 6, rtol=1e-4, atol=1e-6)
    assert found["bias"].factors == ()


def test_of_one_example_the_factors_are_exact():
    found = fisher_information(mlp, PARAMS, [(X[:1], LABELS[:1])], ("kronecker",), labels="given")
    g = jax.grad(log_loss)(PARAMS, X[0], LABELS[0])["a"].reshape(-1)
    (factors,) = found["a"].factors
    np.testing.assert_allclose(np.kron(factors.inputs, factors.outputs), np.outer(g, g), rtol=1e-3, atol=1e-7)


def test_sampled_labels_give_the_expectation_over_the_model():
    w, x = normal(2, 3), normal(1, 2, seed=2)
    found = fisher_information(lambda p, x: x @ p, w, [jnp.tile(x, (4000, 1))], examples_at_once=4000)
    probability = jax.nn.softmax(x @ w)[0]
    want = sum(
        probability[c] * jax.grad(lambda w, c=c: -jax.nn.log_softmax(x @ w)[0, c])(w) ** 2 for c in range(3)
    )
    np.testing.assert_allclose(found.diagonal, want, rtol=0.1, atol=0.01)


def test_the_gaussian_pseudo_loss_gives_gauss_newton():
    w, x = normal(2, 3), normal(1, 2, seed=2)
    found = fisher_information(
        lambda p, x: x @ p, w, [jnp.tile(x, (4000, 1))], likelihood="gaussian", examples_at_once=4000
    )
    np.testing.assert_allclose(found.diagonal, jnp.broadcast_to(x.T**2, (2, 3)), rtol=0.1, atol=0.01)


def test_scanned_layers_have_their_own_factors_with_remat():
    layers = normal(3, 4, 4)

    def scanned(p, x):
        return lax.scan(jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None)), x, p)[0]

    def plain(p, x):
        for w in p:
            x = jnp.tanh(x @ w)
        return x

    batches = [(X, LABELS)]
    found = fisher_information(scanned, layers, batches, BOTH, labels="given")
    want = fisher_information(plain, list(layers), batches, BOTH, labels="given")
    for i in range(3):
        np.testing.assert_allclose(found.diagonal[i], want[i].diagonal, rtol=1e-4, atol=1e-8)
        for side in ("inputs", "outputs"):
            np.testing.assert_allclose(
                getattr(found.factors[0], side)[i], getattr(want[i].factors[0], side), rtol=1e-4, atol=1e-7
            )


def test_positions_are_summed_for_outputs_and_averaged_for_inputs():
    w, x = normal(3, 2), normal(4, 5, 3, seed=2)

    def model(p, x):
        return (x @ p).sum(1)

    labels = jnp.array([0, 1, 1, 0])
    found = fisher_information(model, w, [(x, labels)], ("kronecker",), labels="given")
    delta = np.asarray(jax.nn.softmax(model(w, x)) - jax.nn.one_hot(labels, 2))
    rows = np.asarray(x).reshape(-1, 3)
    np.testing.assert_allclose(found.factors[0].inputs, rows.T @ rows / 20, rtol=1e-5)
    np.testing.assert_allclose(found.factors[0].outputs, 5 * delta.T @ delta / 4, rtol=1e-4, atol=1e-6)

    def recurrent(p, x):
        return lax.scan(lambda c, x: (c + x @ p, None), jnp.zeros((4, 2)), x.swapaxes(0, 1))[0]

    again = fisher_information(recurrent, w, [(x, labels)], ("kronecker",), labels="given")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_have_factors_of_patches(groups):
    w, x = normal(2, 2, 4 // groups, 4), normal(1, 2, 2, 4, seed=2)

    def model(p, x):
        y = lax.conv_general_dilated(
            x, p, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        return y.reshape(x.shape[0], -1)

    found = fisher_information(model, w, [(x, jnp.array([1]))], ("kronecker",), labels="given")
    (factors,) = found.factors
    gradient = jax.grad(lambda p: -jax.nn.log_softmax(model(p, x))[0, 1])(w)
    per = 4 // groups
    for g in range(groups):
        a = factors.inputs if groups == 1 else factors.inputs[g]
        out = factors.outputs[g * per : (g + 1) * per, g * per : (g + 1) * per]
        block = gradient[..., g * per : (g + 1) * per].reshape(-1)
        np.testing.assert_allclose(np.kron(a, out), np.outer(block, block), rtol=1e-3, atol=1e-6)


def test_a_likelihood_of_ones_own_and_integer_leaves():
    params = {"w": normal(4, 2), "steps": jnp.int32(3)}
    found = fisher_information(
        lambda p, x: {"y": x @ p["w"]}, params, [(X, jnp.ones(6))],
        likelihood=lambda out, t: t * out["y"][:, 0], labels="given",
    )  # fmt: skip
    np.testing.assert_allclose(found["w"].diagonal[:, 0], (X**2).mean(0), rtol=1e-5)
    assert found["steps"].diagonal is None


def test_errors():
    @jax.custom_jvp
    def product(x, w):
        return x @ w

    product.defjvp(lambda p, t: (product(*p), t[0] @ p[1] + p[0] @ t[1]))
    with pytest.raises(TraceError, match="custom derivatives"):
        fisher_information(lambda p, x: product(x, p), normal(4, 3), [X], ("kronecker",))
    with pytest.raises(TraceError, match="at least one batch"):
        fisher_information(mlp, PARAMS, [])
    with pytest.raises(LeafError, match="is a function"):
        fisher_information(PARAMS, mlp, [X])
    with pytest.raises(TraceError, match="batch 1 holds no example"):
        fisher_information(mlp, PARAMS, [X, X[:0]])
    with pytest.raises(TraceError, match=r"batch 0, of shapes \(\(6, 2\),\)"):
        fisher_information(mlp, PARAMS, [X[:, :2]])
    with pytest.raises(TraceError, match=r"a pair \(inputs, labels\); batch 0 has the shapes \(6, 4\)"):
        fisher_information(mlp, PARAMS, [X], labels="given")
    with pytest.raises(TraceError, match="'diag'"):
        fisher_information(mlp, PARAMS, [X], ("diag",))
    with pytest.raises(TraceError, match="labels='given'"):
        fisher_information(mlp, PARAMS, [X], likelihood=lambda y, t: y)
    with pytest.raises(TraceError, match="returns 2 arrays"):
        fisher_information(lambda p, x: (x, x), PARAMS, [X])
    with pytest.raises(TraceError, match="'poisson'"):
        fisher_information(mlp, PARAMS, [X], likelihood="poisson")
    with pytest.raises(TraceError, match="first axis"):
        fisher_information(lambda p, x, y: x, PARAMS, [(X, jnp.ones(2))])
