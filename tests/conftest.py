"""Shared by all tests."""

import jax
import pytest

# Most of these folders' time is XLA's, and nothing in them needs fast code. The laws, the coder and rounding are
# tested as they are compiled for users, and the sentence encoder computes much.
QUICK = {"evaluation", "masking", "models", "sharing", "trace", "training", "wavelets"}
OPTIMIZED = {"test_sentence_encoder.py"}
QUICK_TOO = {"test_activations.py", "test_pages.py"}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    before = jax.config.read("jax_disable_most_optimizations")
    folder, name = request.path.parent.name, request.path.name
    quick = name in QUICK_TOO or (folder in QUICK and name not in OPTIMIZED)
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    # Thousands of programs in memory make everything slower; `make test` finds those it needs again on disk.
    jax.clear_caches()
