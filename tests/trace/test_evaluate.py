"""The evaluator rebuilds what stands around a visited equation, and leaves the rest as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from trace_models import normal

from modelzip_jax.errors import TraceError
from modelzip_jax.trace import statistics, uses
from modelzip_jax.trace.jaxpr.evaluator import Evaluator, bind
from modelzip_jax.trace.jaxpr.programs import program


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


def model(p, x):
    def layer(c, w):
        return straight_through(4 * jnp.tanh(c @ w)) / 4, None

    x = lax.scan(jax.checkpoint(layer), x, p["layers"])[0]
    return lax.cond(x.sum() > 1e9, lambda x: x @ p["out"], lambda x: x @ p["out"] + 1, x)


PARAMS = {"layers": normal(3, 4, 4), "out": normal(4, 2)}
X = normal(5, 4, seed=2)


def evaluated(visitors):
    traced = program(model, PARAMS, X)

    def run(params, x):
        return Evaluator(visitors, empty=lambda s: jnp.zeros(s.shape))(traced, jax.tree.leaves((params, x)))

    return run


def test_without_visitors_it_is_the_model_with_its_gradients():
    run = evaluated({})
    np.testing.assert_array_equal(run(PARAMS, X)[0][0], model(PARAMS, X))
    ours = jax.grad(lambda p: run(p, X)[0][0].sum())(PARAMS)
    theirs = jax.grad(lambda p: model(p, X).sum())(PARAMS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs)
    assert np.any(ours["layers"])


def test_a_visitor_replaces_results_and_collects():
    def half(equation, operands, feed):
        (y,) = bind(equation.eqn, operands)
        return [0.5 * y], y.sum()

    found = uses(model, PARAMS, X)
    run = jax.jit(evaluated({u.path: half for u in found if u.leaf in PARAMS and u.kind == "dot"}))
    (got,), collected = run(PARAMS, X)
    smaller = jax.tree.map(lambda w: w / 2, PARAMS)
    np.testing.assert_allclose(got, model(smaller, X), rtol=1e-6)
    assert sorted(np.shape(v) for v in collected.values()) == [(), (), (3,)]
    text = jax.make_jaxpr(run)(PARAMS, X).pretty_print()
    assert text.count("scan[") == 1
    gradient = jax.grad(lambda p: run(p, X)[0][0].sum())(PARAMS)
    want = jax.grad(lambda p: model(jax.tree.map(lambda w: w / 2, p), X).sum())(PARAMS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), gradient, want)


@jax.custom_jvp
def sevenfold(x):
    return jnp.sin(x)


sevenfold.defjvp(lambda primals, tangents: (jnp.sin(*primals), 7.0 * tangents[0]))

RULED = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "logsumexp": lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True),
    "custom_jvp": sevenfold,
    "custom_vjp": straight_through,
}
AROUND = {
    "call": lambda layer, c, weights: functools.reduce(layer, weights, c),
    "scan": lambda layer, c, weights: lax.scan(lambda c, w: (layer(c, w), None), c, weights)[0],
    "remat": lambda layer, c, weights: functools.reduce(jax.checkpoint(layer), weights, c),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("ruled", RULED)
def test_calls_that_no_visitor_stands_in_keep_their_derivatives(ruled, around):
    def network(weights, x):
        return AROUND[around](lambda c, w: c + RULED[ruled](c @ w), x, weights)

    def look(equation, operands, _):
        results = bind(equation.eqn, operands)
        return results, results[0]

    # Zeros before relu, where its own derivative is 0 and that of a maximum is 1/2.
    weights, x = jnp.asarray(PARAMS["layers"]).at[:, :, 0].set(0.0), X
    traced = program(network, weights, x)
    products = {u.path: look for u in uses(network, weights, x) if u.kind == "dot"}

    def run(weights, x):
        return Evaluator(products)(traced, [weights, x])[0][0].sum()

    ours = jax.grad(run, (0, 1))(weights, x)
    theirs = jax.grad(lambda w, x: network(w, x).sum(), (0, 1))(weights, x)
    assert products
    assert all(np.any(g) for g in theirs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("ruled", ["custom_jvp", "custom_vjp"])
def test_a_call_that_a_visitor_stands_in_has_values_and_no_derivative(ruled, around):
    rule = {"custom_jvp": jax.custom_jvp, "custom_vjp": jax.custom_vjp}[ruled]
    dense = rule(lambda c, w: jnp.tanh(c @ w))
    if ruled == "custom_jvp":
        dense.defjvp(lambda p, t: (dense(*p), t[0] @ p[1]))
    else:
        dense.defvjp(lambda c, w: (dense(c, w), (c, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))

    def network(weights, x):
        return AROUND[around](dense, x, weights)

    def look(equation, operands, _):
        return bind(equation.eqn, operands), operands[0].sum()

    traced = program(network, PARAMS["layers"], X)
    products = {u.path: look for u in uses(network, PARAMS["layers"], X) if u.kind == "dot"}

    def run(weights, x):
        return Evaluator(products)(traced, [weights, x])

    (found,), collected = jax.jit(run)(PARAMS["layers"], X)
    np.testing.assert_allclose(found, network(PARAMS["layers"], X), rtol=1e-6)
    assert sum(np.size(x) for x in collected.values()) == len(PARAMS["layers"])
    with pytest.raises(TraceError, match=f"{ruled}_call has a derivative of its own"):
        jax.grad(lambda w: run(w, X)[0][0].sum())(PARAMS["layers"])
    # What does not depend on what is asked for has nothing to lose.
    assert float(jax.grad(lambda s: s * run(PARAMS["layers"], X)[0][0].sum())(1.0)) == pytest.approx(
        float(found.sum()), rel=1e-5
    )


def test_what_cannot_be_evaluated_apart_is_named():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    def product(x, w):
        return x @ w

    with pytest.raises(TraceError, match=r"inside \d+:shard_map"):
        statistics(lambda p, x: product(x, p), normal(4, 4), [X])
    with pytest.raises(TraceError, match="condition of the while loop"):
        statistics(
            lambda p, x: lax.while_loop(lambda c: (c @ p).sum() > 1e9, lambda c: c + 1, x), normal(4, 4), [X]
        )
