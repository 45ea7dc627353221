"""Each layer alone: errors as if done by hand, one program for all of them, and tasks as sensitivities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import EvaluationError, TransformError
from modelzip_jax.evaluation import layer_sensitivity, task_drop

CANDIDATES = {"2 bits": mz.quantize(2), "6 bits": mz.quantize(6)}


def network(layers, width=16):
    rng = np.random.default_rng(1)
    names = [f"layer_{i}" for i in range(layers)]
    params = {
        name: {
            "kernel": rng.normal(size=(width, width)).astype(np.float32) / 4,
            "bias": np.zeros(width, np.float32),
        }
        for name in names
    }

    def apply(p, x):
        for name in names:
            x = jnp.tanh(x @ p[name]["kernel"] + p[name]["bias"])
        return x

    return params, apply, rng.normal(size=(32, width)).astype(np.float32)


def replaced(params, name, candidate):
    layer, leaf = name.split("/")
    packed = mz.compress({name: params[layer][leaf]}, candidate)
    changed = {key: dict(value) for key, value in params.items()}
    changed[layer][leaf] = np.asarray(mz.unpack(packed)[name])
    return changed


def test_errors_are_those_of_one_layer_replaced():
    params, apply, x = network(3)
    found = layer_sensitivity(params, CANDIDATES, sensitivity=mz.sensitivity.output_error(apply, [x]))
    assert [row.name for row in found.rows] == [f"layer_{i}/kernel" for i in (0, 0, 1, 1, 2, 2)]
    for row in found.rows:
        change = apply(replaced(params, row.name, CANDIDATES[row.candidate]), x) - apply(params, x)
        assert row.error == pytest.approx(float(jnp.mean(jnp.sum(change**2, axis=-1))), rel=1e-3)
        assert (row.size, row.dense_bytes) == (256, 1024)
        assert 0 < row.file_bytes < 1024
    rows = {(row.name, row.candidate): row for row in found.rows}
    for name in ("layer_0/kernel", "layer_2/kernel"):
        assert rows[name, "2 bits"].error > 10 * rows[name, "6 bits"].error
        assert rows[name, "2 bits"].file_bytes < rows[name, "6 bits"].file_bytes


def compiled(layers):
    """Programs that XLA compiles for so many layers, and how often the model is traced."""
    params, apply, x = network(layers)
    traced, programs = [], []

    def model(p, x):
        traced.append(1)
        return apply(p, x)

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(duration)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        layer_sensitivity(params, CANDIDATES, sensitivity=mz.sensitivity.output_error(model, [x]))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(programs), len(traced)


def test_layers_of_one_shape_are_compiled_once():
    few, many = compiled(2), compiled(6)
    assert few == many
    assert many[1] == 2  # the outputs before, and those with any one leaf changed
    assert many[0] > 2


def test_the_most_sensitive_layer_comes_first():
    params, _apply, _x = network(3)
    params["layer_1"]["kernel"] *= 8
    found = layer_sensitivity(params, CANDIDATES, sensitivity=mz.sensitivity.squared_error(), unit="squared")
    lines = found.table().splitlines()
    assert lines[0] == "| layer | values | bytes | 2 bits: bytes | squared | 6 bits: bytes | squared |"
    assert lines[2].startswith("| layer_1/kernel | 256 | 1,024 |")
    assert len(lines) == 5
    assert "layer_1/kernel" in repr(found)
    assert str(found) == found.table()


def test_layers_that_a_candidate_leaves_out_and_leaves_that_are_chosen():
    params, _, _ = network(3)
    candidates = {"4 bits": mz.quantize(4), "some": mz.quantize(4, layers={"layer_2/**": 0})}
    found = layer_sensitivity(
        params, candidates, sensitivity=mz.sensitivity.squared_error(), only="layer_0/**"
    )
    assert {row.candidate for row in found.rows} == {"4 bits"}
    assert found.table().splitlines()[2].endswith("| – | – |")
    every = layer_sensitivity(
        params, [mz.quantize(4)], sensitivity=mz.sensitivity.squared_error(), min_ndim=1
    )
    assert len(every.rows) == 6


def test_a_task_says_what_a_layer_costs():
    params, apply, x = network(2)
    target = np.asarray(apply(params, x))
    run = jax.jit(apply)

    def task(tree):
        error = np.square(np.asarray(run(tree["params"], x)) - target).sum(axis=1)
        return {"near": error < 0.05, "error": error, "offset": float(tree["more"][0])}

    variables = {"more": np.float32([3.0])}
    drop = task_drop(task, variables=variables)
    loss = task_drop(task, "error", lower=True, variables=variables)
    found = layer_sensitivity(params, CANDIDATES, sensitivity=drop)
    by_loss = layer_sensitivity(params, CANDIDATES, sensitivity=loss)
    own = layer_sensitivity(params, CANDIDATES, sensitivity=mz.sensitivity.output_error(apply, [x]))
    for a, b, c in zip(found.rows, by_loss.rows, own.rows, strict=True):
        assert 0 <= a.error <= 1
        assert b.error == pytest.approx(c.error, rel=1e-3)
    assert max(row.error for row in found.rows) > 0.5
    with pytest.raises(EvaluationError, match="no 'accuracy'; it gives near, error, offset"):
        layer_sensitivity(params, CANDIDATES, sensitivity=task_drop(task, "accuracy", variables=variables))


def test_a_budget_may_go_by_a_task():
    params, apply, x = network(2)
    target = np.asarray(apply(params, x))
    task = lambda p: {"error": float(np.square(np.asarray(apply(p, x)) - target).sum())}  # noqa: E731
    found = mz.mixed_precision(
        params, CANDIDATES, sensitivity=task_drop(task, lower=True), budget_bytes=1000, only="**/kernel"
    )
    assert found.bytes <= 1000


def test_figures():
    pytest.importorskip("matplotlib")
    from modelzip_jax.evaluation.pages.layer_sensitivity_page import sensitivity_page

    params, _, _ = network(3)
    found = layer_sensitivity(params, CANDIDATES, sensitivity=mz.sensitivity.squared_error())
    left, right = found.figure().axes
    assert next(text.get_text() for text in left.get_yticklabels()) == found.measured.leaves[found.order[0]]
    widths = [bar.get_width() for bar in left.patches]
    assert sorted(widths) == pytest.approx(sorted(row.error for row in found.rows))
    assert all(bar.get_width() > 0 for bar in right.patches)
    page = sensitivity_page(found, "layers <of> m")
    assert "layers &lt;of&gt; m" in page
    assert page.count("<tr") == 7
    assert "<svg" in page
    assert "math" not in page  # of tick labels that are formulas


def test_wrong_calls_name_the_function():
    params, _, _ = network(1)
    for candidates in ([], mz.quantize(4)):
        with pytest.raises(TransformError, match=r"layer_sensitivity\(\) takes candidates"):
            layer_sensitivity(params, candidates, sensitivity=mz.sensitivity.squared_error())
    with pytest.raises(TransformError, match=r"sensitivity= takes one of mz.sensitivity"):
        layer_sensitivity(params, [mz.quantize(4)], sensitivity=task_drop)
    with pytest.raises(TransformError, match=r"layer_sensitivity\(\) measures each leaf by itself"):
        layer_sensitivity(params, [mz.quantize(4)], sensitivity=mz.sensitivity.squared_error(), calibrate=())
