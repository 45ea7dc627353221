"""What curves of bytes against quality come to at a drop, and which of their points are made."""

from __future__ import annotations

import importlib
import itertools
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def rates():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield


def module(name):
    return importlib.import_module(f"benchmarks.rates.{name}")


POINTS = st.lists(st.tuples(st.integers(1, 1000), st.floats(-0.5, 2.0)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_no_point_beats(points):
    points = [module("curves").Point(*p) for p in points]
    places = module("curves").front(points)
    kept = [points[i] for i in places]
    assert all(a.bytes < b.bytes and a.drop > b.drop for a, b in itertools.pairwise(kept))
    for point in points:
        assert any(k.bytes <= point.bytes and k.drop <= point.drop for k in kept)


@given(POINTS, st.floats(0.001, 1.0), st.booleans())
def test_bytes_at_a_drop_lie_between_two_files(points, drop, logarithmic):
    points = [module("curves").Point(*p) for p in points]
    at = module("curves").met(points, drop, logarithmic)
    reached = [p.bytes for p in points if p.drop <= drop]
    if at is None:
        least = points[module("curves").front(points)[0]]
        assert not reached or least.drop <= drop
        return
    finer, coarser = points[at.finer], points[at.coarser]
    assert finer.drop <= drop < coarser.drop
    assert coarser.bytes * (1 - 1e-9) <= at.bytes <= finer.bytes * (1 + 1e-9)
    assert finer.bytes == min(reached)


def test_interpolation_is_exact_on_straight_lines():
    curves = module("curves")
    # A bit a weight more divides 1 - cosine by four: straight where bytes, too, are logarithmic.
    power = [curves.Point(round(1e6 * 2.0**-i), 1e-4 * 4.0**i) for i in range(6)]
    at = curves.met(power, 1e-4 * 4**2.5, logarithmic=True)
    assert at.bytes == pytest.approx(1e6 * 2**-2.5, rel=1e-5)
    assert (power[at.finer], power[at.coarser]) == (power[2], power[3])
    linear = [curves.Point(round(1000 * math.exp(-3 * d)), d) for d in (-0.1, 0.4)]
    assert curves.met(linear, 0.2, logarithmic=True).bytes == pytest.approx(1000 * math.exp(-0.6), rel=1e-2)


def test_a_file_of_no_numbers_is_on_no_front():
    curves = module("curves")
    points = [curves.Point(5, math.inf), curves.Point(7, math.nan), curves.Point(10, 0.5)]
    assert curves.front(points) == [2]


def swept(curve, goals, **options):
    """The points that a line of this curve was asked for."""
    sweep, curves = module("sweep"), module("curves")
    asked = []

    def measured(ks):
        asked.extend(ks)
        return [None if curve(k) is None else curves.Point(*curve(k)) for k in ks]

    line = sweep.Line("", lambda ks: [], **options)
    sweep.sweep(line, measured, goals, weights=1000, near=1.1)
    assert len(set(asked)) == len(asked), "each point once"
    return sorted(asked), {k: curves.Point(*curve(k)) for k in asked if curve(k) is not None}


@pytest.mark.parametrize("first", [(-40,), (0,), (20,), (-8, 0, 8)])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_sweep_goes_from_eight_bits_to_where_quality_breaks(first, chunk):
    goals = module("goals").Goals("quality", (0.001, 0.005, 0.01))
    # Four bits a weight at k = 0, a bit less for every four of k; drops as squares of steps.
    curve = lambda k: (round(125 * max(4 - k / 4, 0.1)), 1e-3 * 2 ** (k / 2))  # noqa: E731
    ks, points = swept(curve, goals, first=first, chunk=chunk)
    assert max(p.bytes for p in points.values()) * 8 >= 7.5 * 1000
    assert max(p.drop for p in points.values()) > goals.broken
    for drop in goals.drops:
        at = module("curves").met([points[k] for k in ks], drop, False)
        assert (
            points[ks[at.finer]].bytes <= 1.1 * points[ks[at.coarser]].bytes
            or ks[at.coarser] - ks[at.finer] < 2
        )


def test_a_sweep_ends_where_a_line_ends():
    goals = module("goals").Goals("quality", (0.01,))
    nothing = lambda k: None if k > 4 else (max(1000 - 30 * k, 1), 0.002)  # noqa: E731
    ks, _ = swept(nothing, goals)
    assert max(ks) <= 8
    clipped = lambda k: (200 - min(max(k, -8), 8), 0.5 if k > 8 else 0.0)  # noqa: E731
    ks, _ = swept(clipped, goals)
    assert min(ks) > -30, "a largest code ends the finer side"
    ks, _ = swept(clipped, goals, only=True)
    assert ks == [0]


def test_choices_are_made_on_the_validation_part():
    tables, goals = module("tables"), module("goals").Goals("accuracy", (0.01,))
    entry = lambda size, validation, test: {  # noqa: E731
        "line": "", "k": size, "bytes": size,
        "drops": {"validation": {"accuracy": [validation, 0.0]}, "test": {"accuracy": [test, 0.0]}},
    }  # fmt: skip
    methods = {
        "calibrated": {"points": [entry(100, 0.0, 0.5), entry(50, 0.02, 0.0)]},
        "nncodec": {"points": [entry(400, 0.0, 0.0), entry(200, 0.02, 0.0)]},
        "nncodec_best": {"points": [entry(300, 0.0, 0.0)]},
        "q4_k": {"points": [entry(200, 0.01, 0.0)]},
    }
    data = {"methods": methods}
    assert tables.bytes_at(data, "calibrated", goals, 0.01).bytes == pytest.approx(math.sqrt(5000))
    assert tables.ratio(data, "calibrated", "nncodec", goals, 0.01) == pytest.approx(0.25)
    # Files of one qp are settings of the best options, too.
    assert tables.ratio(data, "calibrated", "nncodec_best", goals, 0.01) == pytest.approx(
        math.sqrt(5000) / math.sqrt(60000)
    )
    assert tables.ratio(data, "calibrated", "q4_k", goals, 0.001) == pytest.approx(math.sqrt(5000) / 200)
    assert tables.ratio(data, "calibrated", "nncodec", goals, 0.5) is None


def test_seeds_are_averaged_as_ratios():
    summary = module("summary")

    def task(name, size):
        entry = lambda b, drop: {"line": "", "k": b, "bytes": b, "drops": {"validation": {"a": [drop, 0.0]}}}  # noqa: E731
        points = lambda b: {"points": [entry(b, 0.0), entry(b // 2, 1.0)]}  # noqa: E731
        goals = [{"measure": "a", "drops": [0.5], "logarithmic": False}]
        return {"task": name, "goals": goals, "methods": {"calibrated": points(size), "cerwu": points(1000)}}

    (_, columns, rows), _ = summary.tables([task("x-0", 1000), task("x-1", 250), task("y", 2000)])
    found = {row[0]: row[columns.index("CERWU")] for row in rows}
    assert found == {"x": 0.5, "y": 2.0}
    assert rows[0][columns.index("EntQuant")] is None


def test_every_task_has_a_plan():
    plans, names = module("goals"), importlib.import_module("benchmarks.tasks").NAMES
    assert all(any(name.startswith(start) for start in plans._PLANS) for name in names)


def test_layouts_go_back_and_forth():
    import jax
    import jax.numpy as jnp
    from jax import lax

    case, task = module("case"), importlib.import_module("benchmarks.tasks.task")
    rng = np.random.default_rng(0)
    params = {
        "conv": rng.normal(size=(3, 3, 2, 4)), "depthwise": rng.normal(size=(3, 3, 1, 4)),
        "dense": rng.normal(size=(4, 5)), "bias": rng.normal(size=5), "torch": rng.normal(size=(6, 5)),
        "tied": rng.normal(size=(7, 6)),
    }  # fmt: skip
    params = {name: x.astype(np.float32) for name, x in params.items()}

    def apply(p, x):
        convolve = lambda x, w, groups=1: lax.conv_general_dilated(  # noqa: E731
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        x = jax.nn.relu(convolve(convolve(x, p["conv"]), p["depthwise"], 4)).mean((1, 2))
        x = (x @ p["dense"] + p["bias"]) @ p["torch"].T
        return (x + p["tied"][jnp.argmax(x, 1)]) @ p["tied"].T

    inputs = rng.normal(size=(8, 6, 6, 2)).astype(np.float32)
    a = case.Case(
        task.Task(
            name="a", params=params, apply=apply, likelihood="gaussian",
            calibration=lambda count, seed=0: [(inputs,)],
            scores=lambda p, part: {"quality": np.zeros(3)}, measures=(task.Measure("quality"),),
        ),
        module("goals").Plan((module("goals").Goals("quality", (0.1,)),), 8),
    )  # fmt: skip
    turned = a.outputs_first
    assert {n: x.shape for n, x in turned.items()} == {
        "conv": (4, 2, 3, 3), "depthwise": (4, 1, 3, 3), "dense": (5, 4), "bias": (5,), "torch": (6, 5), "tied": (7, 6),
    }  # fmt: skip
    np.testing.assert_array_equal(turned["conv"], params["conv"].transpose(3, 2, 0, 1))
    back = a.from_outputs_first(turned)
    assert set(a.matrices) == {"conv", "dense", "torch"}, "neither depthwise nor embeddings"
    assert a.matrices["conv"].shape == (4, 18)
    assert a.grams["conv"].shape == (18, 18)
    assert a.matrices["torch"].shape == (6, 5)
    for name, leaf in {**back, **a.from_matrices(a.matrices)}.items():
        np.testing.assert_array_equal(leaf, params[name], err_msg=name)
