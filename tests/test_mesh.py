"""Eight devices decode what one does. One process of its own, as the number of devices is fixed at start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [(name, "Auto") for name in ("uniform", "global", "mixed", "group")]
CASES += [(name, "Explicit") for name in ("global", "mixed")]


@pytest.fixture(scope="module")
def results():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("mesh_script.py")
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_sharded_weights_decode_as_on_one_device(results, name, kind):
    found = results[f"{name} {kind}"]
    assert "error" not in found, found["error"]
    # Gradients of learned steps are sums, whose order depends on the shards.
    assert found["largest"] <= (1e-6 if name == "mixed" else 0.0)
    assert found["zeros"][0] == found["zeros"][1]
    assert all("model" in spec for spec in found["sharded"])


@pytest.mark.parametrize("name", ["uniform", "global"])
def test_counting_gathers_no_weights(results, name):
    assert results[f"{name} Auto"]["gathers"] == []
