"""The recurrent network of g2p-en in JAX: words to phonemes, and how far a compressed one strays.

A GRU reads a word's letters, another one writes its phonemes (Cho et al. 2014, https://arxiv.org/abs/1406.1078; the
weights are those of the package g2p-en 2.1.0, never imported). `load()` gives the weights as they are stored; `apply`
is the network on given letters and phonemes, with all its matrix products in two `lax.scan`s and one `dot_general`,
where `modelzip_jax.trace` sees them; `spell` writes phonemes by itself.

Nobody's pronunciations are needed: what counts is how the network's own outputs change. So the phonemes that the
float network gives are both what the decoder is fed and what others' are compared with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.networks import NETWORKS
from modelzip_jax.training import data

__all__ = [
    "PHONEMES",
    "Agreement",
    "Words",
    "agreement",
    "apply",
    "edit_distance",
    "encode_words",
    "load",
    "named",
    "spell",
    "words",
]

_SYMBOLS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N"),
    *("NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
PHONEMES = (
    "<pad>", "<unk>", "<s>", "</s>",
    *sorted([f"{vowel}{stress}" for vowel in _VOWELS for stress in "012"] + ["UW", *_CONSONANTS]),
)  # fmt: skip
_START, END = 2, 3
LONGEST = 20  # phonemes that the package writes at most

Params = dict[str, jax.Array]


class Words(NamedTuple):
    """letters: int32 (n, length), padded behind the end mark. ends: int32 (n,), where that mark stands."""

    letters: np.ndarray
    ends: np.ndarray


class Agreement(NamedTuple):
    """How two networks agree, word by word; each `(n,)`.

    cosine: of the logits that follow the float network's own phonemes, mean over the positions up to the end mark.
    edits: edit distance between what both write. phonemes: how many the float network writes. The phoneme
    error rate is `edits.sum() / phonemes.sum()`.
    """

    cosine: np.ndarray
    edits: np.ndarray
    phonemes: np.ndarray


def load() -> Params:
    """The weights, float32, named as the package's file names them, each gate's rows one under the other."""
    return {name: jnp.asarray(leaf) for name, leaf in NETWORKS["g2p-en"].load().items()}


def words(split: str, count: int, seed: int = 0) -> list[str]:
    """`count` different words of the King James Version, drawn among those of 3 to 14 letters.

    split: "calibration", "validation" or "test"; no word is in two. Needs `python scripts/offline_datasets.py kjv`.
    """
    texts = [bytes(row.astype(np.uint8)).decode("latin-1") for row in _lines()]
    found = sorted(set(re.findall(r"[a-z]{3,14}", " ".join(texts).lower())))
    order = np.random.default_rng(seed).permutation(len(found))
    part = ("calibration", "validation", "test").index(split)
    return [found[i] for i in order[part::3][:count]]


def _lines() -> np.ndarray:
    return data.load_split("kjv", "train+validation", sequence_length=1 << 16)["inputs"]


def encode_words(texts: Sequence[str]) -> Words:
    """Letters as the network's numbers; characters that it does not know become its mark for them.

    >>> encode_words(["ab", "a"]).letters.tolist()
    [[3, 4, 2], [3, 2, 0]]
    """
    longest = max(map(len, texts)) + 1
    letters = np.zeros((len(texts), longest), np.int32)
    for row, text in zip(letters, texts, strict=True):
        row[: len(text) + 1] = [_SYMBOLS.index(c) if c in _SYMBOLS else 1 for c in text] + [2]
    return Words(letters, np.array([len(text) for text in texts], np.int32))


def _cell(params: Params, part: str, x: jax.Array, h: jax.Array) -> jax.Array:
    """One step of a GRU, (n, 256) each; gates lie in the order reset, update, new."""
    given = x @ params[f"{part}_w_ih"].T + params[f"{part}_b_ih"]
    kept = h @ params[f"{part}_w_hh"].T + params[f"{part}_b_hh"]
    (r, z, n), (hr, hz, hn) = jnp.split(given, 3, -1), jnp.split(kept, 3, -1)
    r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
    return (1 - z) * jnp.tanh(n + r * hn) + z * h


def _read(params: Params, letters: jax.Array, ends: jax.Array) -> jax.Array:
    """What the encoder holds after a word's end mark, (n, 256)."""

    def step(h: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, column = at
        within = (t <= ends)[:, None]
        # Zeros beyond a word's end, so that statistics of the inputs are those of words, but for their scale.
        new = _cell(params, "enc", params["enc_emb"][column] * within, h * within)
        return jnp.where(within, new, h), None

    h = jnp.zeros((len(letters), params["enc_w_hh"].shape[1]), jnp.float32)
    return jax.lax.scan(step, h, (jnp.arange(letters.shape[1]), letters.T))[0]


def apply(params: Params, letters: jax.Array, ends: jax.Array, phonemes: jax.Array) -> jax.Array:
    """Logits float32 (n, steps, 74) where the decoder is fed the start mark and `phonemes`, int32 (n, steps).

    The last phoneme is not fed. After a word's end mark the decoder is fed zeros: what it says there means nothing.
    """
    fed = jnp.concatenate([jnp.full((len(phonemes), 1), _START, phonemes.dtype), phonemes[:, :-1]], 1)

    def step(h: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
        within = (column != END)[:, None]
        h = _cell(params, "dec", params["dec_emb"][column] * within, h * within) * within
        return h, h

    states = jax.lax.scan(step, _read(params, letters, ends), fed.T)[1]
    return states.swapaxes(0, 1) @ params["fc_w"].T + params["fc_b"]


@jax.jit
def spell(params: Params, letters: jax.Array, ends: jax.Array) -> jax.Array:
    """The likeliest phoneme after the likeliest ones, int32 (n, 20); end marks from the first one on."""

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, last = carry
        h = _cell(params, "dec", params["dec_emb"][last], h)
        chosen = jnp.argmax(h @ params["fc_w"].T + params["fc_b"], -1).astype(jnp.int32)
        chosen = jnp.where(last == END, END, chosen)
        return (h, chosen), chosen

    start = jnp.full(len(letters), _START, jnp.int32)
    return jax.lax.scan(step, (_read(params, letters, ends), start), None, LONGEST)[1].T


def named(phonemes: np.ndarray) -> list[list[str]]:
    """Phonemes by name, up to the end mark."""
    rows = np.asarray(phonemes).tolist()
    return [[PHONEMES[i] for i in (row[: row.index(END)] if END in row else row)] for row in rows]


_logits = jax.jit(apply)


def agreement(reference: Params, params: Params, texts: Sequence[str]) -> Agreement:
    """How `params` agree with the float network, `reference`, on these words."""
    letters, ends = encode_words(texts)
    theirs = np.asarray(spell(reference, letters, ends))
    a, b = (np.asarray(_logits(p, letters, ends, theirs), np.float64) for p in (reference, params))
    cosines = np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    # The end mark is a decision of the network too, so its position counts.
    counted = np.cumsum(theirs == END, 1) <= 1
    pairs = list(zip(named(theirs), named(np.asarray(spell(params, letters, ends))), strict=True))
    return Agreement(
        np.sum(cosines * counted, 1) / counted.sum(1),
        np.array([edit_distance(x, y) for x, y in pairs]),
        np.array([len(x) for x, _ in pairs]),
    )


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's: how many insertions, deletions and replacements make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
