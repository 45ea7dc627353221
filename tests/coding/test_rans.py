"""rANS chunks: whatever goes in comes out, and damage is an error, never a crash."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.coding import histograms, rans
from modelzip_jax.errors import FormatError

# One capacity for each number of lanes, so that examples share the compilations.
CAPACITY = rans.Capacity(rows=256, words=1 << 16, tables=4)
quick = settings(deadline=None, max_examples=25)


def segment(seed, length, kind):
    rng = np.random.default_rng(seed)
    if kind == "single":
        return np.full(length, seed % 256, np.uint8)
    if kind == "uniform":
        return rng.integers(0, 256, length, np.uint8)
    if kind == "binary":
        return (rng.random(length) < 0.03).astype(np.uint8)
    return np.clip(np.round(rng.normal(size=length) * 5 + 128), 0, 255).astype(np.uint8)


@st.composite
def chunks(draw, lanes):
    """Segments, their tables and ids; every table covers the segments that use it."""
    longest = min(40 * lanes, 20_000)
    parts = draw(
        st.lists(
            st.builds(
                segment,
                st.integers(0, 2**32 - 1),
                st.one_of(st.integers(0, 3), st.just(lanes), st.integers(0, longest)),
                st.sampled_from(["single", "uniform", "binary", "bell"]),
            ),
            max_size=3,
        )
    )
    ids = [draw(st.integers(0, CAPACITY.tables - 1)) for _ in parts]
    return parts, ids, tables_for(parts, ids)


def tables_for(parts, ids):
    totals = np.zeros((CAPACITY.tables, 256), np.int64)
    for part, index in zip(parts, ids, strict=True):
        totals[index] += histograms.count(part)
    return np.stack([histograms.normalize_counts(total) for total in totals])


def round_trip(parts, ids, tables, lanes, capacity=CAPACITY):
    data = rans.encode(parts, ids, tables, lanes, capacity)
    found = rans.decode(data, [len(part) for part in parts], ids, tables, lanes, capacity)
    assert len(found) == len(parts)
    for one, other in zip(parts, found, strict=True):
        assert other.dtype == np.uint8
        np.testing.assert_array_equal(one, other)
    return data


@pytest.mark.parametrize("lanes", [1, 8, 32, 64, 1024, 4096])
def test_any_segments_come_back(lanes):
    @quick
    @given(chunks(lanes))
    def check(chunk):
        round_trip(*chunk, lanes)

    check()


@pytest.mark.parametrize("lanes", [2, 4, 16, 128, 256, 512, 2048])
def test_every_number_of_lanes(lanes):
    parts = [segment(0, 60 * lanes + 1, "bell"), segment(1, 5, "uniform"), segment(2, 0, "bell")]
    round_trip(parts, [0, 1, 2], tables_for(parts, [0, 1, 2]), lanes)


def test_size_is_the_code_length():
    parts = [segment(0, 300_000, "bell"), segment(1, 100_000, "binary"), segment(2, 65, "uniform")]
    tables = tables_for(parts, [0, 1, 2])
    data = rans.encode(parts, [0, 1, 2], tables, 64)
    bits = sum(
        histograms.code_length(histograms.count(part), table)
        for part, table in zip(parts, tables, strict=False)
    )
    assert (len(data) - 4 * 64 - 4) * 8 <= 1.002 * bits
    assert len(data) * 8 <= 1.005 * bits


def test_blocks_of_rows_give_the_same_bytes(monkeypatch):
    parts = [
        segment(0, 9000, "bell"),
        segment(1, 0, "bell"),
        segment(2, 6401, "binary"),
        segment(3, 70, "uniform"),
    ]
    tables = tables_for(parts, [0, 1, 2, 3])
    whole = rans.encode(parts, [0, 1, 2, 3], tables, 64, CAPACITY)
    for rows in (1, 7, 64, 200):
        monkeypatch.setattr(rans, "_BLOCK", 64 * rows)
        assert rans.encode(parts, [0, 1, 2, 3], tables, 64, CAPACITY) == whole


def test_rare_symbols_are_coded_as_the_first_of_them():
    parts = [segment(0, 5000, "bell"), segment(1, 300, "uniform")]
    rare = np.array([130, 120, 128, 3], np.uint8)
    replaced = np.where(np.isin(parts[0], rare), rare[0], parts[0])
    tables = tables_for([replaced, parts[1]], [2, 0])
    data = rans.encode(parts, [2, 0], tables, 64, CAPACITY, [None, None, rare, None])
    assert data == rans.encode([replaced, parts[1]], [2, 0], tables, 64, CAPACITY)
    with pytest.raises(ValueError, match="no frequency"):
        rans.encode(parts, [2, 0], tables, 64, CAPACITY)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 2**32), st.integers(-1, 1)), min_size=1))
def test_floats_divide_exactly(cases):
    frequencies = np.array([frequency for frequency, _, _ in cases], np.uint32)
    # Near multiples, where a quotient that is rounded would be wrong.
    low = [min(max(n % (f << 20) // f * f + step, 0), (f << 20) - 1) for f, n, step in cases]
    found = rans.kernels._quotient(np.array(low, np.uint32), frequencies)
    np.testing.assert_array_equal(found, np.array(low, np.uint32) // frequencies)


def test_a_single_symbol_costs_nothing():
    parts = [np.full(5000, 7, np.uint8)]
    tables = histograms.normalize_counts(histograms.count(parts[0]))[None]
    assert len(round_trip(parts, [0], tables, 32)) == 4 * 32


def test_no_segments():
    assert len(round_trip([], [], tables_for([], []), 64)) == 4 * 64 + 4
    assert rans.decode(rans.encode([], [], np.zeros((0, 256)), 1), [], [], np.zeros((0, 256)), 1) == []


LANES = 64
PARTS = [segment(3, 3000, "bell"), segment(4, 700, "uniform")]
IDS = [0, 1]
LENGTHS = [3000, 700]


@pytest.fixture(scope="module")
def coded():
    tables = tables_for(PARTS, IDS)
    return rans.encode(PARTS, IDS, tables, LANES, CAPACITY), tables


@quick
@given(st.data())
def test_truncation_is_found(coded, data):
    whole, tables = coded
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(FormatError, match="coded chunk"):
        rans.decode(whole[:cut], LENGTHS, IDS, tables, LANES, CAPACITY)
    with pytest.raises(FormatError, match="coded chunk"):
        rans.decode(whole + b"\0" * (cut % 50 + 1), LENGTHS, IDS, tables, LANES, CAPACITY)


@quick
@given(st.data())
def test_damage_is_an_error_or_at_least_the_right_shape(coded, data):
    whole, tables = coded
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = rans.decode(bytes(broken), LENGTHS, IDS, tables, LANES, CAPACITY)
    except FormatError:
        return
    assert [len(part) for part in found] == LENGTHS


@quick
@given(st.binary(max_size=3000))
def test_foreign_bytes(coded, data):
    _, tables = coded
    with pytest.raises(FormatError, match="coded chunk"):
        rans.decode(data, LENGTHS, IDS, tables, LANES, CAPACITY)


@pytest.mark.parametrize(
    ("lengths", "ids"),
    [
        ([3000], IDS),
        ([3000, -1], IDS),
        ([3000, 700], [0, 4]),
        ([3000, 700], [0, -1]),
        ([2**62, 700], IDS),
        ([2**80, 700], IDS),
        ([3000, 64 * 300], IDS),
        ([3000, 699], IDS),
        ([3000, 800], IDS),
        ([30, 7], IDS),
    ],
)
def test_wrong_sizes_are_found(coded, lengths, ids):
    whole, tables = coded
    for capacity in (CAPACITY, None)[: 2 if max(lengths) > 2**60 else 1]:
        with pytest.raises(FormatError, match="coded chunk"):
            rans.decode(whole, lengths, ids, tables, LANES, capacity)


def test_encode_refuses_bad_input(coded):
    _, tables = coded
    good = np.zeros(5, np.uint8) + 128
    with pytest.raises(ValueError, match="no frequency"):
        rans.encode([np.zeros(5, np.uint8)], [0], tables, LANES, CAPACITY)
    with pytest.raises(ValueError, match="power of two"):
        rans.encode([good], [0], tables, 48, CAPACITY)
    with pytest.raises(ValueError, match="uint8"):
        rans.encode([good.astype(np.int32)], [0], tables, LANES, CAPACITY)
    with pytest.raises(ValueError, match="sum to 4096"):
        rans.encode([good], [0], tables + 1, LANES, CAPACITY)
    with pytest.raises(ValueError, match="shape"):
        rans.encode([good], [0], tables[:, :255], LANES, CAPACITY)
    with pytest.raises(ValueError, match="beyond"):
        rans.encode([np.repeat(good, 2**13)], [0], tables, LANES, CAPACITY)
    with pytest.raises(ValueError, match="too large"):
        rans.encode([np.zeros(1, np.uint8)] * 20_000, [0] * 20_000, tables, 4096)


def test_one_compilation_serves_all_chunks():
    parts = [segment(5, 2000, "bell")]
    tables = tables_for(parts, [0])
    round_trip(parts, [0], tables, LANES)
    before = rans.kernels.decode_rows._cache_size(), rans.kernels.encode_rows._cache_size()
    for length in (0, 1, 64, 999):
        round_trip([parts[0][:length]], [0], tables, LANES)
    after = rans.kernels.decode_rows._cache_size(), rans.kernels.encode_rows._cache_size()
    assert before == after


def test_lanes_follow_the_size():
    lanes = [rans.choose_lanes(size) for size in (0, 10, 1600, 4000, 10**5, 10**6, 10**9)]
    assert lanes == [1, 1, 1, 2, 64, 512, 4096]
    assert rans.choose_lanes(100, symbols=2**22) == 256


def test_the_stored_form_does_not_change():
    parts = [np.frombuffer(b"abracadabra", np.uint8), np.frombuffer(b"aaaabbb", np.uint8)]
    tables = np.stack([histograms.normalize_counts(histograms.count(part)) for part in parts])
    data = rans.encode(parts, [0, 1], tables, 2)
    assert data.hex() == "88a30400b219ff0858ea"
    wide = rans.encode(parts * 30, [0, 1] * 30, tables, 64, CAPACITY)
    assert (len(wide), zlib.crc32(wide)) == (360, 2130278433)
