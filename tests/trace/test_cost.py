"""FLOPs as XLA counts them, and what it leaves out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from trace_models import MobileNet, ViT

from modelzip_jax.models import language_model, lenet, resnet, vgg
from modelzip_jax.models.bert import SentenceEncoder, SentenceEncoderConfig
from modelzip_jax.trace import cost


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


class Convolutions(nn.Module):
    """Strides, groups, dilation of window and input."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (5, 3), strides=2, feature_group_count=3)(x) if x.shape[-1] % 3 == 1 else x
        x = nn.Conv(12, (3, 3), kernel_dilation=2, feature_group_count=3)(x)
        return nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x)


TOKENS = shape(2, 16, dtype=jnp.int32)
MODELS = {
    "convolutions": (Convolutions(), shape(2, 9, 9, 3)),
    "lenet": (lenet.LeNet5(), shape(2, 28, 28, 1)),
    "vgg19": (vgg.vgg19(), shape(2, 32, 32, 3)),
    "resnet20": (resnet.resnet20(), shape(2, 32, 32, 3)),
    "resnet50": (resnet.resnet50(), shape(1, 64, 64, 3)),
    "mobilenet": (MobileNet(), shape(2, 8, 8, 3)),
    "vit": (ViT(), shape(2, 8, 8, 3)),
    "minilm": (SentenceEncoder(SentenceEncoderConfig(50, 64, 2, 2, 256, 16)), TOKENS, TOKENS),
    "decoder": (language_model.LanguageModel(num_layers=2, scan=False), TOKENS),
}


def init(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA counts FLOPs on CPUs")
@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_xla(name):
    model, *inputs = MODELS[name]
    params = init(model, *inputs)
    found = cost(model.apply, params, *inputs)
    theirs = jax.jit(model.apply).lower(params, *inputs).cost_analysis()["flops"]
    assert found.flops + found.elementwise == pytest.approx(theirs, rel=0.02)
    assert not found.unknown


def test_a_scan_counts_its_body_as_often_as_it_runs():
    scanned, plain = (
        cost(model.apply, init(model, TOKENS), TOKENS)
        for model in (language_model.LanguageModel(num_layers=3, scan=s, remat=s) for s in (True, False))
    )
    assert scanned.flops == plain.flops
    assert scanned.weight_bytes == plain.weight_bytes
    assert scanned.activation_bytes == plain.activation_bytes


def test_padding_is_counted_apart():
    conv = lambda padding: nn.Conv(4, (3, 3), padding=padding, use_bias=False)  # noqa: E731
    x = shape(1, 8, 8, 2)
    valid, same = (cost(m.apply, init(m, x), x) for m in (conv("VALID"), conv("SAME")))
    assert valid.flops == valid.flops_padded == 2 * 36 * 9 * 2 * 4
    assert same.flops_padded == 2 * 64 * 9 * 2 * 4
    assert same.flops == 2 * (3 * 8 - 2) ** 2 * 2 * 4


def test_bytes_and_leaves():
    p = {"q": jnp.ones((4, 3), jnp.bfloat16), "k": jnp.ones((4, 5), jnp.bfloat16)}
    x = jnp.ones((2, 4), jnp.bfloat16)
    found = cost(lambda p, x: x @ jnp.concatenate([p["q"], p["k"]], 1), p, x)
    assert (found.weight_bytes, found.activation_bytes) == (64, 2 * (8 + 16))
    assert found.by_leaf() == {"q": 128, "k": 128}
    (product,) = found.equations
    assert product.leaves == ("q", "k")


def test_branches_and_loops():
    w, x = jnp.ones((8, 8)), jnp.ones((8, 8))

    def model(p, x):
        x = lax.cond(x.sum() > 0, lambda x: x @ p, lambda x: x @ p @ p, x)
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ p, x)

    found = cost(model, w, x)
    assert found.flops == 3 * 2 * 8**3
    assert any("while/body" in path for path in found.uncounted)
    assert {e.trips for e in found.equations if ":cond/" in e.path} == {1}


def test_what_cannot_be_counted_is_listed():
    found = cost(lambda p, x: jnp.fft.fft(x @ p), jnp.ones((8, 8)), jnp.ones((8, 8)))
    assert found.flops == 2 * 8**3
    (path,) = found.unknown
    assert path.endswith(":fft")
