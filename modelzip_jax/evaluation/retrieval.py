"""A retrieval task made of docstrings that are already installed, and its metrics.

The query is the first sentence of a docstring, the document is the rest of it, and the right
document has to be found among all the others: the scheme of CodeSearchNet (Husain et al. 2019,
https://arxiv.org/abs/1909.09436) with text on both sides. Needs no download and no network.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import pathlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import PatternError
from modelzip_jax.evaluation.ranking import first_relevant_ranks, relevance_blocks

__all__ = [
    "DEFAULT_MODULES",
    "Pair",
    "docstring_pairs",
    "mean_cosine",
    "mrr_at",
    "recall_at",
    "split_by_package",
    "thin",
]

# Chosen for prose and for speed: parsing all of scipy and jax would take half a minute.
DEFAULT_MODULES: tuple[str, ...] = (
    *("argparse", "ast", "asyncio", "bdb", "calendar", "codecs", "collections", "concurrent"),
    *("configparser", "contextlib", "csv", "ctypes", "dataclasses", "datetime", "difflib", "dis"),
    *("doctest", "email", "enum", "fractions", "ftplib", "functools", "heapq", "html", "http"),
    *("imaplib", "importlib", "inspect", "ipaddress", "json", "locale", "logging", "mailbox"),
    *("optparse", "os", "pathlib", "pdb", "pickle", "platform", "plistlib"),
    *("poplib", "random", "sched", "shelve", "shutil", "smtplib", "socket", "socketserver"),
    *("sqlite3", "ssl", "statistics", "string", "subprocess", "sysconfig", "tarfile", "tempfile"),
    *("textwrap", "threading", "tokenize", "trace", "traceback", "turtle", "typing", "unittest"),
    *("urllib", "uuid", "wave", "weakref", "wsgiref", "xml", "xmlrpc", "zipfile"),
    *("numpy._core", "numpy.fft", "numpy.lib", "numpy.linalg", "numpy.ma", "numpy.polynomial"),
    *("scipy.cluster", "scipy.fft", "scipy.integrate", "scipy.interpolate", "scipy.io"),
    *("scipy.linalg", "scipy.ndimage", "scipy.optimize", "scipy.signal", "scipy.sparse"),
    *("scipy.spatial", "scipy.special", "scipy.stats"),
    *("jax._src.nn", "jax._src.numpy", "jax._src.scipy", "jax._src.lax"),
    *("jax._src.random", "jax._src.api", "jax._src.tree_util"),
)


class Pair(NamedTuple):
    """A `query`, the `document` that answers it, and the dotted `module` that both come from."""

    query: str
    document: str
    module: str


def docstring_pairs(modules: Sequence[str] = DEFAULT_MODULES) -> list[Pair]:
    """First sentences and remainders of the docstrings of public functions, classes and methods.

    Source files are parsed, never imported, so nothing is executed. A package stands for all its
    files, tests and vendored code excepted. The order is that of `modules`, then of file names,
    then of lines; a query or document seen before (ignoring case) is left out. Python and package
    versions change a few pairs, so compare models on one machine.

    Args:
      modules: dotted names from the standard library or any installed package.

    Raises:
      PatternError: a module has no source file here; it is named.

    >>> [pair.query for pair in docstring_pairs(["textwrap"])][3]
    'Fill a single paragraph of text, returning a new string.'
    """
    queries: set[str] = set()
    documents: set[str] = set()
    pairs = []
    for name in modules:
        for module, path in _sources(name):
            for docstring in _docstrings(path):
                pair = _pair(docstring, module)
                if pair is None:
                    continue
                query, document = pair.query.casefold(), pair.document.casefold()
                if query in queries or document in documents:
                    continue
                queries.add(query)
                documents.add(document)
                pairs.append(pair)
    return pairs


def split_by_package(
    pairs: Sequence[Pair], validation_fraction: float = 0.25
) -> tuple[list[Pair], list[Pair]]:
    """(validation, test), with no package in both.

    A package is `email` for `email.message`, `scipy.stats` for `scipy.stats._stats_py` and
    `jax._src.numpy` for what lies beneath it. `validation_fraction` is the share of packages (not
    of pairs) that go to validation, drawn by a hash of their names, so that a package stays on its
    side whatever else is there. Order is kept.
    """
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(_package(pair.module).encode()).digest()
        sides[int.from_bytes(digest[:4], "big") >= validation_fraction * 2**32].append(pair)
    return sides


def thin(pairs: Sequence[Pair], n: int) -> list[Pair]:
    """`n` of the pairs at even distances, so that every module keeps its share; all if fewer.

    >>> thin([Pair(q, "", "") for q in "abcdef"], 2)
    [Pair(query='a', document='', module=''), Pair(query='d', document='', module='')]
    """
    n = min(n, len(pairs))
    return [pairs[i * len(pairs) // n] for i in range(n)]


def _package(module: str) -> str:
    parts = module.split(".")
    if parts[0] not in ("numpy", "scipy", "jax"):
        return parts[0]
    return ".".join(parts[: 3 if parts[1:2] == ["_src"] else 2])


def _sources(name: str) -> Iterator[tuple[str, pathlib.Path]]:
    path = _locate(name)
    if path.is_file():
        yield name, path
        return
    for file in sorted(path.rglob("*.py")):
        parts = file.relative_to(path).with_suffix("").parts
        if not {"test", "tests", "_vendor", "_extern", "extern"} & set(parts):
            yield ".".join((name, *(p for p in parts if p != "__init__"))), file


def _locate(name: str) -> pathlib.Path:
    """The file or folder of a module; only a top-level spec is asked for, which imports nothing."""
    root, *rest = name.split(".")
    folders = [pathlib.Path(sysconfig.get_paths()["stdlib"])]
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        spec = None
    folders += [pathlib.Path(p).parent for p in (spec and spec.submodule_search_locations) or ()]
    for folder in folders:
        path = folder.joinpath(root, *rest)
        if path.is_dir():
            return path
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
    raise PatternError(f"no Python source of module {name!r} in {[str(f) for f in folders]}")


def _docstrings(path: pathlib.Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.Module):
            docstring = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
            if docstring:
                yield docstring
        if isinstance(node, ast.Module | ast.ClassDef):
            # Bodies of functions are not public.
            todo += reversed([child for child in node.body if _is_public(child)])


def _is_public(node: ast.AST) -> bool:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return isinstance(node, kinds) and not node.name.startswith("_")


_RULE = re.compile(r"^\s*([=\-~^*]{3,})\s*$", re.MULTILINE)
_SIGNATURE = re.compile(r"^[\w.]+\(.*\)( *->.*)?\n")
_ROLE = re.compile(r":[a-z:]+:`~?([^`]*)`")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(\[])")


def _pair(docstring: str, module: str) -> Pair | None:
    """The pair of a docstring, or None where either part is too short to mean anything."""
    text = _SIGNATURE.sub("", _RULE.sub("", inspect.cleandoc(docstring)))
    text = _ROLE.sub(r"\1", text).replace("`", "")
    first, _, rest = text.strip().partition("\n\n")
    sentence, *more = _END.split(" ".join(first.split()), maxsplit=1)
    document = " ".join(" ".join((*more, rest)).split())
    if not 4 <= len(sentence.split()) <= 40 or len(document.split()) < 10:
        return None
    return Pair(sentence, document, module)


def recall_at(query_embeddings: ArrayLike, document_embeddings: ArrayLike, k: int) -> float:
    """Share of the queries whose own document (same row) is among the `k` of largest dot product.

    Both are (n, d). Among equal scores the query's own document counts last, so that an encoder
    that maps everything to one point scores nothing.

    >>> recall_at(np.eye(3), np.eye(3)[[0, 2, 1]], k=1)
    0.3333333333333333
    """
    return float(np.mean(_ranks(query_embeddings, document_embeddings) <= k))


def mrr_at(query_embeddings: ArrayLike, document_embeddings: ArrayLike, k: int) -> float:
    """Mean reciprocal rank of each query's own document (same row), counted as 0 beyond rank `k`.

    >>> mrr_at([[1.0, 0.0], [0.6, 0.8]], [[0.8, 0.6], [0.6, 0.6]], k=10)
    0.75
    """
    ranks = _ranks(query_embeddings, document_embeddings)
    return float(np.mean(np.where(ranks <= k, 1 / ranks, 0.0)))


def mean_cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Mean cosine between the rows of `a` and `b`, both (n, d); a zero row has cosine 0.

    >>> mean_cosine([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])
    0.5
    """
    a, b = _same_shape(a, b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)))


def _ranks(queries: ArrayLike, documents: ArrayLike) -> np.ndarray:
    queries, documents = _same_shape(queries, documents)
    return first_relevant_ranks(relevance_blocks(queries, np.arange(len(queries)), documents))


def _same_shape(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ValueError(f"expected two non-empty (n, d) arrays, got {a.shape} and {b.shape}")
    return a, b
