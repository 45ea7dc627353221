"""Packed models and arrays as notebooks show them."""

import jax
import numpy as np
import pytest

import modelzip_jax as mz

MODEL = mz.compress(
    {"a<b>": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32), "b": np.ones(3)},
    mz.only("a*", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4))),
)


def test_a_packed_model_shows_the_table_of_inspect():
    text = MODEL._repr_html_()
    row = next(row for row in mz.inspect(MODEL).tensors if row.name == "a<b>")
    assert "a&lt;b&gt;" in text
    assert "a<b>" not in text
    assert row.form in text
    assert f"{row.file_bytes:,}" in text


def test_what_holds_no_arrays_shows_no_table():
    names = jax.tree.map(lambda x: "x", MODEL)
    assert names._repr_html_().startswith("<pre>")


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated")  # In treescope, by newer NumPy.
def test_packed_arrays_show_themselves_in_treescope():
    treescope = pytest.importorskip("treescope")
    leaf = MODEL.params["a<b>"]
    text = treescope.render_to_text(leaf)
    assert "Masked(" in text
    assert "mask + int4 channel, 16×8" in text
    assert "Bits(  # bits, 128, 16 bytes" in text
    assert "Masked(" in treescope.render_to_text(jax.tree.map(lambda x: "x", leaf))
