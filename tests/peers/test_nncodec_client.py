"""NNCodec as a peer: steps as it has them; the rest where it is installed, $MODELZIP_NNCODEC_PYTHON."""

import os
import subprocess

import numpy as np
import pytest

from benchmarks.peers.nncodec_client import ask_nncodec, nearest_qp, step_of
from modelzip_jax.errors import LeafError, NonFiniteError

INSTALLED = pytest.mark.skipif(
    not os.environ.get("MODELZIP_NNCODEC_PYTHON"), reason="MODELZIP_NNCODEC_PYTHON is not set"
)
RNG = np.random.default_rng(0)
TENSORS = {
    "layer_G/kernel": RNG.normal(size=(40, 300)).astype(np.float32),
    "other/kernel": RNG.normal(size=(10, 40)).astype(np.float32),
    "other/bias": RNG.normal(size=10).astype(np.float32),
    "gain": np.float32(0.7),
}


def test_every_qp_is_the_nearest_to_its_own_step():
    assert [nearest_qp(step_of(qp)) for qp in range(-128, 128)] == list(range(-128, 128))
    assert all(step_of(qp) < step_of(qp + 1) for qp in range(-128, 127))
    assert step_of(-24) == 2.0**-6
    with pytest.raises(ValueError, match="not 0"):
        nearest_qp(0.0)


def test_without_an_environment_for_it_there_is_no_answer(monkeypatch):
    monkeypatch.delenv("MODELZIP_NNCODEC_PYTHON", raising=False)
    assert ask_nncodec(TENSORS, [{"qp": -20}]) is None


def test_what_it_cannot_take_is_named(monkeypatch):
    monkeypatch.setenv("MODELZIP_NNCODEC_PYTHON", "not asked")
    with pytest.raises(LeafError, match="'w'"):
        ask_nncodec({"w": np.zeros((0, 3))}, [])
    with pytest.raises(NonFiniteError, match="'w'"):
        ask_nncodec({"w": np.full(3, np.inf)}, [])


@INSTALLED
def test_each_tensor_is_rounded_to_the_step_that_it_is_given():
    own = {"layer_G/kernel": nearest_qp(0.06), "other/kernel": nearest_qp(0.5)}
    plain = {"qp": -20, "use_dq": False}
    one, each, trellis = ask_nncodec(TENSORS, [plain, {**plain, "qp_per_tensor": own}, {"qp": -20}])
    for name in own:
        for found, qp in ((one, -20), (each, own[name])):
            nearest = np.rint(TENSORS[name] / step_of(qp)) * step_of(qp)
            np.testing.assert_array_equal(found.coded.values[name], nearest)
    assert each.coded.bytes < one.coded.bytes
    kernel = TENSORS["layer_G/kernel"]
    error = [np.std(found.coded.values["layer_G/kernel"] - kernel) for found in (one, trellis)]
    assert 1.4 < error[1] / error[0] < 1.8
    assert trellis.coded.bytes < one.coded.bytes
    for name in ("other/bias", "gain"):
        np.testing.assert_allclose(each.coded.values[name], TENSORS[name], atol=1e-5)
        assert np.shape(each.coded.values[name]) == np.shape(TENSORS[name])


@INSTALLED
def test_options_reach_it():
    rates = [{"qp": -12, "lambda_scale": x} for x in (0.0, 1.0, 3.0)]
    found = ask_nncodec(TENSORS, [*rates, {"qp": -12, "opt_qp": True}])
    sizes = [f.coded.bytes for f in found]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[3] != sizes[0]
    assert all(f.encode_s > 0 < f.decode_s for f in found)
    with pytest.raises(subprocess.CalledProcessError):
        ask_nncodec(TENSORS, [{"qp_per_tensor": {"kernel": -20}}])
