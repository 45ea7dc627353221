"""EntQuant: the published bits, and the paper's own optimiser as an oracle."""

import numpy as np
import pytest
from scipy import optimize

from benchmarks.peers.coded import code_bits
from benchmarks.peers.entquant import code_by_entquant, entquant
from modelzip_jax.errors import LeafError, NonFiniteError

RNG = np.random.default_rng(0)
CHANNELS = np.exp(0.3 * RNG.normal(size=(64, 1))).astype(np.float32)
WEIGHTS = {
    "normal": RNG.normal(size=(64, 1024)).astype(np.float32) * CHANNELS,
    "heavy": RNG.laplace(size=(64, 1024)).astype(np.float32) * CHANNELS,
}


def loss_and_gradient(log_steps, w, strength):
    """The paper's loss, and its gradient with the rounding passed straight through."""
    s = np.exp2(log_steps)[:, None]
    q = np.clip(np.rint(w / s), -127, 127)
    off, norm = s * q - w, np.abs(w).sum()
    loss = np.abs(off).sum() / norm + strength / 128 * np.abs(q).mean()
    dq = -np.log(2) * w / s
    gradient = np.sign(off) * s * (np.log(2) * q + dq) / norm + strength / 128 / w.size * np.sign(q) * dq
    return loss, gradient.sum(1)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("strength", "bits"), [(3.9, 4), (14.5, 3), (58.0, 2)])
def test_published_strengths_give_the_published_bits(kind, strength, bits):
    w = WEIGHTS[kind]
    (codes, _) = entquant({"w": w}, strength, axis=0)["w"]
    assert abs(code_bits(codes) / w.size - bits) < 0.2


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("strength", [1.0, 14.5, 128.0])
def test_the_papers_optimiser_ends_where_we_do(kind, strength):
    w = WEIGHTS[kind].astype(np.float64)
    start = np.log2(np.abs(w).max(1) / 127)
    theirs = optimize.minimize(loss_and_gradient, start, (w, strength), "L-BFGS-B", jac=True).x
    codes, steps = entquant({"w": w}, strength, axis=0)["w"]
    assert np.median(np.abs(np.log2(steps[:, 0]) - theirs)) < 0.05
    ours, _ = loss_and_gradient(np.log2(steps[:, 0]), w, strength)
    np.testing.assert_allclose(ours, loss_and_gradient(theirs, w, strength)[0], rtol=3e-3)
    other = np.clip(np.rint(w / np.exp2(theirs)[:, None]), -127, 127)
    np.testing.assert_allclose(code_bits(codes), code_bits(other), rtol=0.01)


def test_channels_of_any_axis_are_the_same_channels():
    w = WEIGHTS["normal"].reshape(64, 32, 32)
    codes, steps = entquant({"w": w}, 10.0, axis=0)["w"]
    moved, moved_steps = entquant({"w": np.moveaxis(w, 0, -1)}, 10.0)["w"]
    np.testing.assert_array_equal(np.moveaxis(codes, 0, -1), moved)
    np.testing.assert_array_equal(steps.ravel(), moved_steps.ravel())
    assert (steps.shape, moved_steps.shape) == ((64, 1, 1), (1, 1, 64))


def test_values_are_codes_times_steps_of_fp16_and_bytes_fall_with_strength():
    found = [code_by_entquant(WEIGHTS, strength, axis=0) for strength in (1.0, 4.0, 16.0, 64.0)]
    assert sorted(f.bytes for f in found)[::-1] == [f.bytes for f in found]
    codes, steps = entquant(WEIGHTS, 1.0, axis=0)["heavy"]
    np.testing.assert_array_equal(found[0].values["heavy"], codes * steps)
    np.testing.assert_array_equal(steps, steps.astype(np.float16))
    assert codes.dtype == np.int32
    assert np.abs(codes).max() <= 127


def test_channels_of_zeros_stay_zeros():
    w = np.zeros((2, 5), np.float32)
    w[1] = [1, -2, 3, 0, 1]
    coded = code_by_entquant({"w": w}, 1.0, axis=0)
    assert not coded.values["w"][0].any()
    np.testing.assert_allclose(coded.values["w"][1], w[1], atol=0.5)


def test_what_it_cannot_take_is_named():
    with pytest.raises(LeafError, match="'bias'"):
        entquant({"bias": np.ones(3)}, 1.0)
    with pytest.raises(NonFiniteError, match="'w'"):
        entquant({"w": np.full((2, 2), np.nan)}, 1.0)
