"""The networks and figures that benchmarks rest on, on random numbers: nothing here needs a package of weights."""

from __future__ import annotations

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import trace

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def g2p():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.grapheme_to_phoneme")


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = {"enc_emb": (29, 8), "dec_emb": (74, 8), "fc_w": (74, 8), "fc_b": (74,)}
    for part in ("enc", "dec"):
        shapes |= {f"{part}_{w}": (24, 8) for w in ("w_ih", "w_hh")}
        shapes |= {f"{part}_{b}": (24,) for b in ("b_ih", "b_hh")}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def predicted(params, word):
    """What g2p_en 2.1.0's `G2p.predict` computes, in float64: phoneme numbers, and the logits behind them."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}

    def cell(x, h, part):
        given = p[f"{part}_w_ih"] @ x + p[f"{part}_b_ih"]
        kept = p[f"{part}_w_hh"] @ h + p[f"{part}_b_hh"]
        r, z = np.split(1 / (1 + np.exp(-(given[:16] + kept[:16]))), 2)
        return (1 - z) * np.tanh(given[16:] + r * kept[16:]) + z * h

    h = np.zeros(8)
    for number in [*("abcdefghijklmnopqrstuvwxyz".index(c) + 3 for c in word), 2]:
        h = cell(p["enc_emb"][number], h, "enc")
    last, found, logits = 2, [], []
    while len(found) < 20:
        h = cell(p["dec_emb"][last], h, "dec")
        logits.append(p["fc_w"] @ h + p["fc_b"])
        last = int(np.argmax(logits[-1]))
        if last == 3:
            break
        found.append(last)
    return found, np.array(logits)


def test_words_of_any_length_are_spelt_as_the_package_spells_them_one_by_one(g2p, params):
    texts = ["a", "word", "several", "longest"]
    letters, ends = g2p.encode_words(texts)
    phonemes = np.asarray(g2p.spell(params, letters, ends))
    logits = jax.jit(g2p.apply)(params, letters, ends, phonemes)
    for i, text in enumerate(texts):
        found, expected = predicted(params, text)
        assert g2p.named(phonemes)[i] == [g2p.PHONEMES[n] for n in found]
        np.testing.assert_allclose(logits[i, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_agreement_is_full_with_itself_and_less_with_another(g2p, params):
    same = g2p.agreement(params, params, ["word", "a"])
    np.testing.assert_allclose(same.cosine, 1, rtol=1e-12)
    assert not same.edits.any()
    other = g2p.agreement(params, jax.tree.map(lambda x: -x, params), ["word", "a"])
    assert (other.cosine < 0.9).all()
    assert other.edits.sum() > 0


def test_statistics_of_words_are_not_touched_by_padding(g2p, params):
    letters, ends = g2p.encode_words(["ab"])
    phonemes = np.full((1, 20), 3, np.int32)  # the end mark at once: one step of the decoder
    wide = np.pad(letters, ((0, 0), (0, 5)))
    short, long = (
        trace.statistics(g2p.apply, params, [(x, ends, phonemes)], kinds=("gram",), only="*_w_*")
        for x in (letters, wide)
    )
    for name in ("enc_w_ih", "enc_w_hh", "dec_w_ih"):
        a, b = (s[name][0].inputs for s in (short, long))
        np.testing.assert_allclose(a.gram * a.count, b.gram * b.count, rtol=1e-5)
    decoder = short["dec_w_ih"][0].inputs
    np.testing.assert_allclose(
        decoder.gram * decoder.count, np.outer(params["dec_emb"][2], params["dec_emb"][2]), rtol=1e-5
    )
