"""The cost of a call: what is counted and where it is from; no times are compared. And the table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation import latency
from modelzip_jax.evaluation.estimate import Estimate
from modelzip_jax.evaluation.table import markdown

X = jnp.ones((32, 32))


def test_compiles_once_and_calls_as_often_as_asked():
    traces = []

    def function(x, y):
        traces.append(1)
        return {"z": x @ y["w"]}

    cost = latency.measure_latency(function, X, {"w": X}, repeats=5, warmup=2)
    assert len(traces) == 1
    assert cost.repeats == 5
    assert 0 < cost.lower_seconds <= cost.seconds <= cost.upper_seconds
    assert cost.interquartile_seconds == cost.upper_seconds - cost.lower_seconds
    assert cost.compile_seconds > 0
    assert cost.flops == 2 * 32**3
    assert cost.device == X.devices().pop().device_kind


def test_quartiles_are_those_of_the_timed_calls(monkeypatch):
    seconds = iter([100.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(latency, "_call", lambda *args: next(seconds))
    cost = latency.measure_latency(jnp.sin, X, repeats=5, warmup=1)
    assert (cost.lower_seconds, cost.seconds, cost.upper_seconds) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.jit(f, donate_argnums=0)])
def test_donated_arguments_survive_and_are_not_counted_twice(wrap):
    x = jnp.ones((1000,))
    cost = latency.measure_latency(wrap(lambda x, y: x + y), x, x, repeats=2, donate=(0,))
    assert not x.is_deleted()
    assert cost.peak_bytes == 8000
    assert latency.measure_latency(lambda x, y: x + y, x, x, repeats=1).peak_bytes == 12000


def test_xla_counts_the_body_of_a_loop_once():
    """What the docstring warns of; if this changes, so must the docstring."""

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ X, None), x, None, length=10)[0]

    assert latency.measure_latency(scanned, X, repeats=1).flops < 2 * 2 * 32**3


class Device:
    device_kind = "fake"

    def __init__(self, *marks):
        self.marks = list(marks)

    def memory_stats(self):
        return {"peak_bytes_in_use": self.marks.pop(0)}


@pytest.mark.parametrize(
    ("marks", "peak", "source"),
    [((10, 99), 99, "memory_stats"), ((99, 99), 2 * X.nbytes, "memory_analysis")],
)
def test_peak_memory_is_the_devices_only_where_this_function_set_it(monkeypatch, marks, peak, source):
    monkeypatch.setattr(latency, "_device", lambda args: Device(*marks))
    cost = latency.measure_latency(jnp.sin, X, repeats=1)
    assert (cost.peak_bytes, cost.peak_source, cost.device) == (peak, source, "fake")


def test_numbers_leave_out_what_is_not_known():
    cost = latency.Latency("cpu", 1.0, 0.5, 0.4, 0.6, 3, None, None, "none")
    assert cost.numbers() == {
        "compile_seconds": 1.0, "seconds": 0.5, "lower_seconds": 0.4, "upper_seconds": 0.6, "repeats": 3,
    }  # fmt: skip


def test_numpy_arguments_and_bad_counts():
    assert latency.measure_latency(jnp.sin, np.ones(3, np.float32), repeats=1, warmup=0).device
    with pytest.raises(EvaluationError, match="repeats ≥ 1"):
        latency.measure_latency(jnp.sin, X, repeats=0)


def test_table_leaves_missing_numbers_empty():
    table = markdown({"a": {"x": 0.25}, "b": {"y": Estimate(1, 0.5, 3)}})
    assert table.splitlines()[2:] == ["| a | 0.25 |  |", "| b |  | 1.0000 ± 0.5000 |"]
    with pytest.raises(EvaluationError, match="no results"):
        markdown({})
