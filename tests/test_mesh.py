"""Eight devices decode what one does. One process of its own, as the number of devices is fixed at start."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = ("global Auto", "mixed Explicit", "wavelet Explicit")
SLOW = (
    "uniform Auto", "mixed Auto", "group Auto", "global Explicit", "rigl Auto", "rigl Explicit", "grown Auto",
    "watched Explicit", "budget Auto", "budget Explicit", "wavelet Auto",
    "corner Auto", "corner Explicit", "clustered Auto", "clustered Explicit",
    "blocks Explicit", "farthest Explicit", "filters Explicit",
    "levels Auto", "levels Explicit", "fitted Explicit", "blocked Explicit", "odd-levels Explicit",
    "group Explicit", "percentile Explicit", "searched Explicit", "divergence Explicit", "drawn Explicit",
    "half-quadratic Explicit",
    "entropy Explicit", "averaged Explicit", "sum Explicit", "dorefa Explicit",
    "stepped Auto", "stepped Explicit", "odd-stepped Explicit",
    "odd-clusters Explicit", "soft Auto", "soft Explicit", "odd-wavelets Explicit",
)  # fmt: skip
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]


@functools.cache
def results(cases):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("mesh_script.py")
    done = subprocess.run(
        [sys.executable, str(script), *cases], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_sharded_weights_decode_as_on_one_device(case):
    found = results(QUICK if case in QUICK else SLOW)[case]
    assert "error" not in found, found["error"]
    # Gradients of steps and entries are sums, whose order depends on the shards; so does what XLA fuses into filters.
    rounding = {"mixed": 1e-6, "wavelet": 1e-6, "corner": 1e-6, "soft": 5e-5}
    rounding |= {
        "clustered": 5e-5,
        "odd-clusters": 5e-5,
        "odd-wavelets": 1e-6,
        "half-quadratic": 1e-6,
        "entropy": 5e-6,
    }
    allowed = rounding.get(case.split()[0], 0.0)
    assert found["largest"] <= allowed
    assert found["shipped"] <= min(allowed, 1e-6)
    # Sums in another order may round a half-precision weight to its neighbour.
    assert found["half"] <= ("wavelets" in case)
    assert found["zeros"][0] == found["zeros"][1]
    # A corner has another shape than its weights, so that it is on every device.
    assert "corner" in case or all("model" in spec for spec in found["sharded"])


def test_counting_gathers_no_weights():
    assert results(QUICK)["global Auto"]["gathers"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["uniform", "rigl", "budget"])
def test_counting_for_each_leaf_gathers_none_either(case):
    assert results(SLOW)[f"{case} Auto"]["gathers"] == []
