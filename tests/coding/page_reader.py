"""A reader of `.mz` files written from docs/format.md alone: slow, and trusting but for checksums."""

import ast
import hashlib
import math
import re
import struct
import zlib
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import page_bounds

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
DICTIONARY = ast.literal_eval(f"({re.search(r'```python(.*?)```', PAGE, re.S)[1]})")
RAW_CHUNK = 4_194_304


def checked(data, start, size):
    body = data[start + 8 : start + 8 + size]
    assert len(body) == size
    assert hashlib.blake2b(body, digest_size=8).digest() == data[start : start + 8]
    return body


def read_metadata(path):
    """What stands at the end of a header from version 3 on."""
    data = path.read_bytes()
    version, meta_size = struct.unpack_from("<II", data, 8)
    meta = zlib.decompressobj(-15, zdict=DICTIONARY).decompress(data[20 : 20 + meta_size])
    parts = msgpack.unpackb(meta, strict_map_key=False)
    assert len(parts) == (9 if version >= 3 else 8)
    return parts[8] if version >= 3 else {}


def read(path):
    """`(outline, one array a leaf)`."""
    data = path.read_bytes()
    magic, version, meta_size, table_size = struct.unpack_from("<8sIII", data)
    assert magic == b"\x89MZ\r\n\x1a\n\x00"
    assert version in (1, 2, 3, 4, 5)
    end = 20 + meta_size + table_size
    assert hashlib.blake2b(data[:end], digest_size=8).digest() == data[end : end + 8]
    meta = zlib.decompressobj(-15, zdict=DICTIONARY).decompress(data[20 : 20 + meta_size])
    held = msgpack.unpackb(meta, strict_map_key=False)
    outline, _, _, lane_bits, specs, codings, escapes, chunks = held[:8]
    assert len(held) == 8 + (version >= 3)
    page_bounds.check(outline, specs, len(data))
    lengths = [n for spec in specs for n in stream_lengths(spec)]
    table_bits = Bits(data[20 + meta_size : end])
    todo, segments = iter(escapes), []  # (length, table) of each
    for length, coding in zip(lengths, codings, strict=True):
        if coding in (1, 2):
            segments.append((length, read_table(table_bits)))
        if coding > 1:
            detail = next(todo)
        if coding == 2:
            segments.append((detail[1], read_table(table_bits)))
    at, decoded, parts = end + 8, [[] for _ in segments], iter(pieces(segments, chunks[::2]))
    for size in chunks[1::2]:
        inside = next(parts)
        symbols = decode(checked(data, at, size), [(n, segments[k][1]) for k, n in inside], 2**lane_bits)
        for (k, _), part in zip(inside, symbols, strict=True):
            decoded[k].append(part)
        at += 8 + size
    raw = b""
    left = sum(n for n, coding in zip(lengths, codings, strict=True) if coding == 0)
    while left > len(raw):
        size = min(RAW_CHUNK, left - len(raw))
        raw += checked(data, at, size)
        at += 8 + size
    assert at == len(data)
    flat, todo, streams = iter(decoded), iter(escapes), []
    for length, coding in zip(lengths, codings, strict=True):
        if coding == 0:
            streams.append(np.frombuffer(raw[:length], np.uint8))
            raw = raw[length:]
            continue
        if coding > 1:
            detail = next(todo)
        if coding == 3:
            assert version >= 2
            streams.append(streams[len(streams) - detail[0]])
            continue
        stream = np.array([s for part in next(flat) for s in part], np.uint8)
        if coding == 2:
            stream[stream == detail[0]] = [s for part in next(flat) for s in part]
        streams.append(stream)
    source = iter(streams)
    return outline, [value(spec, source) for spec in specs]


def stream_lengths(item):
    if not isinstance(item, list) or not item:
        return []
    if item[0] == 0 and len(item) > 1 and isinstance(item[1], str):
        dtype = np.dtype(jnp.dtype(item[1]))
        parts = 2 if dtype.kind == "c" else 1
        return [math.prod(item[2:]) * parts] * (dtype.itemsize // parts)
    if item[0] == "bits":
        return [item[2] if item[1] > 1 else -(-item[2] // 8)]
    return [n for part in item[1:] for n in stream_lengths(part)] if isinstance(item[0], str) else []


class Bits:
    def __init__(self, data):
        self.bits, self.at = "".join(f"{b:08b}" for b in data), 0

    def take(self, n):
        self.at += n
        return int(self.bits[self.at - n : self.at] or "0", 2)


def read_table(bits):
    first, last = bits.take(8), bits.take(8)
    shift = bits.take(4) if bits.take(1) else 0
    f, length = [0] * 256, 0
    for k in range(last):
        if k == 0:
            length = bits.take(4)
        else:
            zeros = 0
            while not bits.take(1):
                zeros += 1
            u = (1 << zeros | bits.take(zeros)) - 1
            length += -(u + 1) // 2 if u % 2 else u // 2
        f[(first + k) % 256] = (1 << length - 1 | bits.take(length - 1)) << shift if length else 0
    f[(first + last) % 256] = 4096 - sum(f)
    bits.at += -bits.at % 8
    assert f[(first + last) % 256] > 0
    return f


def pieces(segments, counts):
    """For each chunk, `(segment, symbols)` of the parts in it."""
    k, used = 0, 0
    for count in counts:
        inside = []
        while count:
            n = min(count, segments[k][0] - used)
            if n:
                inside.append((k, n))
            count, used = count - n, used + n
            if used == segments[k][0]:
                k, used = k + 1, 0
        yield inside


def decode(data, parts, lanes):
    groups = max(lanes // 32, 1)
    states = list(struct.unpack_from(f"<{lanes}I", data))
    sizes = list(struct.unpack_from(f"<{groups - 1}I", data, 4 * lanes))
    words = np.frombuffer(data, "<u2", offset=4 * (lanes + groups - 1)).tolist()
    sizes.append(len(words) - sum(sizes))
    ends = np.cumsum(sizes).tolist()
    positions = [end - size for end, size in zip(ends, sizes, strict=True)]
    found = []
    for length, f in parts:
        symbol_of = np.repeat(np.arange(256), f).tolist()
        start = (np.cumsum(f) - f).tolist()
        out = []
        for i in range(length):
            lane = i % lanes
            slot = states[lane] % 4096
            s = symbol_of[slot]
            x = f[s] * (states[lane] // 4096) + slot - start[s]
            if x < 65536:
                x = x * 65536 + words[positions[lane % groups]]
                positions[lane % groups] += 1
            states[lane] = x
            out.append(s)
        found.append(out)
    assert set(states) == {65536}
    assert positions == ends
    return found


def is_float(dtype):
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def array(item, source):
    dtype, shape = np.dtype(jnp.dtype(item[1])), item[2:]
    k = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    planes = [next(source) for _ in range(k)]
    word = np.zeros(planes[0].size, f"<u{k}")
    for plane in planes:
        word = (word << np.array(8 * (k > 1), word.dtype)) | plane
    if dtype.kind == "c" or is_float(dtype):
        one, top = word.dtype.type(1), word.dtype.type(8 * k - 1)
        word = word >> one | word << top
    return word.view(dtype).reshape(shape)


def codes(item, source):
    if item[0] == "joint":
        return array(item[1], source)
    if item[0] == "joined":
        return np.concatenate([codes(item[1], source), codes(item[2], source)])
    if item[0] == "classed":
        return classed(item, source)
    if item[0] == "integers":
        return integers(item, source)
    if item[0] == "trellis":
        return trellis(item, source)
    stream = next(source)
    return stream if item[1] > 1 else np.unpackbits(stream, count=item[2], bitorder="little")


def integers(spec, source):
    _, item, wide, low = spec
    found = codes(item, source)
    wide, largest = array(wide, source), (1 << bits_of(item)) - 1
    whole = found.astype(np.int32) + low
    if wide.size:
        assert np.count_nonzero(found == largest) == wide.size
        whole[found == largest] = wide
    return whole


POLYNOMIALS = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24)}


def trellis(spec, source):
    _, item, wide, low, lines, run, states = spec
    assert 1 <= run <= 1024
    h0, h1 = (h >> 1 for h in POLYNOMIALS[states])
    places = np.arange(np.prod(lines)).reshape(lines)
    # What each run meets, one number of all runs after the other.
    met = [places[:, p::run].transpose(0, 2, 1) for p in range(min(run, lines[1]))]
    state = np.zeros((lines[0], lines[2], -(-lines[1] // run)), int)
    by_state = item[0] == "by_state"
    if by_state:
        chain, parts = item[1], item[4]
        lengths = stream_lengths(chain)
        streams = [list(part) for part in np.split(codes(chain, source), np.cumsum(lengths)[:-1])]
        classes = [None if x is None else array(x, source) for x in item[2:4]]
        rows, columns = filled(classes, places.size)
        cell = 2 * (rows[:, None] * (int(columns.max()) + 1) + columns[None]).reshape(-1)
        found = np.zeros(places.size, np.uint8)
    else:
        found = codes(item, source)
    states_met = np.zeros(places.size, int)
    for at in met:
        now = state[..., : at.shape[-1]]
        states_met[at] = now
        if by_state:
            for place in np.sort(at.reshape(-1)):
                found[place] = streams[parts[cell[place] + (states_met[place] & 1)]].pop(0)
        odd = (found[at] + low) & 1
        state[..., : at.shape[-1]] = (now >> 1) ^ np.where(now & 1, h0, 0) ^ np.where(odd, h1, 0)
    assert not by_state or not any(streams)
    wide = array(wide, source)
    index = found.astype(np.int32) + low
    if wide.size:
        escaped = found >= 254
        assert (low, bits_of(item), np.count_nonzero(escaped)) == (-127, 8, wide.size)
        assert ((found[escaped] + wide) & 1).all()
        index[escaped] = wide
    return 2 * index - (states_met & 1) * np.sign(index)


def filled(classes, count):
    rows, columns = classes
    if rows is None and columns is None:
        return np.zeros(1, int), np.zeros(count, int)
    rows = np.zeros(count // len(columns), int) if rows is None else rows.astype(int)
    return rows, np.zeros(count // len(rows), int) if columns is None else columns.astype(int)


def bits_of(item):
    return item[1] if item[0] == "bits" else bits_of(item[1])


def classed(spec, source):
    _, chain, row_class, column_class, parts = spec
    lengths = stream_lengths(chain)
    streams = np.split(codes(chain, source), np.cumsum(lengths)[:-1])
    row_class = None if row_class is None else array(row_class, source)
    column_class = None if column_class is None else array(column_class, source)
    if row_class is None:
        row_class = np.zeros(sum(lengths) // len(column_class), int)
    if column_class is None:
        column_class = np.zeros(sum(lengths) // len(row_class), int)
    found = np.empty((len(row_class), len(column_class)), np.uint8)
    for index, part in enumerate(parts):
        r, c = divmod(index, int(column_class.max()) + 1)
        at = np.ix_(row_class == r, column_class == c)
        here, streams[part] = np.split(streams[part], [found[at].size])
        found[at] = here.reshape(found[at].shape)
    assert not any(len(rest) for rest in streams)
    return found.reshape(-1)


def value(spec, source):
    if spec[0] == "masked":
        return masked(spec, source)
    if spec[0] == "neurons":
        _, inner, index, _, dtype = spec
        vectors = value(inner, source)
        return vectors[..., array(index, source)].astype(jnp.dtype(dtype))
    if spec[0] == "factored":
        _, left, right, layers, shape, dtype = spec
        left = value(left, source)
        return (left if right is None else product(left, value(right, source), layers, shape)).astype(
            jnp.dtype(dtype)
        )
    if spec[0] == "sum":
        _, left, right, _, dtype = spec
        left = value(left, source)
        return (left if right is None else left + value(right, source)).astype(jnp.dtype(dtype))
    return finish(spec, inner_elements(spec, source), source)


def product(left, right, layers, shape):
    count = [shape[axis] for axis in layers]
    rest = [n for axis, n in enumerate(shape) if axis not in layers]
    found = np.zeros([*count, *rest], left.dtype)
    for at in np.ndindex(*count):
        found[at] = np.tensordot(left[at], right[at], 1)
    return np.moveaxis(found, range(len(layers)), layers).reshape(shape)


def inner_elements(spec, source):
    return array(spec[1], source).reshape(-1) if spec[0] == "dense" else codes(spec[1], source)


def finish(spec, elements, source):
    if spec[0] == "dense":
        return elements.reshape(spec[2])
    if spec[0] == "clustered":
        return array(spec[2], source)[elements].reshape(spec[4]).astype(jnp.dtype(spec[5]))
    if spec[0] == "layers":
        _, _, book, _, axes, shape, dtype = spec
        moved = np.moveaxis(elements.reshape(shape), axes, range(len(axes)))
        book = array(book, source)
        found = [entries[own] for entries, own in zip(book, moved.reshape(len(book), -1), strict=True)]
        return np.moveaxis(np.reshape(found, moved.shape), range(len(axes)), axes).astype(jnp.dtype(dtype))
    if spec[0] == "layer_vectors":
        _, _, book, axis, axes, shape, dtype = spec
        book, rest = array(book, source), [n for a, n in enumerate(shape) if a not in axes]
        layers = [
            blocks(entries[own], axis, rest)
            for entries, own in zip(book, elements.reshape(len(book), -1), strict=True)
        ]
        whole = np.reshape(layers, [shape[a] for a in axes] + rest)
        return np.moveaxis(whole, range(len(axes)), axes).astype(jnp.dtype(dtype))
    if spec[0] == "vectors":
        _, _, book, axis, shape, dtype = spec
        return blocks(array(book, source)[elements], axis, shape).astype(jnp.dtype(dtype))
    if spec[0] == "scaled":
        _, _, rows, columns, shape, dtype = spec
        wide = np.float64 if dtype == "float64" else np.float32
        found = elements.reshape(shape).astype(wide) * array(rows, source).astype(wide)
        found = found if columns is None else found * array(columns, source).astype(wide)
        return found.astype(jnp.dtype(dtype))
    if spec[0] == "levels":
        _, _, levels, scale, gain, zero, shape, dtype, granularity, axis, group_size = spec
        levels, scale = array(levels, source), array(scale, source)
        wide = np.float32 if scale.dtype.itemsize == 1 else scale.dtype.type
        scale = scale.astype(wide) * (wide(1) if gain is None else array(gain, source).astype(wide))
        zero = np.zeros_like(scale) if zero is None else array(zero, source)
        q = levels.astype(wide)[elements].reshape(shape)
        return dequantized(q, scale, zero, granularity, axis, group_size).astype(jnp.dtype(dtype))
    _, _, step, zero, low, shape, dtype, granularity, axis, group_size = spec
    step = array(step, source)
    zero = np.zeros_like(step) if zero is None else array(zero, source)
    q = elements.reshape(shape).astype(step.dtype) + step.dtype.type(low)
    return dequantized(q, step, zero, granularity, axis, group_size).astype(jnp.dtype(dtype))


def blocks(entries, axis, shape):
    flat = entries.reshape(-1)[: math.prod(shape)]
    if len(shape) < 2:
        return flat.reshape(shape)
    rest = [n for a, n in enumerate(shape) if a != axis % len(shape)]
    return np.moveaxis(flat.reshape(*rest, shape[axis]), -1, axis)


def dequantized(q, step, zero, granularity, axis, group_size):
    shape = q.shape
    channels = 1 if granularity == "tensor" or len(shape) < 2 else shape[axis]
    moved = q.reshape(-1, 1) if channels == 1 and len(shape) < 2 else np.moveaxis(q, axis, -1)
    if granularity == "tensor":
        step, zero = step.reshape(()), zero.reshape(())
    elif granularity == "group":
        row = np.arange(q.size // channels) // group_size
        step, zero = (x[row].reshape(moved.shape) for x in (step, zero))
    w = (moved - zero) * step
    return w.reshape(shape) if len(shape) < 2 else np.moveaxis(w, -1, axis)


def masked(spec, source):
    _, form, inner, shape, dtype = spec
    if form is None:
        symbols = codes(inner[1], source)
        mask = symbols != 1 << inner[1][2]
        kept = symbols[mask]
    elif form[0] == "gaps":
        mask, at = np.zeros(form[2] + 1, bool), -1
        for run in array(form[1], source).tolist():
            at += run if run == 255 else run + 1
            mask[at] |= run != 255
        mask, kept = mask[:-1], inner_elements(inner, source)
    else:
        mask = codes(form, source) == 1
        kept = inner_elements(inner, source)
    full = np.zeros(mask.size, kept.dtype)
    full[mask] = kept
    return np.where(mask.reshape(shape), finish(inner, full, source), 0).astype(jnp.dtype(dtype))
