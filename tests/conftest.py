"""Shared by all tests."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    yield
    # Thousands of programs in memory make everything slower; `make test` finds those it needs again on disk.
    jax.clear_caches()
