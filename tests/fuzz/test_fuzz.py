"""A hundredth of `make fuzz`, and what it has found before."""

import contextlib
import importlib.util
from pathlib import Path

import pytest

import modelzip_jax as mz

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)
SEEDS = sorted((ROOT / "tests" / "fuzz" / "seeds").glob("*.mz"))


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_a_finding_loads_or_is_refused(path):
    with contextlib.suppress(mz.errors.ModelzipError):
        mz.load(path)


def test_a_file_is_put_together_as_it_was():
    for path in sorted((ROOT / "tests" / "golden").glob("*.mz")):
        data = path.read_bytes()
        again = fuzz.joined(*fuzz.parts(data))
        assert fuzz.parts(again) == fuzz.parts(data)


def test_a_hundredth_of_the_fuzzing(tmp_path):
    tried, found = fuzz.run(tmp_path, seconds=3600.0, count=250, seed=16)
    assert found == []
    assert tried == 250
