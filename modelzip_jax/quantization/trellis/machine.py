"""The states of a trellis: which of two quantizers the next number is of, and where its index leads.

Of the integers, quantizer 0 has the even ones and quantizer 1 the odd ones and 0; both are spaced by two, but what one
of them misses the other may have. Index k stands for 2 k in quantizer 0 and for 2 k - sign(k) in quantizer 1. Odd
states are of quantizer 1. From state s index k leads to

    (s >> 1) xor (h0 >> 1 if s is odd) xor (h1 >> 1 if k is odd),

h0 and h1 being Ungerboeck's polynomials. Marcellin & Fischer 1990, doi:10.1109/26.46532; Ungerboeck 1987,
doi:10.1109/MCOM.1987.1093541, table I; the quantizers are those of Versatile Video Coding (Schwarz et al. 2019,
"Hybrid video coding with trellis-coded quantization", doi:10.1109/DCC.2019.00026).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

__all__ = ["POLYNOMIALS", "following", "index_of", "integer_of", "preceding"]

POLYNOMIALS = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24)}
"""h0 and h1, by the number of states."""


def following(state: Any, odd: Any, states: int) -> Any:
    """The state after an index, arrays of integers alike; odd: 1 where the index is, else 0.

    >>> [following(s, odd, 8) for s in range(3) for odd in (0, 1)]
    [0, 2, 5, 7, 1, 3]
    """
    first, second = (h >> 1 for h in POLYNOMIALS[states])
    return (state >> 1) ^ ((state & 1) * first) ^ (odd * second)


@functools.cache
def preceding(states: int) -> np.ndarray:
    """From which state an even index, and from which an odd one, leads to each: int32 `(2, states)`.

    Lower halves of the states are reached from quantizer 0, upper ones from quantizer 1.

    >>> preceding(4).tolist()
    [[0, 2, 1, 3], [2, 0, 3, 1]]
    """
    found = np.empty((2, states), np.int32)
    every = np.arange(states)
    for odd in (0, 1):
        found[odd, following(every, odd, states)] = every
    return found


def integer_of(index: Any, state: Any) -> Any:
    """What indices stand for in a state; arrays of int32, or of what is shorter.

    >>> [[integer_of(k, s) for k in (-2, -1, 0, 1, 2)] for s in (0, 1)]
    [[-4, -2, 0, 2, 4], [-3, -1, 0, 1, 3]]
    """
    return 2 * index - (state & 1) * ((index >> 31) + (index > 0))


def index_of(integer: Any) -> Any:
    """The index of an integer, which of the quantizer that has it is the only one.

    >>> [index_of(n) for n in (-4, -3, -1, 0, 1, 2, 3)]
    [-2, -2, -1, 0, 1, 1, 2]
    """
    return (integer + (integer > 0) * (integer & 1)) >> 1
