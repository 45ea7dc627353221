"""A GPTQ file: what it takes, what is stored, and that its rounding is GPTQ's."""

import numpy as np
import pytest

import modelzip_jax as mz
from benchmarks.peers.gptq_file import HalfSteps, code_by_gptq, gptq_bits
from modelzip_jax.errors import LeafError

RNG = np.random.default_rng(0)


def layer(rows, n):
    i = np.arange(n)
    scale = np.exp(RNG.normal(size=n) / 2)
    return RNG.normal(size=(rows, n)).astype(np.float32), 0.9 ** np.abs(i[:, None] - i) * np.outer(
        scale, scale
    )


def stored(w, bits, group):
    """Steps and zero points (groups, outputs) that the range alone gives."""
    how = mz.quantize(
        bits, granularity="group", group_size=group, axis=-1, symmetric=False,
        range=HalfSteps(mz.ranges.least_squares()),
    )  # fmt: skip
    packed = mz.compress({"w": w.T}, how).params["w"]
    return np.asarray(packed.step), np.asarray(packed.zero)


def by_gptq(w, gram, step, zero, group, last):
    """GPTQ with static groups and the largest inputs first, an inverse for each input."""
    place = np.argsort(-np.diagonal(gram), kind="stable")
    h = (gram + 0.01 * np.mean(np.diagonal(gram)) * np.eye(len(gram)))[np.ix_(place, place)]
    w, values = w[:, place].astype(np.float64), np.zeros(w.shape)
    for c, q in enumerate(place):
        inverse = np.linalg.inv(h[c:, c:])
        s, z = step[q // group].astype(np.float64), zero[q // group]
        values[:, q] = (np.clip(np.rint(w[:, c] / s + z), 0, last) - z) * s
        w[:, c:] -= np.outer(w[:, c] - values[:, q], inverse[0] / inverse[0, 0])
    return values


def test_published_bits_of_a_group():
    assert gptq_bits((64, 1024)) == 64 * 1024 * 4.15625
    assert gptq_bits((1, 130)) == 4 * 130 + 2 * 20
    w, gram = layer(8, 130)
    assert code_by_gptq({"a": w, "b": w}, {"a": gram, "b": gram}).bytes == 2 * 8 * 560 // 8


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (3, 128)])
def test_it_is_gptq_on_the_grid_that_is_stored(bits, group):
    w, gram = layer(24, 40)
    step, zero = stored(w, bits, group)
    np.testing.assert_array_equal(step, step.astype(np.float16))
    assert ((zero >= 0) & (zero < 2**bits) & (zero == np.rint(zero))).all()
    found = code_by_gptq({"w": w}, {"w": gram}, bits, group).values["w"]
    expected = by_gptq(w, gram, step, zero, group, 2**bits - 1)
    # Ties in float32 may fall otherwise than in float64, and what follows in a row with them.
    assert np.mean(np.isclose(found, expected, rtol=1e-5, atol=1e-7)) > 0.97
    assert found.dtype == np.float32


def test_outputs_change_less_than_by_rounding_to_nearest():
    w, gram = layer(60, 64)
    found = code_by_gptq({"w": w}, {"w": gram}, group=32).values["w"]
    step, zero = (np.repeat(x, 32, axis=0).T for x in stored(w, 4, 32))
    nearest = (np.clip(np.rint(w / step + zero), 0, 15) - zero) * step
    error = [np.sum((w - v) @ gram * (w - v)) for v in (found, nearest)]
    assert error[0] < 0.5 * error[1]


def test_what_it_cannot_take_is_named():
    with pytest.raises(LeafError, match="'kernel'"):
        code_by_gptq({"kernel": np.ones((2, 3))}, {"kernel": np.eye(2)})
