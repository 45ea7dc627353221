"""Damaged and hostile files: a typed error that names the place, or the exact arrays; nothing else."""

import re
import tracemalloc

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.coding import header as headers
from modelzip_jax.coding import tables
from modelzip_jax.errors import FormatError, RecipeError

RNG = np.random.default_rng(11)
PLACE = re.compile(r"byte|chunk \d|tensor '|header|names|text that|packed kind")


def model(kind):
    weights = RNG.standard_t(3, size=(60, 40)).astype(np.float32)
    params = {
        "a": {"kernel": weights, "bias": weights[0]},
        "b": (weights[:9].astype(jnp.bfloat16), np.int64(7)),
    }
    transform = {
        "int4": mz.quantize(4),
        "gaps": mz.chain(mz.prune(sparsity=0.97), mz.quantize(8, granularity="group", symmetric=False)),
        "joint": mz.chain(mz.prune(sparsity=0.7), mz.quantize(3)),
        "lossless": mz.identity(),
        "classed": mz.quantize(6, granularity="tensor"),
    }[kind]
    if kind == "classed":  # rows and columns of two scales
        scale = np.resize([1, 7], 90)[:, None] * np.resize([1, 4], 50)
        params["a"]["kernel"] = (RNG.normal(size=(90, 50)) * scale).astype(np.float32)
    return mz.compress(params, mz.only("a/kernel", transform))


KINDS = ["int4", "gaps", "joint", "lossless", "classed"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    found = {}
    for kind in KINDS:
        mz.save(folder / f"{kind}.mz", model(kind))
        found[kind] = folder / f"{kind}.mz", (folder / f"{kind}.mz").read_bytes()
    assert "classed" in repr(parse(found["classed"][1])[0])
    return found


def bits(tree):
    return [(str(np.asarray(x).dtype), np.shape(x), np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def attempt(path, data):
    """The loaded params, or None for an error that says where."""
    path.write_bytes(data)
    try:
        return mz.load(path).params
    except FormatError as error:
        message = str(error)
    except RecipeError:
        return None
    assert str(path) in message
    assert PLACE.search(message.replace(str(path), "")), message
    return None


def damaged(data, rng):
    data = bytearray(data)
    where, how = rng.integers(len(data)), rng.integers(6)
    if how == 0:
        return bytes(data[:where])
    if how == 1:
        data[where] ^= 1 << rng.integers(8)
    elif how == 2:
        data[where : where + rng.integers(1, 9)] = rng.bytes(rng.integers(9))
    elif how == 3:
        data[where:where] = data[where // 2 : where // 2 + rng.integers(1, 99)]
    elif how == 4:
        del data[where : where + rng.integers(1, 99)]
    else:
        # The prelude's sizes and version.
        at = rng.integers(8, headers.PRELUDE.size)
        data[at] = rng.integers(256)
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage(files, tmp_path, kind):
    path, data = files[kind]
    exact = bits(mz.load(path).params)
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(1250):
        loaded = attempt(tmp_path / "x.mz", damaged(data, rng))
        assert loaded is None or bits(loaded) == exact


def parse(data):
    """The header's parts, its tables, and the bytes behind it."""
    _, _, stored, table_size = headers.PRELUDE.unpack_from(data)
    start = headers.PRELUDE.size
    meta = headers._inflate(data[start : start + stored])
    end = start + stored + table_size
    return meta, data[start + stored : end], data[end + headers.CHECKSUM :]


def forge(meta, table=b"", rest=b"", raw=None):
    """A file whose checksums are right, whatever it says."""
    stored = headers._deflate(msgpack.packb(meta) if raw is None else raw)
    version = 1 if meta is None or len(meta) < 9 else headers.VERSIONS[-1]
    head = headers.PRELUDE.pack(headers.MAGIC, version, len(stored), len(table)) + stored + table
    return head + headers.checksum(head) + rest


def chunk(data):
    return headers.checksum(data) + data


NUMBERS = [-1, 0, 1, 2, 3, 7, 12, 13, 255, 2**15, 2**31, 2**40, 2**47, 2**63, -(2**63), 0.5, None, True]
OTHERS = ["", "float64", "S0", "O", "gaps", "bits", "dense", "group", b"\x00", [], {}, [[1]], {"a": None}]


def mutated(item, rng):
    """The same plain data with one thing in it replaced, removed or doubled."""
    if isinstance(item, dict | list) and item and rng.random() < 0.9:
        keys = list(item) if isinstance(item, dict) else list(range(len(item)))
        key = keys[rng.integers(len(keys))]
        copy = item.copy()
        if isinstance(item, list) and rng.random() < 0.1:
            copy[key : key + 1] = [] if rng.random() < 0.5 else [item[key]] * 2
        else:
            copy[key] = mutated(item[key], rng)
        return copy
    if isinstance(item, int) and rng.random() < 0.3:
        return int(np.clip(item, -(2**62), 2**62)) + int(rng.integers(-2, 3))
    if isinstance(item, bytes) and item and rng.random() < 0.8:
        at = rng.integers(len(item))
        return item[:at] + bytes([rng.integers(3)]) + item[at + 1 :]
    choices = NUMBERS if rng.random() < 0.6 else OTHERS
    return choices[rng.integers(len(choices))]


@pytest.mark.parametrize("kind", KINDS)
def test_headers_that_lie(files, tmp_path, kind):
    _, data = files[kind]
    meta, table, rest = parse(data)
    rng = np.random.default_rng(50 + KINDS.index(kind))
    assert attempt(tmp_path / "x.mz", forge(meta, table, rest)) is not None
    tracemalloc.start()
    try:
        for step in range(200):
            # Most of the tries go to the parts that say how large something is.
            part = rng.choice([0, 1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 7])
            lie = meta.copy()
            lie[part] = mutated(meta[part], rng)
            if step % 10 == 0:
                table_lie = bytearray(table)
                table_lie[rng.integers(len(table))] ^= 1 << rng.integers(8)
                attempt(tmp_path / "x.mz", forge(meta, bytes(table_lie), rest))
            loaded = attempt(tmp_path / "x.mz", forge(lie, table, rest))
            if loaded is not None:
                jax.eval_shape(mz.unpack, loaded)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


ONE_SYMBOL = tables.encode_table(np.array([4096] + [0] * 255))
RECIPE = {"type": "Identity", "fields": {}}


def lie(spec, codings, chunks=(), lanes=0, table=b"", rest=b"", escapes=()):
    outline = {"params": {"w": None}, "variables": {}}
    return forge(
        [outline, RECIPE, 0, lanes, [spec], bytes(codings), list(escapes), list(chunks)], table, rest
    )


def states(lanes, groups=1):
    return (65536).to_bytes(4, "little") * lanes + bytes(4 * (groups - 1))


def quantized(count, bits=4, step=(1, 1), grid=("tensor", -1, 1), shape=None):
    shape = [count] if shape is None else shape
    return ["quantized", ["bits", bits, count], [0, "float32", *step], None, 0, shape, "float32", *grid]


def claims():
    """Files of a few bytes that claim terabytes, by name."""
    zeros = (1,) * 4
    floats = ["dense", [0, "float32", 2**40], [2**40]]
    yield "one table", lie(floats, zeros, [2**42, 4], 0, ONE_SYMBOL * 4, chunk(states(1)))
    yield "rows", lie(["bits", 4, 2**25], [1], [2**25, 4], 0, ONE_SYMBOL, chunk(states(1)))
    many = [2**15, 4] * 2**10
    yield "chunks without data", lie(["bits", 4, 2**25], [1], many, 0, ONE_SYMBOL, chunk(states(1)))
    yield "empty chunks", lie(["bits", 4, 1], [1], [1, 4] + [0, 4] * 9, 0, ONE_SYMBOL, chunk(states(1)) * 10)
    yield "raw", lie(floats, [0] * 4)
    yield "no planes", lie(["dense", [0, "S0", 2**40], [2**40]], [])
    yield "void", lie(["dense", [0, "V0", 2**40], [2**40]], [])
    yield "an object", lie(["dense", [0, "O", 2**40], [2**40]], [0] * 8)
    yield "an empty axis", lie(["dense", [0, "float32", 0, 2**40], [2**40]], [0] * 4)
    yield "several factors", lie(["dense", [0, "float32", *[2**20] * 9], [1]], [0] * 4)
    gaps = ["gaps", [0, "uint8", 1], 2**40]
    full = [2**40]
    inside = ["dense", [0, "float32", 0], full]
    yield "gaps", lie(["masked", gaps, inside, full, "float32"], [0] * 5, rest=chunk(b"\x05"))
    joint = ["quantized", ["joint", [0, "uint8", 1], 2**40], [0, "float32", 1, 1], None, 0, [1], "float32",
             "tensor", -1, 1]  # fmt: skip
    yield (
        "joint bits",
        lie(["masked", None, joint, [1], "float32"], [0] * 5, rest=chunk(b"\x05\x00\x00\x80\x3f")),
    )
    side = [0, "uint8", 2**15]
    square = ["quantized", ["classed", ["bits", 4, 4], side, side, [0]], *quantized(4)[2:]]
    data = chunk(states(1)) * 3 + chunk(bytes(4))
    yield "classes", lie(square, [1, 1, 1, 0, 0, 0, 0], [4, 4, *[2**15, 4] * 2], 0, ONE_SYMBOL * 3, data)
    rows = ("group", -1, 2**40)
    yield "group", lie(quantized(4, step=(2, 1), grid=rows), [0] * 5, rest=chunk(bytes(12)))
    yield "axis", lie(quantized(4, grid=("group", 2**40, 1)), [0] * 5, rest=chunk(bytes(8)))
    yield "no groups", lie(quantized(4, grid=("group", -1, 0)), [0] * 5, rest=chunk(bytes(8)))
    yield "low", lie([*quantized(4)[:4], 2**63, *quantized(4)[5:]], [0] * 5, rest=chunk(bytes(8)))
    yield "bits", lie(quantized(4, bits=2**40), [0] * 5, rest=chunk(bytes(8)))
    yield "escapes", lie(["bits", 4, 8], [2], [8, 4], 0, ONE_SYMBOL * 2, chunk(states(1)), [[0, 2**40]])
    yield "shape", lie(["dense", [0, "float32", 1], full], [0] * 4, rest=chunk(bytes(4)))
    yield "deflated zeros", forge(None, raw=bytes(2**27))
    yield "deflated lists", forge(None, raw=b"\xdd\x02\x00\x00\x00" + b"\x90" * 2**25)
    yield "nested", forge([*[0] * 4, nest(900), b"", [], []])
    yield "nested names", forge([nest(900), RECIPE, 0, 0, [], b"", [], []])
    yield "nested recipe", forge([{"params": {}, "variables": {}}, nest(300), 0, 0, [], b"", [], []])
    yield "beyond msgpack", forge(None, raw=b"\x91" * 100_000 + b"\xc0")
    yield "a list as key", forge(None, raw=b"\x98\x81\x90\xc0")
    yield "a time", forge(None, raw=b"\xd6\xff\x00\x00\x00\x00")
    yield "mixed keys", forge([{"params": {}, "variables": {1: None, "a": None}}, RECIPE, 0, 0,
                               [["bits", 4, 0]] * 2, b"\0\0", [], []])  # fmt: skip
    words = ["bits", 4, 4]
    yield "words", lie(words, [1], [4, 204], 0, ONE_SYMBOL, chunk(states(1) + bytes(200)))
    yield "lanes", lie(words, [1], [4, 4], 12, ONE_SYMBOL, chunk(states(1)))
    yield "group sizes", lie(words, [1], [4, 260], 6, ONE_SYMBOL, chunk(states(64) + b"\xff" * 4))


def nest(depth):
    data = None
    for _ in range(depth):
        data = [1, data]
    return data


@pytest.mark.parametrize(("name", "data"), [pytest.param(*c, id=c[0]) for c in claims()])
def test_claims_beyond_the_bytes(tmp_path, name, data):
    tracemalloc.start()
    try:
        assert attempt(tmp_path / "x.mz", data) is None
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_zeros_cost_what_they_should(tmp_path):
    packed = mz.compress({"w": np.zeros((3000, 1000), np.float32)}, mz.quantize(4))
    sizes = mz.save(tmp_path / "z.mz", packed)
    assert sizes.total < 5000
    assert bits(mz.load(tmp_path / "z.mz")) == bits(packed)


def test_a_damaged_tensor_leaves_the_others_readable(tmp_path, monkeypatch):
    from modelzip_jax.coding import writer

    monkeypatch.setattr(writer, "MAX_SYMBOLS", 2000)
    params = {name: RNG.normal(size=(50, 40)).astype(np.float32) for name in "abc"}
    packed = mz.compress(params, mz.quantize(4, granularity="tensor"))
    path = tmp_path / "x.mz"
    mz.save(path, packed)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert bits(mz.load_tensor(path, "a")) == bits(packed.params["a"])
    with pytest.raises(FormatError, match=r"tensor 'params/b': chunk 1 \(bytes \d+ to \d+\) is damaged"):
        mz.load_tensor(path, "b")
