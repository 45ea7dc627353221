"""Shared by all tests."""

import zlib

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    yield
    # Thousands of programs in memory make everything slower; `make test` finds those it needs again on disk.
    jax.clear_caches()


@pytest.fixture(autouse=True)
def own_numbers(request, monkeypatch):
    """A test's random numbers are its own: those of a module's generator would depend on what ran before."""
    if hasattr(request.module, "RNG"):
        seed = zlib.crc32(request.node.name.encode())
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(seed))
