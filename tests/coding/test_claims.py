"""Small files that claim to stand for a great deal: refused by their header, before anything is built."""

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import page_bounds
import page_reader
import pytest

import modelzip_jax as mz
from modelzip_jax.coding import claims
from modelzip_jax.coding.reader import Archive
from modelzip_jax.errors import FormatError, TreeError
from modelzip_jax.packed import Bits, Dense
from modelzip_jax.quantization.factored import Factored
from modelzip_jax.sharing.clustered import VectorClustered
from modelzip_jax.sharing.neurons import SharedNeurons
from modelzip_jax.summed_terms import Summed
from modelzip_jax.wavelets.coefficients import Coefficients

N = 2**15
GOLDEN = Path(__file__).parents[1] / "golden"


def floats(*shape):
    return Dense(np.zeros(shape, np.float32), shape)


def coefficients(view, kind, filter, levels, axes):
    return Coefficients(floats(1, 1), None, None, view, "float32", view, (1, 1), kind, filter, levels, axes)


def nested(depth):
    inner = floats(2)
    for _ in range(depth):
        inner = Summed(inner, None, (2,), "float32")
    return inner


HOSTILE = {
    "a large DCT": coefficients((60000, 1), "dct", "", 60000, (0,)),
    "a corner": coefficients((N, N), "wavelet", "haar", 1, (0,)),
    "packets": coefficients((2**20, 1), "packets", "haar", 20, (0,)),
    "packets of both axes": coefficients((2**9, 2**9), "packets", "haar", 9, (0, 1)),
    "blocks of both axes": coefficients((2**9, 2**9), "dct", "", 2**9, (0, 1)),
    "neurons": SharedNeurons(floats(N, 1), np.zeros(N, np.uint8), (N, N), "float32"),
    "vectors": VectorClustered(
        Bits.pack(np.zeros(8 * N, np.uint8), 1), np.zeros((1, N), np.float32), -1, (8 * N * N,), "float32"
    ),
    "factors": Factored(floats(N, 1), floats(1, N), (), (N, N), "float32"),
    "a sum of large ones": Summed(
        Factored(floats(N, 1), floats(1, N), (), (N, N), "float32"), None, (N, N), "float32"
    ),
}  # fmt: skip


def saved(path, params, variables=None):
    mz.save(path, mz.Packed(params, {} if variables is None else variables, mz.identity(), 0))
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_leaf_that_stands_for_gigabytes(tmp_path, name):
    path = saved(tmp_path / "x.mz", {"w": HOSTILE[name]})
    assert path.stat().st_size < 2000
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"limit=|DCT|packets|sub-bands"):
            mz.load(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        with pytest.raises(page_bounds.Refused):
            page_reader.read(path)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.mz")), ids=lambda path: path.stem)
def test_the_page_counts_as_the_reader_does(path):
    with Archive(path) as archive:
        for spec in archive.header.specs:
            assert page_bounds.claim(spec) == claims.claimed_bytes(spec)
        page_bounds.check(archive.header.outline, archive.header.specs, archive.size)


def test_a_larger_limit_is_given_by_who_trusts_the_file(tmp_path):
    wide = SharedNeurons(floats(2**12, 1), np.zeros(N, np.uint8), (2**12, N), "float32")
    path = saved(tmp_path / "x.mz", {"w": wide})
    with pytest.raises(FormatError, match=r"claim 536,\d{3},\d{3} bytes in memory, beyond the limit"):
        mz.load(path)
    assert mz.load(path, limit=1 << 30).params["w"].shape == (2**12, N)
    assert mz.load_tensor(path, "w", limit=1 << 30).shape == (2**12, N)
    with pytest.raises(FormatError, match="limit="):
        mz.load_tensor(path, "w")


def test_a_smaller_limit_holds_as_well(tmp_path):
    path = saved(tmp_path / "x.mz", {"w": floats(100, 100)})
    with pytest.raises(FormatError, match="beyond the limit of 50,000"):
        mz.load(path, limit=50_000)
    with pytest.raises(mz.errors.TransformError, match="number of bytes"):
        mz.load(path, limit="1 GB")


def test_a_limit_of_inspect(tmp_path):
    path = saved(tmp_path / "x.mz", {"w": floats(100, 100)})
    with pytest.raises(FormatError, match=r"beyond the limit of 50,000.*--limit"):
        mz.inspect(path, limit=50_000)
    assert mz.inspect(path, limit=100_000).size == 10_000


def test_what_is_in_memory_already_is_shown_whatever_its_file_claims():
    wide = SharedNeurons(floats(2**12, 1), np.zeros(N, np.uint8), (2**12, N), "float32")
    assert mz.inspect(mz.Packed({"w": wide}, {}, mz.identity(), 0)).size == 2**12 * N


def test_many_tiny_tensors(tmp_path):
    """They cost time and objects, not bytes."""
    path = saved(tmp_path / "x.mz", {f"{i}": floats(1) for i in range(40_000)})
    with pytest.raises(FormatError, match=r"first \d+ tensors claim"):
        mz.load(path)


def test_a_usual_number_of_tensors_of_zeros_is_read(tmp_path):
    params = {f"layer_{i}": {"kernel": floats(i + 1, 3), "bias": floats(3)} for i in range(3000)}
    loaded = mz.load(saved(tmp_path / "x.mz", params))
    assert len(loaded.params) == 3000


def test_long_names_of_many_leaves(tmp_path):
    path = saved(tmp_path / "x.mz", {"a" * 60_000: {str(i): floats(1) for i in range(6_000)}})
    assert path.stat().st_size < 60_000
    with pytest.raises(FormatError, match="limit"):
        mz.load(path)


def test_deeply_nested_kinds(tmp_path):
    path = saved(tmp_path / "x.mz", {"w": nested(240)})
    try:
        loaded = mz.load(path)
    except FormatError:
        return
    assert loaded.params["w"].shape == (2,)


def test_levels_that_do_nothing_are_read(tmp_path):
    path = saved(tmp_path / "x.mz", {"w": coefficients((8, 4), "wavelet", "haar", 60_000, (0, 1))})
    assert mz.load(path).params["w"].unpack().shape == (8, 4)


@pytest.mark.parametrize(
    "spec", [["dense", None, [5]], ["dense", ["bits", 1, 5], [5]], ["neurons", None, None, [2], "f4"]]
)
def test_fields_that_are_absent(spec):
    """A dense leaf without its array was a TypeError."""
    with pytest.raises(FormatError, match=f"packed kind '{spec[0]}'|dtype"):
        claims.claimed_bytes(spec)


def test_an_unpacked_size_counts_in_each_kind():
    inner = ["dense", [0, "float32", 2, 1], [2, 1]]
    spec = ["neurons", inner, [0, "uint8", 100], [2, 100], "float32"]
    assert claims.claimed_bytes(spec) - 4 * claims.ITEM == 2 * 8 + 100 + 800


@pytest.mark.parametrize("params", [{"a/b": 1, "a": {"b": 2}}, {"a\0b": 1}, {"\ud800": 1}], ids=str)
def test_names_that_no_file_can_tell_apart(tmp_path, params):
    with pytest.raises(TreeError, match="path"):
        mz.save(tmp_path / "x.mz", mz.compress(_arrays(params), mz.identity()))
    assert not list(tmp_path.iterdir())


def _arrays(tree):
    return {k: _arrays(v) if isinstance(v, dict) else np.ones(3, np.float32) for k, v in tree.items()}


def test_threads_share_an_archive(tmp_path):
    rng = np.random.default_rng(0)
    params = {str(i): np.round(rng.normal(size=(64, 30)), 1).astype(np.float32) for i in range(12)}
    path = tmp_path / "x.mz"
    mz.save(path, mz.compress(params, mz.identity()))
    wrong = []
    with Archive(path) as archive:

        def read(shift):
            for k in range(60):
                index = (k + shift) % 12
                name = archive.names[index].removeprefix("params/")
                if not np.array_equal(archive.leaf(index).unpack(), params[name]):
                    wrong.append(index)

        threads = [threading.Thread(target=read, args=(5 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("depth", [254, 255, 2000])
def test_trees_as_deep_as_files_and_deeper(tmp_path, depth):
    tree = np.ones(3, np.float32)
    for _ in range(depth):
        tree = {"a": tree}
    if depth == 254:
        mz.save(tmp_path / "x.mz", mz.compress(tree, mz.identity()))
        with Archive(tmp_path / "x.mz") as archive:
            assert len(archive.names[0]) == len("params") + 2 * depth
        return
    with pytest.raises(TreeError, match="254 levels"):
        mz.compress(tree, mz.identity())
    with pytest.raises(TreeError, match="254 levels"):
        mz.save(tmp_path / "x.mz", mz.Packed(tree, {}, mz.identity()))
