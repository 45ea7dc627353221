"""The pieces of the accelerator benchmark, and the notebook that runs it."""

import ast
import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from benchmarks import accelerator_checks as checks
from benchmarks import bare_environment

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_golden_files_are_compared_by_their_bits_and_sums_within_ulps(monkeypatch):
    for name in ("quantize3", "wavelet"):
        assert checks.golden(checks.GOLDEN / f"{name}.mz") == ""
    unpacked = checks.unpacked_on
    monkeypatch.setattr(checks, "unpacked_on", lambda *x: {k: v * 1.001 for k, v in unpacked(*x).items()})
    assert "kernel" in checks.golden(checks.GOLDEN / "quantize3.mz")
    assert "ulp" in checks.golden(checks.GOLDEN / "wavelet.mz")


def test_what_is_unpacked_here_is_compared_with_the_cpu(monkeypatch):
    params = {"kernel": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    assert checks.like_the_cpu("quantize", params, mz.quantize(4)) == ""
    monkeypatch.setattr(checks, "unpacked_on", lambda device, p: {"kernel": jnp.zeros((8, 4))})
    assert "is not NumPy's values: kernel" in checks.like_the_cpu("quantize", params, mz.quantize(4))


def test_a_broken_law_is_told():
    assert "finite" in checks.laws("x", {"w": jnp.array([1.0, jnp.inf])}, Endless())


@mz.recordable
@dataclasses.dataclass(frozen=True)
class Endless(mz.Transform):
    """Decodes to what it was given."""

    def decode(self, encoded):
        return encoded.latents


def test_transforms_that_decode_by_a_sum_are_named_as_the_tests_name_them():
    assert checks.allowed("wavelet, packets") == checks.allowed("best basis") == checks.ULP
    assert checks.allowed("quantize") == checks.allowed("chain") == 0


def test_names_stand_in_for_jaxtyping_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(bare_environment.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    bare_environment.provide_jaxtyping()
    found = importlib.import_module("jaxtyping")
    assert found.Float[jnp.ndarray, "rows columns"] is found.UInt8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_one_and_its_code_is_python(path):
    book = json.loads(path.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        assert {"cell_type", "id", "metadata", "source"} <= set(cell)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            lines = [line for line in cell["source"] if not line.startswith(("%", "!"))]
            ast.parse("".join(lines))
