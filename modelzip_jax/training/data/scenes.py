"""Scenes with boxes, made of small labelled pictures: object detection without another download."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import DataError

__all__ = ["make_scenes"]

_ONE = (
    1 << 12
)  # of the fixed point in which pictures are resized, so that every machine makes the same scenes
_TRIES, _DRAWS = 8, 6
_FREE = 0.1  # largest overlap, intersection over union, of two objects


def make_scenes(
    pictures: ArrayLike,
    labels: ArrayLike,
    count: int,
    *,
    seed: int,
    size: int = 64,
    lengths: tuple[int, int] = (16, 32),
    most: int = 4,
) -> dict[str, np.ndarray]:
    """Scenes of one to `most` pictures each, at random places and in random sizes, over a noisy background.

    A picture is cut to what is not black and resized, so that its longer side is between `lengths`. Objects hardly
    overlap (intersection over union below 0.1), and their centres lie at least the smaller of `lengths` apart. Equal
    arguments give equal scenes on every machine: the bits are those of `numpy.random.Philox`, all else is integers.

    Args:
      pictures: uint8 `(n, height, width, 1)`, bright on black.
      labels: int `(n,)`, the class of each.
      count: of scenes.
      seed: of everything random.
      size: height and width of a scene in pixels.
      lengths: smallest and largest length of an object's longer side, in pixels.
      most: objects of a scene.

    Returns:
      "inputs", uint8 `(count, size, size, 1)`, and "labels", int32 `(count, most, 5)`: left, top, right and bottom edge
      in pixels (the right one and the bottom one beyond the last pixel), and the class. Rows of no object are −1.

    Raises:
      DataError: pictures of another form, or lengths that do not fit into a scene.

    >>> square = np.zeros((1, 8, 8, 1), np.uint8)
    >>> square[:, 2:6, 2:6] = 255
    >>> scenes = make_scenes(square, [3], 2, seed=0, size=32, lengths=(8, 12), most=2)
    >>> left, top, right, bottom, kind = scenes["labels"][0, 0].tolist()
    >>> right - left == bottom - top, kind, bool((scenes["inputs"][0, top:bottom, left:right] == 255).all())
    (True, 3, True)
    """
    pictures, labels = np.asarray(pictures), np.asarray(labels, np.int32)
    if pictures.ndim != 4 or pictures.shape[3] != 1 or pictures.dtype != np.uint8 or not len(pictures):
        raise DataError(
            f"expected pictures uint8 (n, height, width, 1), got {pictures.dtype} {pictures.shape}"
        )
    if not 1 <= lengths[0] <= lengths[1] <= size or most < 1 or labels.shape != pictures.shape[:1]:
        raise DataError(
            f"lengths {lengths} must rise from 1 to the size {size}, with most {most} at least 1 and a label for each "
            f"picture, got {labels.shape}"
        )
    draws = _whole(seed, 0, (count, most, _DRAWS + 2 * _TRIES))
    scenes = _backgrounds(seed, count, size)
    boxes = np.full((count, most, 5), -1, np.int32)
    for scene, rows, draw in zip(scenes, boxes, draws, strict=True):
        placed = 0
        for own in draw[: 1 + draw[0, 0] % most]:
            index = own[1] % len(pictures)
            length = lengths[0] + int(own[2]) % (lengths[1] - lengths[0] + 1)
            picture = _resized(pictures[index, :, :, 0], length)
            corner = _free_corner(picture.shape, size, rows[:placed], own[_DRAWS:], lengths[0])
            if corner is None:
                continue
            left, top = corner
            height, width = picture.shape
            part = scene[top : top + height, left : left + width]
            # Where the picture is not black it hides what lies behind it.
            np.copyto(part, picture, where=picture > 0)
            rows[placed] = left, top, left + width, top + height, labels[index]
            placed += 1
    return {"inputs": scenes[..., None], "labels": boxes}


def _whole(seed: int, part: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random integers from 0 to 2³¹ − 1; NumPy promises the bits of a seed in all its versions (NEP 19)."""
    bits = np.random.Philox(np.random.SeedSequence([seed, part])).random_raw(int(np.prod(shape)))
    return (bits >> 33).astype(np.int64).reshape(shape)


def _backgrounds(seed: int, count: int, size: int) -> np.ndarray:
    """A level of 0 to 63 in each scene, and noise of up to 32 levels in each pixel."""
    levels = _whole(seed, 1, (count, 1, 1)) % 64
    noise = np.random.Philox(np.random.SeedSequence([seed, 2])).random_raw(-(-count * size * size // 8))
    pixels = noise.astype("<u8").view(np.uint8)[: count * size * size].reshape(count, size, size)
    return levels.astype(np.uint8) + pixels % np.uint8(32)


def _resized(picture: np.ndarray, length: int) -> np.ndarray:
    """The part that is not black, with a longer side of `length` pixels and edges that are not black."""
    rows, columns = (np.flatnonzero(picture.any(axis)) for axis in (1, 0))
    if rows.size:
        picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = max(picture.shape)
    height, width = (max((2 * side * length + longer) // (2 * longer), 1) for side in picture.shape)
    vertical, horizontal = _averaging(picture.shape[0], height), _averaging(picture.shape[1], width)
    made = vertical @ (picture.astype(np.int64) @ horizontal.T)
    levels = ((made + _ONE * _ONE // 2) // (_ONE * _ONE)).astype(np.uint8)
    # A faint edge that was rounded away would leave the box wider than what is seen.
    rows, columns = (np.flatnonzero(levels.any(axis)) for axis in (1, 0))
    return levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else levels


@functools.cache
def _averaging(old: int, new: int) -> np.ndarray:
    """Int64 `(new, old)`, rows with the sum `_ONE`: the share that each old pixel has in a new one's neighbourhood."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(centres[:, None] - (np.arange(old) + 0.5)) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    whole = np.floor(weights / weights.sum(1, keepdims=True) * _ONE).astype(np.int64)
    whole[np.arange(new), weights.argmax(1)] += _ONE - whole.sum(1)
    return whole


def _free_corner(
    shape: tuple[int, ...], size: int, others: np.ndarray, draws: np.ndarray, apart: int
) -> tuple[int, int] | None:
    """Left and top of a place that no other object needs; None if the tries are used up."""
    height, width = shape
    for across, down in draws.reshape(-1, 2):
        left, top = int(across) % (size - width + 1), int(down) % (size - height + 1)
        own = (left, top, left + width, top + height)
        if all(_are_apart(own, other, apart) for other in others[:, :4].tolist()):
            return left, top
    return None


def _are_apart(one: tuple[int, ...], other: list[int], apart: int) -> bool:
    # Twice the distance of the centres is an integer.
    across, down = one[0] + one[2] - other[0] - other[2], one[1] + one[3] - other[1] - other[3]
    if across * across + down * down < 4 * apart * apart:
        return False
    common = max(min(one[2], other[2]) - max(one[0], other[0]), 0) * max(
        min(one[3], other[3]) - max(one[1], other[1]), 0
    )
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common < _FREE * (sum(areas) - common)
