"""The docstring retrieval task and its metrics."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from modelzip_jax.errors import PatternError
from modelzip_jax.evaluation import retrieval as r

SOURCE = '''
"""Module docstrings are not documented objects. They are left out of this task."""

def first():
    """Return the first of several things. `Second` sentence, see :func:`other`, which is long.

    Notes
    -----
    Some more words of prose here.
    """
    def inner():
        """Return something that nobody can call. """ + "x"

class Thing:
    """Hold one thing without a full stop

    The remainder of this docstring has more than ten words in all.
    """

    async def method(self):
        """RETURN the first of several things. Another document of more than ten words, in the end.
        """

    def _private(self):
        """Return something private to the class. Never seen by anybody who uses the class, ever."""

def short():
    """Return it."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in {
        "__init__": "raise RuntimeError('imported')",
        "a": SOURCE,
        "tests/test_a": SOURCE.replace("several", "many"),
        "broken": "def (",
    }.items():
        file = tmp_path / "mz_fake_package" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return "mz_fake_package"


def test_pairs_come_from_parsed_source(package):
    assert r.docstring_pairs([package]) == [
        r.Pair(
            "Return the first of several things.",
            "Second sentence, see other, which is long. Notes Some more words of prose here.",
            "mz_fake_package.a",
        ),
        r.Pair(
            "Hold one thing without a full stop",
            "The remainder of this docstring has more than ten words in all.",
            "mz_fake_package.a",
        ),
    ]
    assert package not in sys.modules


def test_unknown_module_is_named():
    with pytest.raises(PatternError, match="no_such_module_here"):
        r.docstring_pairs(["textwrap", "no_such_module_here"])


@pytest.mark.slow
def test_the_default_task_is_large_deterministic_and_disjoint():
    pairs = r.docstring_pairs()
    validation, test = r.split_by_package(pairs)
    assert len(test) >= 2000
    assert len(validation) >= 500
    assert sorted(validation + test) == sorted(pairs)
    assert not {r._package(p.module) for p in validation} & {r._package(p.module) for p in test}
    assert len({p.query.casefold() for p in pairs}) == len(pairs)
    assert len({p.document.casefold() for p in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.query == " ".join(pair.query.split())
        assert pair.document == " ".join(pair.document.split())


def test_the_order_is_the_same_every_time():
    assert r.docstring_pairs(["email", "json"]) == r.docstring_pairs(["email", "json"])


def test_a_package_stays_on_its_side():
    pairs = [r.Pair("q", "d", f"{m}.x") for m in ("email", "scipy.stats", "jax._src.nn", "json")]
    validation, _ = r.split_by_package(pairs, 0.5)
    for pair in pairs:
        assert (pair in validation) == bool(r.split_by_package([pair], 0.5)[0])
    assert r.split_by_package(pairs, 0.0) == ([], pairs)
    assert r.split_by_package(pairs, 1.0) == (pairs, [])
    assert r._package("jax._src.numpy.linalg") == "jax._src.numpy"
    assert r._package("scipy.stats._stats_py") == "scipy.stats"
    assert r._package("email.mime.base") == "email"


def test_thin_keeps_order_and_every_region():
    pairs = [r.Pair(str(i), "", "") for i in range(10)]
    assert [p.query for p in r.thin(pairs, 4)] == ["0", "2", "5", "7"]
    assert r.thin(pairs, 99) == pairs


def test_metrics_against_a_plain_loop():
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(2, 40, 6))
    ranks = []
    for i, query in enumerate(queries):
        order = sorted(range(40), key=lambda j: -query @ documents[j])
        ranks.append(order.index(i) + 1)
    for k in (1, 5, 40):
        assert r.recall_at(queries, documents, k) == np.mean([rank <= k for rank in ranks])
        expected = np.mean([1 / rank if rank <= k else 0 for rank in ranks])
        assert r.mrr_at(queries, documents, k) == pytest.approx(expected)


def test_a_collapsed_encoder_scores_nothing():
    same = np.ones((5, 3))
    assert r.recall_at(same, same, 1) == 0
    assert r.mrr_at(same, same, 4) == 0


def test_mean_cosine_ignores_length_and_survives_zeros():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(7, 5))
    assert r.mean_cosine(a, 3 * a) == pytest.approx(1, abs=1e-6)
    assert r.mean_cosine(a, np.zeros_like(a)) == 0


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((3,), (3,)), ((0, 3), (0, 3))])
def test_metrics_refuse_other_shapes(shapes):
    with pytest.raises(ValueError, match="expected two non-empty"):
        r.recall_at(np.ones(shapes[0]), np.ones(shapes[1]), 1)
