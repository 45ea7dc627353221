"""Strided views say exactly which elements of a leaf a variable holds."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.trace import uses
from modelzip_jax.trace.usage.views import Misaligned, whole


def elements(view):
    """Flat indices into the leaf of every element of the variable; -1 where there is none of it."""
    shape = [axis.size for axis in view.axes]
    places = [np.full(axis.size, -1) for axis in view.axes]
    coordinates = np.zeros((len(view.shape), *shape), int)
    for position, axis in enumerate(view.axes):
        inside = [np.zeros(axis.length, int) for _ in view.shape]
        number = np.arange(axis.length)
        for factor in reversed(axis.factors):
            step = number % factor.size
            number = number // factor.size
            if factor.axis is not None:
                inside[factor.axis] = inside[factor.axis] + step * factor.step
        places[position][axis.origin : axis.origin + axis.length] = 0
        for leaf_axis, values in enumerate(inside):
            wide = np.zeros(axis.size, int)
            wide[axis.origin : axis.origin + axis.length] = values
            broadcast = [1] * len(shape)
            broadcast[position] = axis.size
            coordinates[leaf_axis] += wide.reshape(broadcast)
    coordinates += np.array(view.starts).reshape(-1, *[1] * len(shape))
    present = np.ones(shape, bool)
    for position, place in enumerate(places):
        broadcast = [1] * len(shape)
        broadcast[position] = len(place)
        present &= place.reshape(broadcast) == 0
    flat = np.ravel_multi_index(
        [np.where(present, c, 0) for c in coordinates], view.shape
    ) if view.shape else np.zeros(shape, int)  # fmt: skip
    return np.where(present, flat, -1)


@st.composite
def steps(draw):
    """A random sequence of rearrangements of a (4, 6, 2) leaf, as functions of an array and a view."""
    array, view = np.arange(48).reshape(4, 6, 2), whole("w", (4, 6, 2))
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["reshape", "transpose", "cut", "reverse", "shift"]))
        shape = array.shape
        try:
            if kind == "reshape":
                size = array.size
                first = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
                rest = size // first
                second = draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
                new = (first, second, rest // second)
                view, array = view.reshape(new), array.reshape(new)
            elif kind == "transpose":
                order = draw(st.permutations(range(array.ndim)))
                view = view.pick(order, [shape[i] for i in order])
                array = array.transpose(order)
            elif kind == "reverse":
                axis = draw(st.integers(0, array.ndim - 1))
                view, array = view.reverse([axis]), np.flip(array, axis)
            elif kind == "shift":
                axis = draw(st.integers(0, array.ndim - 1))
                if array.size < 100:
                    view = view.shifted(axis, 1, shape[axis] + 2)
                    pads = [(0, 0)] * array.ndim
                    pads[axis] = (1, 1)
                    array = np.pad(array, pads, constant_values=-1)
            else:
                axis = draw(st.integers(0, array.ndim - 1))
                start = draw(st.integers(0, shape[axis] - 1))
                limit = draw(st.integers(start + 1, shape[axis]))
                stride = draw(st.integers(1, 2))
                found = view.cut(axis, start, limit, stride)
                index = (slice(None),) * axis + (slice(start, limit, stride),)
                if found is None:
                    assert np.all(array[index] == -1)
                    break
                view, array = found, array[index]
        except Misaligned:
            continue
    return array, view


@settings(max_examples=200, deadline=None)
@given(steps())
def test_a_view_holds_what_numpy_holds(case):
    array, view = case
    np.testing.assert_array_equal(elements(view), array)


def test_splitting_and_merging_are_exact():
    view = whole("w", (5, 12)).reshape((5, 3, 4))
    assert view.axes_of([1]) == view.axes_of([2]) == (1,)
    assert view.reshape((5, 12)) == whole("w", (5, 12))
    assert view.complete
    assert not view.cut(1, 0, 1).complete


def test_what_crosses_axes_is_misaligned():
    turned = whole("w", (4, 6)).pick([1, 0], (6, 4))
    with pytest.raises(Misaligned):
        turned.reshape((4, 6))
    assert turned.reshape((24,)).axes_of([0]) == (0, 1)
    with pytest.raises(Misaligned):
        whole("w", (0, 3)).reshape((3, 0))


def test_a_misaligned_weight_is_derived_and_named():
    (use,) = uses(lambda p, x: x @ p.T.reshape(4, 6), jnp.ones((4, 6)), jnp.ones((2, 4)))
    assert use.through == ("reshape",)
    assert use.contracted == use.output == ()
