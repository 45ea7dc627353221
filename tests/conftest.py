"""Shared by all tests."""

import jax
import pytest

# Most of these folders' time is XLA's, and nothing in them needs fast code. The laws, the coder and rounding are
# tested as they are compiled for users, and the sentence encoder computes much.
QUICK = {"evaluation", "masking", "models", "sharing", "trace", "training", "wavelets"}
OPTIMIZED = {"test_sentence_encoder.py"}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    before = jax.config.read("jax_disable_most_optimizations")
    quick = request.path.parent.name in QUICK and request.path.name not in OPTIMIZED
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
