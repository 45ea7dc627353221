"""What docs/format.md says that a file may claim, written from the page alone."""

import math

import jax.numpy as jnp
import numpy as np

STATIC = {
    "dense": (None, "shape"), "bits": ("bits", "count"), "vectors": (None, None, "axis", "shape", "dtype"),
    "quantized": (None, None, None, "low", "shape", "dtype", "granularity", "axis", "group_size"),
    "levels": (*[None] * 5, "shape", "dtype", "granularity", "axis", "group_size"),
    "masked": (None, None, "shape", "dtype"), "clustered": (None, None, "zero", "shape", "dtype"),
    "layers": (None, None, "zero", "axes", "shape", "dtype"),
    "layer_vectors": (None, None, "axis", "axes", "shape", "dtype"),
    "linear": (None, "recipe", "map", "shape", "dtype"),
    "neurons": (None, None, "shape", "dtype"), "gaps": (None, "count"), "joint": (None, "bits"),
    "coefficients": (
        None, None, None, "shape", "dtype", "view", "corner", "kind", "filter", "levels", "axes"),
    "factored": (None, None, "layers", "shape", "dtype"), "sum": (None, None, "shape", "dtype"),
    "joined": (None, None), "integers": (None, None, "low"), "scaled": (None, None, None, "shape", "dtype"),
    "classed": (None, None, None, "parts"), "by_state": (None, None, None, "parts"),
    "trellis": (None, None, "low", "lines", "run", "states"),
}  # fmt: skip


class Refused(Exception):
    """A file that claims more than the page allows."""


def check(outline, specs, file_size, limit=None):
    names = list(names_of(outline))
    if len(set(names)) < len(names) or any("\0" in name for name in names):
        raise Refused("names")
    for name, spec in zip(names, specs, strict=True):
        if name.startswith("variables") and spec[0] != "dense":
            raise Refused("a variable")
    limit = (256 << 20) + 1024 * file_size if limit is None else limit
    if sum(map(claim, specs)) + sum(map(len, names)) > limit:
        raise Refused("the limit")


def names_of(node, name=""):
    if node is None:
        yield name
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from names_of(child, f"{name}/{key}" if name else str(key))
    elif isinstance(node, list) and node[0] == 2:
        for key, child in node[2].items():
            boxed = key == "value" and child is None
            yield from names_of(child, name if boxed else f"{name}/{key}" if name else key)
    elif isinstance(node, list):
        for index, child in enumerate(node[1:]):
            yield from names_of(child, f"{name}/{index}" if name else str(index))


def sized(shape):
    if len(shape) > 64 or any(n > 2**40 for n in shape) or math.prod(shape) > 2**40:
        raise Refused("a shape")
    return math.prod(shape)


def claim(spec):
    tag, *items = spec
    if tag not in STATIC:
        raise Refused("a kind")
    total, told = 8192, {}
    for name, item in zip(STATIC[tag], items, strict=True):
        if name is not None:
            told[name] = item
        elif item is not None and item[0] == 0:
            told["itemsize"] = np.dtype(jnp.dtype(item[1])).itemsize
            total += 8192 + sized(item[2:]) * told["itemsize"]
        elif item is not None:
            total += claim(item)
    total += told.get("count", 0)
    if "shape" in told:
        width = max(jnp.dtype(told["dtype"]).itemsize, 4) if "dtype" in told else told["itemsize"]
        total += sized(told["shape"]) * width
    if tag == "trellis":
        total += 24 * sized(told["lines"])
    return total + (
        synthesis(told, items[1] is not None or items[2] is not None) if tag == "coefficients" else 0
    )


def synthesis(told, each):
    view, size = told["view"], told["levels"]
    if not view:
        return 8
    lengths = [view[axis] for axis in told["axes"]]
    matrices = 0
    if told["kind"] == "dct":
        blocks = [min(size, n) for n in lengths]
        if max(blocks) > 4096:
            raise Refused("a block")
        bands, matrices = math.prod(blocks), sum(24 * n * n for n in blocks)
    elif told["kind"] == "packets":
        depths = [min(size, max(n - 1, 0).bit_length()) for n in lengths]
        if max(depths) > 8:
            raise Refused("packets")
        bands = math.prod(min(1 << depth, max(n, 1)) for depth, n in zip(depths, lengths, strict=True))
    else:
        bands = min(size, max(lengths).bit_length()) * len(lengths) ** 2
    if told["kind"] != "wavelet" and bands > (4096 if each else 65536):
        raise Refused("bands")
    return 8 * sized(view) + 1024 * bands + matrices
