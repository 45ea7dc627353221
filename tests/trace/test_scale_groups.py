"""Facts about scales: what follows from them, and what holds in loops, branches and for parts of axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import tree
from modelzip_jax.trace.coupling.labels import Reason
from modelzip_jax.trace.symmetry.scalable_channels import scale_groups
from modelzip_jax.trace.symmetry.scale_facts import ScaleFacts

WHY = Reason("", "", "for a test")


def test_facts_are_solved_with_signs_sums_and_zeros():
    facts = ScaleFacts()
    a, b, c, d, e = facts.fresh((5,))
    facts.equate(np.array([a]), np.array([-b]), WHY)
    total = facts.add(np.array([a]), np.array([c]))
    facts.equate(total, np.array([d]), WHY)
    facts.zero(np.array([e]), WHY)
    solved = facts.solve()
    assert solved.form(e) == {} and solved.why(e) == WHY  # noqa: PT018
    assert solved.form(b) == {k: -v for k, v in solved.form(a).items()}
    left = {
        k: solved.form(a).get(k, 0.0) + solved.form(c).get(k, 0.0) for k in {*solved.form(a), *solved.form(c)}
    }
    assert {k: v for k, v in left.items() if v} == solved.form(d)
    facts.equate(np.array([a]), np.array([b]), WHY)  # a = -a.
    facts.zero(np.array([d]), WHY)
    solved = facts.solve()
    assert solved.form(a) == solved.form(b) == solved.form(c) == {}


def rotated_scan(p, x):
    """A carry that starts at zero, layers that write to it, and one that reads it."""

    def step(h, w):
        return h + jax.nn.relu(x @ w["up"]) @ w["down"], None

    h, _ = jax.lax.scan(step, jnp.zeros((len(x), 4)), p["layers"])
    return jax.nn.relu(h) @ p["out"]


def branches(p, x):
    h = jax.lax.cond(x[0, 0] > 0, lambda h: jax.nn.relu(h), lambda h: 2.0 * h, x @ p["up"])
    return h @ p["down"]


def parts(p, x):
    a, b = jnp.split(jax.nn.relu(x @ p["up"]), 2, axis=-1)
    return jnp.concatenate([jnp.pad(jnp.tanh(a), ((0, 0), (1, 0))), b], -1) @ p["down"]


def looped(p, x):
    return jax.lax.fori_loop(0, 3, lambda _, h: jax.nn.relu(h @ p["square"]), x @ p["up"]) @ p["down"]


def heads(p, x):
    h = (x @ p["up"]).reshape(len(x), 2, 3)
    h = jnp.maximum(h, -0.5 * h).transpose(0, 2, 1).reshape(len(x), 6)
    return jnp.where(x[:, :1] > 0, h, -h) @ p["down"]


MODELS = {
    "scan": (rotated_scan, {"layers": {"up": (2, 3, 5), "down": (2, 5, 4)}, "out": (4, 2)}, {"up": 5}),
    "branches": (branches, {"up": (3, 4), "down": (4, 2)}, {"up": 4}),
    "parts": (parts, {"up": (3, 8), "down": (9, 2)}, {"up": 4}),
    "loop": (looped, {"up": (3, 4), "square": (4, 4), "down": (4, 2)}, {"up": 4}),
    "heads": (heads, {"up": (3, 6), "down": (6, 2)}, {"up": 6}),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_factors_of_the_groups_leave_the_function(name):
    model, shapes, units = MODELS[name]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.float32(rng.normal(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    groups = scale_groups(model, params, x).groups
    changed = params
    for group in groups:
        factor = np.exp(rng.normal(size=group.units))
        for member in group.members:
            block, values = member.block, np.ones(member.block.shape)
            values.reshape(-1)[member.indices] *= (factor**member.power)[:, None]

            def scaled(leaf, w, block=block, values=values):
                sizes = dict(zip(block.axes, block.shape, strict=True))
                return (
                    w * values.reshape([sizes.get(i, 1) for i in range(w.ndim)]) if leaf == block.leaf else w
                )

            changed = tree.map_named(scaled, changed)
    np.testing.assert_allclose(model(changed, x), model(params, x), rtol=2e-5, atol=1e-5)
    found = {m.block.leaf.rpartition("/")[2]: g.units for g in groups for m in g.members}
    assert units.items() <= found.items()


def test_labels_of_constants_inputs_and_outputs_are_zero():
    mixed = lambda p, x: (x * p["a"] + 1.0) @ p["b"] + jnp.exp(p["c"])  # noqa: E731
    params = {"a": jnp.ones(3), "b": jnp.ones((3, 2)), "c": jnp.ones(2)}
    assert scale_groups(mixed, params, jnp.ones((1, 3))).groups == ()
