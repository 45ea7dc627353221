"""Files and recipes that an older writer made are read bit for bit.

What is stored is compared by its bits everywhere. So is what it decodes to, but for sums of wavelets and cosines and
products of factors, which XLA rounds as it likes: they are compared with values recorded, within a few units in the
last place.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.coding import header as headers
from modelzip_jax.coding.reader import Archive
from modelzip_jax.coding.writer import encoded
from modelzip_jax.errors import FormatError
from modelzip_jax.packed import kinds
from modelzip_jax.recipe import from_plain, to_plain
from modelzip_jax.tree import named_leaves

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
SUMS = np.load(GOLDEN / "sums.npz")
RECIPES = json.loads((GOLDEN / "recipes.json").read_text())


SEEDS = GOLDEN.parent / "fuzz" / "seeds"


def tags_in(spec):
    if isinstance(spec, list) and spec and isinstance(spec[0], str):
        yield spec[0]
        for field in spec[1:]:
            yield from tags_in(field)


def test_every_packed_kind_has_a_file():
    """The corpus of `make fuzz`, too: what nobody stored was never mutated."""
    found = set()
    for path in (*GOLDEN.glob("*.mz"), SEEDS / "linear.mz"):
        with Archive(path) as archive:
            found |= {tag for spec in archive.header.specs for tag in tags_in(spec)}
    ours = {tag for tag, kind in kinds.items() if kind.__module__.startswith("modelzip_jax.")}
    assert ours - found == set()


def test_every_packed_kind_is_on_the_page():
    page = (GOLDEN.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    ours = {tag for tag, kind in kinds.items() if kind.__module__.startswith("modelzip_jax.")}
    assert {tag for tag in ours if f"| `{tag}` " not in page} == set()


def test_a_linear_map_of_somebodys_own_is_refused_without_its_class():
    with pytest.raises(FormatError, match="import the module somebodys_module"):
        mz.load(SEEDS / "linear.mz")


def digest(leaf):
    array = np.asarray(leaf)
    content = np.ascontiguousarray(array).tobytes()
    return [str(array.dtype), list(array.shape), hashlib.sha256(content).hexdigest()[:32]]


def digests(tree):
    return {name: digest(leaf) for name, leaf in named_leaves(tree)}


def test_every_file_has_its_expectation():
    assert {path.stem for path in GOLDEN.glob("*.mz")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_file(name):
    packed = mz.load(GOLDEN / f"{name}.mz")
    assert digests(packed.params) == EXPECTED[name]["stored"]
    unpacked = mz.unpack(packed)
    if name in SUMS:
        allowed = 8 * np.spacing(np.abs(SUMS[name]).max())
        np.testing.assert_allclose(unpacked["kernel"], SUMS[name], rtol=0, atol=allowed)
    else:
        assert digests(unpacked) == EXPECTED[name]["params"]
    assert digests(packed.variables) == EXPECTED[name]["variables"]
    assert packed.step == EXPECTED[name]["step"]


def told(data):
    """Version, specs, tables, and all chunks; not the rest of the header, whose recipes may have outgrown the file."""
    _, version, meta, size = headers.PRELUDE.unpack_from(data)
    end = headers.PRELUDE.size + meta + size
    with Archive(io.BytesIO(data)) as archive:
        return version, archive.header.specs, data[end - size : end], data[end + headers.CHECKSUM :]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_file_is_written_as_it_was(name):
    path = GOLDEN / f"{name}.mz"
    assert told(encoded(mz.load(path))) == told(path.read_bytes())


@pytest.mark.parametrize("plain", RECIPES, ids=lambda plain: plain["type"])
def test_a_golden_recipe(plain):
    transform = from_plain(plain)
    assert isinstance(transform, mz.Transform)
    assert from_plain(to_plain(transform)) == transform
