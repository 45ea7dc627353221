import builtins
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax import errors, trace
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.quantization.knapsack import Steps, best_choices, frontier
from modelzip_jax.recipe import from_plain, to_plain

RNG = np.random.default_rng(0)
WIDTHS = {f"{b} bits": mz.quantize(b, axis=-1) for b in (2, 3, 4, 8)}
ERROR = mz.sensitivity.squared_error()


def tree():
    sizes = {"a": (16, 8), "b": (32, 8), "c": (8, 8), "d": (64, 4), "bias": (8,)}
    return {
        name: (RNG.normal(size=s) * 4.0**i).astype("f4")
        for i, (name, s) in enumerate(sorted(sizes.items(), key=lambda pair: RNG.random()))
    }


def mixed(params, budget, candidates=WIDTHS, **more):
    more = {"sensitivity": ERROR, "only": "?", **more}
    return mz.mixed_precision(params, candidates, budget_bytes=budget, **more)


def test_the_solver_finds_the_optimum_and_the_relaxation_bounds_it():
    for _ in range(150):
        counts = RNG.integers(1, 5, size=RNG.integers(1, 6))
        costs = [RNG.integers(0, 20, size=n).astype(np.int64) for n in counts]
        errs = [RNG.random(n) * 10.0 ** RNG.integers(-6, 3) for n in counts]
        limit = int(sum(c.min() for c in costs) + RNG.integers(0, 40))
        total = lambda x, places: sum(v[p] for v, p in zip(x, places, strict=True))  # noqa: E731
        every = itertools.product(*map(range, counts))
        best = min(total(errs, p) for p in every if total(costs, p) <= limit)
        found = best_choices(costs, errs, limit)
        assert total(costs, found) <= limit
        np.testing.assert_allclose(total(errs, found), best, rtol=1e-9)
        bound = Steps.of([frontier(c, e) for c, e in zip(costs, errs, strict=True)]).relaxed(limit)
        assert bound <= best * (1 + 1e-9)


def test_budgets_are_kept_and_better_than_uniform_widths():
    params = tree()
    found = mixed(params, 10_000)
    assert set(found.choices) == set("abcd")
    assert set(found.choices.values()) == {"8 bits"}
    least, most = found.uniform["2 bits"].bytes, found.bytes
    last = np.inf
    for budget in sorted([least, most, *RNG.integers(least, most, size=12).tolist()]):
        at = found.at(budget)
        packed = mz.compress(params, at.transform)
        assert packed.nbytes == at.bytes == at.cost <= budget
        assert at.bound * (1 - 1e-9) <= at.error <= last
        last = at.error
        got = mz.unpack(packed)
        np.testing.assert_allclose(
            at.error, sum(np.sum((got[k] - params[k]) ** 2.0) for k in "abcd"), rtol=1e-5
        )
        np.testing.assert_array_equal(got["bias"], params["bias"])
    for name, totals in found.uniform.items():
        assert totals.bytes == mz.compress(params, mz.only("?", WIDTHS[name])).nbytes
        assert found.at(totals.bytes).error <= totals.error
    assert found.at(found.uniform["3 bits"].bytes).error < 0.7 * found.uniform["3 bits"].error


def test_any_transform_is_a_candidate_and_granularity_is_chosen():
    outliers = np.where(RNG.random((64, 16)) < 0.01, 50.0, 1.0)
    params = {
        "plain": RNG.normal(size=(64, 16)).astype("f4"),
        "outliers": (RNG.normal(size=(64, 16)) * outliers).astype("f4"),
        "step": np.float32([3.0]),
    }
    candidates = [
        mz.quantize(4, axis=-1),
        mz.quantize(4, granularity="group", group_size=16, axis=-1),
        mz.chain(mz.prune(sparsity=0.5), mz.quantize(2, axis=-1)),
        mz.identity(),
    ]
    found = mixed(params, 1_400, candidates, only="**")
    assert "granularity='group'" in found.choices["outliers"]
    assert "granularity='channel'" in found.choices["plain"]
    assert found.choices["step"] == "Identity()"
    assert mz.compress(params, found.transform).nbytes == found.bytes <= 1_400


def test_candidates_of_stacked_layers_are_none_for_other_leaves():
    params = {
        "blocks": RNG.normal(size=(3, 8, 8)).astype("f4"),
        "head": RNG.normal(size=(8, 8)).astype("f4"),
    }
    candidates = {
        "layers": mz.quantize(4, granularity="tensor", layers={"blocks": 0}),
        "plain": mz.quantize(2),
    }
    found = mixed(params, 10_000, candidates, only="**")
    assert found.choices == {"blocks": "layers", "head": "plain"}
    assert mz.compress(params, found.transform).nbytes == found.bytes
    assert list(found.uniform) == ["plain"]
    with pytest.raises(errors.PatternError, match=r"no candidate.*'head'"):
        mixed(params, 10_000, {"layers": candidates["layers"]}, only="**")


class Shifted(mz.Transform):
    def init(self, weights, context):
        return mz.Encoded(jax.tree.map(np.add, weights, context.importance), (), ())

    def pack(self, encoded, inner):
        return inner


def test_candidates_are_told_what_they_read():
    params = {name: np.zeros((2, 2), "f4") for name in "ab"}
    found = mixed(
        params, 100, [Shifted()], importance={"a": np.ones((2, 2), "f4"), "b": 3 * np.ones((2, 2), "f4")}
    )
    assert [row.error for row in found.rows] == [4.0, 36.0]
    with pytest.raises(errors.TreeError):
        mixed(params, 100, [Shifted()], importance={"a": np.ones((2, 2), "f4")})


def test_files_are_within_their_budget():
    params = {name: RNG.normal(size=(64, 64), scale=s).astype("f4") for name, s in [("a", 1), ("b", 9)]}
    found = mixed(params, 3_500, [WIDTHS["2 bits"], WIDTHS["4 bits"]], counted="file")
    size = file_sizes(mz.compress(params, found.transform)).total
    assert found.choices == {"a": "Quantize(bits=2)", "b": "Quantize(bits=4)"}
    assert found.cost * 0.98 < size <= 3_500
    with pytest.raises(errors.TransformError, match="least possible"):
        found.at(1_000)


def test_files_are_no_worse_than_with_one_candidate_that_fits():
    """Estimates of a file's bytes that are too large made it give up a choice that would have fitted."""
    params = {name: RNG.normal(size=(64, 64), scale=1 + i).astype("f4") for i, name in enumerate("abcde")}
    widths = [mz.quantize(bits) for bits in (2, 3, 4, 5, 6, 8)]
    one = mixed(params, 10**7, [mz.quantize(6)], counted="file")
    size = file_sizes(mz.compress(params, one.transform)).total + 10  # a recipe of several names
    many = mixed(params, size, widths, counted="file")
    assert many.error <= one.error
    assert file_sizes(mz.compress(params, many.transform)).total <= size


def test_factors_of_grouped_convolutions_give_way_to_the_diagonal():
    w, x = jnp.asarray(RNG.normal(size=(3, 3, 1, 4)), jnp.float32), jnp.asarray(RNG.normal(size=(2, 5, 5, 4)))

    def model(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", dimension_numbers=dims, feature_group_count=4
        )
        return jnp.sum(y, (1, 2))

    costs = []
    for kinds in (("diagonal",), ("diagonal", "kronecker")):
        information = trace.fisher_information(model, {"w": w}, [x.astype(jnp.float32)], kinds=kinds)
        measure = mz.sensitivity.loss_increase(information).prepare({"w": w})
        costs.append(measure("w", np.asarray(w), np.zeros_like(w)))
    assert costs[0] == costs[1] > 0


def test_bit_operations():
    shapes = {"up": (8, 4), "down": (4, 2), "rows": (5, 8)}
    params = {name: RNG.normal(size=shape).astype("f4") for name, shape in shapes.items()}

    def model(p, ids):
        x = p["rows"][ids] @ p["up"]
        return (x @ x.T) @ (x @ p["down"])

    costs = trace.cost(model, params, jnp.zeros(3, jnp.int32))
    attention = (3 * 3 * 4 + 3 * 3 * 2) * 8 * 8
    both = lambda up, down: 3 * 8 * 4 * up * 8 + 3 * 4 * 2 * down * 4 + attention  # noqa: E731
    told = {"sensitivity": ERROR, "costs": costs, "activation_bits": {"down": 4, "**": 8}}
    found = mz.mixed_precision(params, WIDTHS, budget_bit_operations=10**6, **told)
    assert found.cost == both(8, 8)
    assert found.choices["rows"] == "8 bits"  # No product, so nothing to save.
    pruned = {"pruned": mz.chain(mz.prune(sparsity=0.5), mz.quantize(3)), "floats": mz.identity()}
    found = mz.mixed_precision(
        params, pruned, budget_bit_operations=both(3, 32) + 10, only=("up", "down"), **told
    )
    assert found.choices == {"up": "pruned", "down": "floats"}
    assert found.cost == both(3, 32)
    with pytest.raises(errors.TransformError, match=f"least possible, {both(3, 3):,}"):
        found.at(10)


def test_the_recipe_is_recorded_trained_and_resumed(tmp_path):
    params = {
        name: jnp.asarray(RNG.normal(size=(8, 4), scale=s), "f4")
        for name, s in [("a", 1), ("b", 9), ("bias", 1)]
    }
    found = mixed(params, 200, [mz.quantize(2, axis=-1), mz.quantize(8, axis=-1)])
    assert len(set(found.choices.values())) == 2
    assert from_plain(to_plain(found.transform)) == found.transform
    tx = mz.wrap(optax.sgd(1e-2), found.transform)
    now, state = mz.start(tx, params)
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, now), state, now)
    packed = mz.pack(state, optax.apply_updates(now, updates))
    mz.save(tmp_path / "model.mz", packed)
    loaded = mz.load(tmp_path / "model.mz")
    assert loaded.transform == found.transform
    transform, encoded = mz.resume(loaded)
    for name, w in transform.decode(encoded).items():
        if name != "bias":
            np.testing.assert_array_equal(w, mz.unpack(packed)[name])


def test_the_increase_of_the_loss_is_exact_for_a_linear_model():
    x, w = RNG.normal(size=(64, 6)).astype("f4"), RNG.normal(size=(6, 3)).astype("f4")
    apply = lambda p, x: x @ p["w"]  # noqa: E731
    changed = mz.decoded({"w": w}, mz.quantize(2))["w"]
    loss = 0.5 * np.mean(np.sum((x.astype("f8") @ (w - np.asarray(changed, "f8"))) ** 2, axis=1))

    def measured(kind, **more):
        found = trace.fisher_information(apply, {"w": w}, [x], (kind,), "gaussian", **more)
        return found["w"], mz.sensitivity.loss_increase(found).prepare({"w": w})("w", w, np.asarray(changed))

    information, diagonal = measured("diagonal")
    want = 0.5 * np.sum(np.asarray(information.diagonal, "f8") * (w - np.asarray(changed, "f8")) ** 2)
    np.testing.assert_allclose(diagonal, want, rtol=1e-6)
    factors = measured("kronecker")[0].factors[0]
    # The factor of the outputs is sampled; what it stands for is the identity.
    exact = trace.FisherInformation(
        None, (trace.Factors(factors.use, factors.inputs, np.eye(3, dtype="f4")),)
    )
    measure = mz.sensitivity.loss_increase({"w": exact}).prepare({"w": w})
    np.testing.assert_allclose(measure("w", w, np.asarray(changed)), loss, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_error_of_a_layer_is_that_of_its_outputs(groups):
    x = RNG.normal(size=(2, 6, 6, 4)).astype("f4")
    w = RNG.normal(size=(3, 3, 4 // groups, 8)).astype("f4")

    def apply(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    stats = trace.statistics(apply, {"w": w}, [x], kinds=("gram",))
    changed = np.asarray(mz.decoded({"w": w}, mz.quantize(2))["w"])
    rows = x.shape[0] * x.shape[1] * x.shape[2]
    power = lambda w: float(np.sum(np.square(apply({"w": w}, x), dtype="f8"))) / rows  # noqa: E731
    measure = mz.sensitivity.layer_error(stats, relative=False).prepare({"w": w})
    np.testing.assert_allclose(measure("w", w, changed), power(w - changed), rtol=1e-3)
    measure = mz.sensitivity.layer_error(stats).prepare({"w": w})
    np.testing.assert_allclose(measure("w", w, changed), power(w - changed) / power(w), rtol=1e-3)


def test_output_divergence_and_that_it_is_traced_once():
    traces = []

    def apply(p, x):
        traces.append(1)
        return jnp.tanh(x @ p["a"]) @ p["b"]

    params = {"a": RNG.normal(size=(5, 8)).astype("f4"), "b": RNG.normal(size=(8, 3)).astype("f4")}
    batches = [RNG.normal(size=(n, 5)).astype("f4") for n in (4, 4, 2)]
    sensitivity = mz.sensitivity.output_kl(apply, batches)
    found = mixed(params, 200, sensitivity=sensitivity)
    assert len(traces) <= 4  # Before and after, for each of two shapes.
    x = np.concatenate(batches)
    logs = [
        jax.nn.log_softmax(apply(p, x))
        for p in (params, params | {"a": mz.decoded(params, WIDTHS["2 bits"])["a"]})
    ]
    want = np.mean(np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=1))
    row = list(WIDTHS).index("2 bits")
    np.testing.assert_allclose(found.problem.measured.errors[0, row], want, rtol=1e-4)


def test_nnx_states_and_half_precision():
    model = nnx.Linear(4, 8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    apply = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    x = RNG.normal(size=(3, 4)).astype("f4")
    changed = mz.decoded(state, mz.only("kernel", WIDTHS["2 bits"]))
    want = np.mean(np.sum((apply(changed, x) - apply(state, x)) ** 2.0, axis=1, dtype="f4"))
    found = mixed(
        state, 100, [WIDTHS["2 bits"]], sensitivity=mz.sensitivity.output_error(apply, [x]), only="kernel"
    )
    np.testing.assert_allclose(found.error, want, rtol=1e-2)
    information = trace.fisher_information(apply, state, [x], likelihood="gaussian")
    assert found.bytes == mz.compress(state, found.transform).nbytes
    loss = mixed(
        state, 100, [WIDTHS["2 bits"]], sensitivity=mz.sensitivity.loss_increase(information), only="kernel"
    )
    assert 0 < loss.error < np.inf


FED = mz.quantize(4, rounding=mz.rounding.error_feedback())


class Broken(mz.sensitivity.Sensitivity):
    def prepare(self, params):
        return lambda name, w, changed: float("nan")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"candidates": []}, errors.TransformError, "takes candidates"),
        ({"candidates": mz.quantize(4)}, errors.TransformError, "takes candidates"),
        ({"candidates": [4]}, errors.TransformError, "takes a transform"),
        ({"candidates": [mz.quantize(4), mz.quantize(4)]}, errors.TransformError, "equal"),
        ({"candidates": [mz.prune(sparsity=0.5, allocation="global")]}, errors.TransformError, "all leaves"),
        ({"only": "nothing"}, errors.PatternError, "matches no leaf"),
        ({"min_ndim": 3}, errors.PatternError, "axes"),
        ({"budget_bytes": 300}, errors.TransformError, r"least possible, 3\d\d, of which 32"),
        ({"budget_bytes": -1}, errors.TransformError, "integer of at least 1"),
        ({"budget_bytes": 1e4}, errors.TransformError, "integer of at least 1"),
        ({"budget_bytes": None}, errors.TransformError, "and not both"),
        ({"budget_bit_operations": 5}, errors.TransformError, "and not both"),
        ({"budget_bytes": None, "budget_bit_operations": 5}, errors.TransformError, "costs="),
        ({"counted": "disk"}, errors.TransformError, "packed"),
        (
            {"budget_bytes": None, "budget_bit_operations": 5, "costs": {"a": 1}},
            errors.TransformError,
            "a dict",
        ),
        ({"calibrate": (abs, [])}, errors.TransformError, r"stats=trace.statistics\(.*not calibrate="),
        ({"candidates": {"fed": FED}}, errors.TransformError, r"'fed' needs stats: .* mixed_precision\(\)"),
        ({"sensitivity": Broken()}, errors.NonFiniteError, "'a'.*'2 bits'.*nan"),
        ({"sensitivity": "fisher"}, errors.TransformError, "mz.sensitivity"),
        ({"sensitivity": mz.sensitivity.loss_increase({"a": 1})}, errors.TreeError, "loss_increase"),
        ({"params": {"a": np.float32([np.nan])}}, errors.NonFiniteError, "'a'"),
        ({"params": {"a": np.arange(3)}}, errors.LeafError, "int"),
        ({"params": {"*": np.ones(3, "f4")}}, errors.PatternError, "'\\*'"),
    ],
)
def test_wrong_inputs(change, error, message):
    call = {"params": tree(), "candidates": WIDTHS, "budget_bytes": 2_000, "sensitivity": ERROR, "only": "?"}
    call |= change
    with pytest.raises(error, match=message):
        mz.mixed_precision(call.pop("params"), call.pop("candidates"), **call)


def test_packed_params_are_refused_as_such():
    packed = mz.compress(tree(), mz.quantize(4))
    for held in (packed, packed.params):
        for call in (
            lambda p: mz.mixed_precision(p, WIDTHS, sensitivity=ERROR, budget_bytes=2_000),
            lambda p: trace.fisher_information(lambda p, x: x @ p["a"], p, [np.ones((1, 2), "f4")]),
            lambda p: mz.testing.check_laws(mz.quantize(4), p),
        ):
            with pytest.raises(
                errors.LeafError, match=r"takes params of floats, and 'a' is packed; pass mz.unpack"
            ):
                call(held)
        with pytest.raises(errors.TransformError, match=r"decoded\(\) takes weights.*mz.unpack"):
            mz.decoded(held, mz.quantize(4))


def test_leaves_without_what_a_sensitivity_reads():
    params = {"w": np.ones((2, 2), "f4"), "bias": np.ones(2, "f4")}
    stats = trace.statistics(lambda p, x: x @ p["w"] + p["bias"], params, [np.ones((1, 2), "f4")])
    for sensitivity in (mz.sensitivity.layer_error(stats), mz.sensitivity.loss_increase(stats)):
        with pytest.raises(errors.LeafError, match=r"'w'|'bias'"):
            mz.mixed_precision(params, WIDTHS, sensitivity=sensitivity, budget_bytes=100)
    with pytest.raises(errors.TransformError, match="at least one batch"):
        mz.sensitivity.output_kl(lambda p, x: x, [])


def test_outputs_that_cannot_be_measured():
    x, model = np.ones((2, 3), "f4"), lambda p, x: x @ p["w"]
    with pytest.raises(errors.TransformError, match="the other way round"):
        mz.sensitivity.output_kl([x], model)
    with pytest.raises(errors.TraceError, match="batch 1 holds no example"):
        mz.sensitivity.output_error(model, [x, x[:0]])
    with pytest.raises(errors.TraceError, match=r"batch 0, of shapes \(\(2, 3\),\)"):
        mz.sensitivity.output_error(model, [x]).prepare({"w": np.ones((2, 2), "f4")})


def test_the_table_has_a_row_for_each_leaf():
    found = mixed(tree(), 2_000)
    lines = found.table().splitlines()
    assert len(lines) == 2 + 4 + 2
    assert f"{found.bytes - 32:,}" in lines[-2]
    assert str(found).startswith(found.table())


def test_figures(monkeypatch):
    found = mixed(tree(), 2_000)
    plain = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(errors.MissingExtraError, match="notebooks"):
            found.figure()
    pytest.importorskip("matplotlib")
    left, right = found.figure().axes
    assert len(left.patches) == 4
    assert right.get_xlabel() == "bytes"
