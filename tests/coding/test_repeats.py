"""Tensors, and parts of them, that are alike are stored once."""

import functools
import struct

import numpy as np
import pytest
from page_reader import read

import modelzip_jax as mz
from modelzip_jax.coding import header as headers
from modelzip_jax.coding import streams
from modelzip_jax.coding.reader import Archive
from modelzip_jax.errors import FormatError
from modelzip_jax.evaluation import report

RNG = np.random.default_rng(11)
KERNEL = RNG.normal(size=(90, 80)).astype(np.float32)


def version(path):
    return struct.unpack_from("<8sI", path.read_bytes())[1]


def size(path, params, transform):
    return mz.save(path, mz.compress(params, transform)).total


@pytest.mark.parametrize("transform", [mz.identity(), mz.quantize(5), mz.cluster(16)], ids=str)
def test_a_tied_tensor_takes_next_to_nothing(tmp_path, transform):
    once = size(tmp_path / "one.mz", {"a": KERNEL}, transform)
    params = {"a": KERNEL, "b": KERNEL.copy(), "other": KERNEL[:1]}
    twice = size(tmp_path / "two.mz", params, mz.only(("a", "b"), transform))
    assert twice - once < 400 + KERNEL[:1].nbytes
    assert (version(tmp_path / "one.mz"), version(tmp_path / "two.mz")) == (1, 2)
    loaded = mz.unpack(mz.load(tmp_path / "two.mz"))
    np.testing.assert_array_equal(loaded["a"], loaded["b"])
    np.testing.assert_array_equal(loaded["a"], mz.unpack(mz.load(tmp_path / "one.mz"))["a"])
    np.testing.assert_array_equal(mz.load_tensor(tmp_path / "two.mz", "b").unpack(), loaded["a"])
    _, arrays = read(tmp_path / "two.mz")
    for ours, theirs in zip(arrays, loaded.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_codebook_for_the_model_is_stored_once(tmp_path):
    params = {f"layer{i}": RNG.normal(size=(64, 64)).astype(np.float32) for i in range(8)}
    path = tmp_path / "m.mz"
    mz.save(path, mz.compress(params, mz.cluster(256, granularity="model")))
    with Archive(path) as archive:
        repeated = [p for p in archive.header.plans if p.coding == streams.REPEATED]
    # Of a codebook's four byte planes, those that are not nearly constant.
    assert len(repeated) >= 3 * 7
    assert version(path) == 2


def test_the_report_counts_what_repeats_once(tmp_path):
    path = tmp_path / "m.mz"
    mz.save(path, mz.compress({"a": KERNEL, "b": KERNEL}, mz.quantize(5)))
    first, second = report.tensors(path)
    assert second.file_bytes < 0.05 * first.file_bytes


def test_no_stream_is_repeated_beyond_the_limit(tmp_path):
    path = tmp_path / "m.mz"
    params = {f"{i:03d}": KERNEL[:1] for i in range(streams.MAX_REPEATS + 5)}
    mz.save(path, mz.compress(params, mz.identity()))
    loaded = mz.unpack(mz.load(path))
    assert all(np.array_equal(w, KERNEL[:1]) for w in loaded.values())


def test_streams_of_one_histogram_are_repeated_only_if_they_are_the_same():
    first = RNG.binomial(20, 0.5, 2000).astype(np.uint8)
    other, last = first[::-1].copy(), np.array([3] * 2000, np.uint8)
    empty = np.empty(0, np.uint8)
    leaves = [[first, other], [empty, first.copy()], [last, last], [other, empty]]
    asked = []

    def streams_of(index):
        asked.append(index)
        return iter(leaves[index])

    told = []
    plans = streams.plan_all([functools.partial(streams_of, i) for i in range(4)], told.append)
    assert [plan.back for plan in plans] == [0, 0, 0, 3, 0, 0, 5, 0]
    # A table of three bytes and nothing under it is less than to tell of a repetition.
    assert [plan.coding == streams.REPEATED for plan in plans] == [bool(plan.back) for plan in plans]
    assert told == [0, 1, 2, 3]
    assert asked == [0, 1, 2, 3, 0, 1, 3]


@pytest.mark.parametrize("details", [[[3]], [[0]], [[]], [[1, 2]], []], ids=str)
def test_a_repetition_of_what_is_not_there_is_refused(details):
    specs = [["dense", [0, "uint8", 300], [300]], ["dense", [0, "uint8", 300], [300]]]
    parts = {"a": None, "b": None}, None, 0, 0, specs, bytes([0, streams.REPEATED]), details, []
    with pytest.raises(FormatError):
        headers._parse(list(parts), b"", 10_000, 2, 1 << 30)


def test_a_repetition_has_its_streams_length_and_is_not_of_a_repetition():
    def parse(lengths, details):
        specs = [["dense", [0, "uint8", n], [n]] for n in lengths]
        names = {str(i): None for i in range(len(lengths))}
        codings = bytes([0] + [streams.REPEATED] * (len(lengths) - 1))
        return headers._parse([names, None, 0, 0, specs, codings, details, []], b"", 100_000, 2, 1 << 30)

    assert [p.back for p in parse([300, 300, 300], [[1], [2]]).plans] == [0, 1, 2]
    with pytest.raises(FormatError, match="cannot repeat"):
        parse([300, 200], [[1]])
    with pytest.raises(FormatError, match="cannot repeat"):
        parse([300, 300, 300], [[1], [1]])
    with pytest.raises(FormatError, match="more than"):
        parse([300] * 258, [[i + 1] for i in range(257)])
