"""The laws that every transform obeys, as one call for ours and for a user's own."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from modelzip_jax import packing
from modelzip_jax import tree as trees
from modelzip_jax.chaining import Chain, chain
from modelzip_jax.combinator import Combinator, Selected, check_transform, ends, selected, selects, support_of
from modelzip_jax.errors import ModelzipError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.linear import Linear
from modelzip_jax.loop.reading import start
from modelzip_jax.loop.states import wrap_states
from modelzip_jax.loop.wrapping import wrap
from modelzip_jax.packed import is_packed
from modelzip_jax.partitioning import Partition, only, partition
from modelzip_jax.recipe import from_plain, opaque_fields, to_plain
from modelzip_jax.residual_sums import Residual
from modelzip_jax.testing.comparison import Case, host, spacing
from modelzip_jax.transform import Encoded, Transform, identity, rate
from modelzip_jax.tree import PyTree

__all__ = ["SUMS_ULP", "check_laws"]

SUMS_ULP = 16
"""What two programs' weights may differ by where decoding is a sum, in units in the last place of a leaf's largest
magnitude: wavelets, cosines, factors. Each is within half of that of the exact sum."""


def check_laws(
    transform: Transform,
    params: PyTree,
    *,
    given: Mapping[str, Any] | None = None,
    steps: int = 3,
    key: jax.Array | None = None,
    ulp: int = 0,
) -> None:
    """Checks the laws of transforms for one tree: at init, after a few training steps, and resumed.

    0. `init` and `decode` change no input, repeat themselves, and give finite weights of the params'
       shapes and dtypes.
    1. `unpack(pack(...)) == decode(...)`, eager and under `jit`.
    2. `load(save(packed))` is `packed` again: structure, dtypes, bits, recipe, step.
    3. What is resumed decodes to what was packed, has the structure of a fresh start, zero offsets and
       the same masks, and takes another training step, in which weights under a mask stay zero.
    4. Laws 1 and 3 hold inside `chain`, `only` and `partition`; zeros pruned before it survive.
    5. A training step traces once, also from a resumed state, and all of it can be mapped by `vmap`.
    6. `nbytes` counts every array, and the packed model is no larger than the dense one unless the
       transform's own rate says so.

    Args:
      transform: the transform.
      params: a tree of arrays, all finite; keep it small, as several programs are compiled for it.
      given: what `init` reads beside the weights, as in `mz.wrap`: `stats`, `scores`, `key` and the like.
      steps: training steps with random gradients, at least 2.
      key: of the random gradients; `jax.random.key(0)` if None.
      ulp: for transforms whose decoding is a sum (wavelets, low rank): the difference to allow, in
        units in the last place of a leaf's largest magnitude; `SUMS_ULP` holds for ours. 0 means bit for bit.

    Raises:
      AssertionError: a law is broken; the message says which one, at which leaf, and what differs.

    >>> import modelzip_jax as mz
    >>> check_laws(mz.prune(sparsity=0.5), {"w": jnp.arange(1.0, 9.0)})
    """
    if steps < 2:
        raise ValueError(f"check_laws() takes at least 2 training steps, not {steps}")
    check_transform(transform, "check_laws()")
    _check_methods(transform)
    check_float_params(params, "check_laws()")
    params = jax.tree.map(np.asarray, trees.plain(params))
    key = jax.random.key(0) if key is None else key
    given = given or {}
    loop = _Loop(transform, jax.tree.map(jnp.asarray, params), given, key)
    begun = Case(transform, params, _init(transform, params, given), given, ulp, "at init")
    _check_encoding(begun)
    for part in _linear_parts(transform):
        _check_inverse(begun, part)
    trained = begun._replace(encoded=_check_training(loop, steps, ulp), when=f"after {steps} training steps")
    for case in (begun, trained):
        packed = _check_unpack(case)
        _check_file(case, packed)
        _check_resume(case, packed)
        _check_sizes(case, packed)
    _check_next_step(trained, loop)
    _check_chains(begun)
    _check_vmap(begun, trained)


def _check_methods(transform: Transform) -> None:
    """Names a method that is missing beside its counterpart."""
    kind = type(transform)
    if isinstance(transform, Combinator):
        return
    overridden = {name: getattr(kind, name) is not getattr(Transform, name) for name in ("pack", "resume")}
    for name, other in (("pack", "resume"), ("resume", "pack")):
        if overridden[name] and not overridden[other]:
            raise AssertionError(f"{kind.__name__} defines {name}() and not its inverse, {other}()")
    if getattr(transform, "terminal", False) and not overridden["pack"]:
        raise AssertionError(f"{kind.__name__} makes symbols and defines no pack()")


def _init(transform: Transform, params: PyTree, given: Mapping[str, Any]) -> Encoded:
    weights, context, _ = _chosen(transform, params, given)
    return transform.init(weights, context)


def _chosen(transform: Transform, params: PyTree, given: Mapping[str, Any]) -> Selected:
    return selected(transform, jax.tree.map(jnp.asarray, params), given, "check_laws()")


def _check_encoding(case: Case) -> None:
    chosen, context, _ = _chosen(case.transform, case.params, case.given)
    before = jax.tree.map(host, (chosen, case.encoded))
    decoded = case.decode()
    case.alike(0, decoded, chosen, "decode changes the shape or dtype")
    relaxed = jax.eval_shape(case.transform.relaxed, case.encoded)
    if jax.tree.map(jnp.shape, relaxed) != jax.tree.map(jnp.shape, chosen):
        case.fail(
            0, "latents that are other arrays than the weights need a mz.Reparametrization with relaxed()"
        )
    for name, leaf in trees.named_leaves(decoded):
        if not np.all(np.isfinite(host(leaf).astype(np.float32))):
            case.fail(0, f"leaf {name!r}: decode gives NaN or infinity")
    case.same(0, case.transform.init(chosen, context), case.encoded, "a second init differs from the first")
    case.same(0, case.decode(), decoded, "a second decode differs from the first")
    case.same(0, (chosen, case.encoded), before, "init or decode changed its input")


def _linear_parts(transform: Transform) -> Iterator[Linear]:
    if isinstance(transform, Linear):
        yield transform
    elif isinstance(transform, Chain | Residual):
        for part in transform.parts:
            yield from _linear_parts(part)
    elif isinstance(transform, Partition):
        for _, part in transform.parts:
            yield from _linear_parts(part)


def _check_inverse(case: Case, part: Linear) -> None:
    """Synthesis inverts analysis where it can: what was decoded once stays as it is when encoded again."""
    chosen, context, _ = _chosen(case.transform, case.params, case.given)
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), chosen)
    try:
        once = part.decode(part.init(weights, context))
        twice = part.decode(part.init(once, context))
    except ModelzipError:  # It takes fewer leaves than the whole does.
        return
    for (name, a), b in zip(trees.named_leaves(once), jax.tree.leaves(twice), strict=True):
        if np.abs(host(a) - host(b)).max(initial=0.0) > 1e-4 * np.abs(host(a)).max(initial=0.0):
            case.fail(
                0, f"leaf {name!r}: synthesis() of {type(part).__name__} does not invert its analysis()"
            )


def _check_unpack(case: Case) -> packing.Packed:
    """Law 1; returns the packed model."""
    decoded, packed = case.decode(), case.pack()
    expected = trees.merge(case.params, decoded)
    unpacked = packing.unpack(packed)
    case.same(1, unpacked, expected, "unpack(pack(...)) is not decode(...)", case.ulp)
    jitted = jax.jit(case.transform.decode)(case.encoded)
    case.same(1, jitted, decoded, "decode under jit is not decode", case.ulp)
    arrays = jax.jit(packing.unpack)(packed)
    case.same(1, arrays, jax.tree.map(jnp.asarray, unpacked), "unpack under jit is not unpack", case.ulp)
    return packed


def _check_file(case: Case, packed: packing.Packed) -> None:
    from modelzip_jax import load, save

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model.mz", packed)
        loaded = load(Path(folder) / "model.mz", like=packing.unpack(packed))
    case.same(2, loaded.params, packed.params, "the loaded model is not the one that was saved")
    recorded = from_plain(to_plain(case.transform))
    if loaded.transform != recorded or (not opaque_fields(recorded) and loaded.transform != case.transform):
        case.fail(2, f"the loaded recipe is {loaded.transform}")
    if loaded.step != packed.step:
        case.fail(2, f"the loaded step is {loaded.step}, not {packed.step}")


def _check_resume(case: Case, packed: packing.Packed, law: int = 3) -> None:
    transform, encoded = packing.resume(packed, case.transform)
    again = case._replace(encoded=encoded, when=f"{case.when}, resumed")
    again.alike(law, again.encoded, case.encoded, "what is resumed")
    unpacked = trees.select(packing.unpack(packed), *_kept(case))
    case.same(law, again.decode(), unpacked, "decode of what is resumed is not unpack(packed)", case.ulp)
    for name, offset in trees.named_leaves(again.encoded.offsets):
        if np.any(host(offset)):
            again.fail(law, f"the offset {name!r} is not zero")
    again.same(law, _masks(again.pack()), _masks(packed), "the mask changed")
    update, told = _update(again), (again.encoded, again.decode())
    again.alike(law, update.eval_shape(*told), again.encoded, "update changes the structure")
    if law == 3 and not transform.moves_latents:
        what = "update() moves latents, which `moves_latents` has to say"
        again.same(law, update(*told).latents, again.encoded.latents, what)


def _update(case: Case) -> Any:
    """`update` at the first step, as a function of what is encoded and the gradients.

    Compiled whole: operation by operation, most of a check's time would go to compiling each.
    """
    context = _chosen(case.transform, case.params, case.given).context.replace(step=jnp.int32(1))
    return jax.jit(lambda encoded, grads: case.transform.update(encoded, context.replace(grads=grads)))


def _kept(case: Case) -> tuple[list[bool], Any]:
    return selects(case.transform, trees.outlines(case.params)), jax.tree.structure(case.params)


def _masks(packed: packing.Packed) -> dict[str, Any]:
    """The mask of each leaf that has one, by the leaf's name."""
    leaves = jax.tree_util.tree_leaves_with_path(packed.params, is_leaf=is_packed)
    return {trees.leaf_name(path): getattr(p, p.mask_field) for path, p in leaves if p.mask_field}


def _check_sizes(case: Case, packed: packing.Packed) -> None:
    arrays = sum(np.asarray(x).nbytes for x in jax.tree.leaves(packed.params))
    if packed.nbytes != arrays:
        case.fail(6, f"nbytes is {packed.nbytes}, but the arrays have {arrays} bytes")
    dense = sum(np.asarray(x).nbytes for x in jax.tree.leaves(case.params))
    if packed.dense_bytes != dense:
        case.fail(6, f"dense_bytes is {packed.dense_bytes}, but the params have {dense} bytes")
    bits = float(rate(case.transform, case.encoded))
    if not (np.isfinite(bits) and bits >= 0.0):
        case.fail(6, f"the rate is {bits} bits")
    encoded = trees.nbytes(case.decode())
    # Half a byte of slack a leaf for bits that fill no word.
    rounding = 64 * len(jax.tree.leaves(case.encoded.latents)) + 0.5 * encoded
    if packed.nbytes > dense and bits / 8 + rounding < encoded:
        case.fail(6, f"{packed.nbytes} packed bytes, {dense} dense, for a rate of {bits / 8:.0f} bytes")


class _Loop:
    """A training loop with random gradients; `traces` counts how often its step was traced."""

    def __init__(self, transform: Transform, params: PyTree, given: Mapping[str, Any], key: jax.Array):
        self.tx = wrap(optax.sgd(0.1), transform, given=given)
        self.params, self.given, self.key, self.traces = params, given, key, 0
        self.step = jax.jit(self._step)

    def _step(self, params: PyTree, opt_state: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        self.traces += 1
        updates, opt_state = self.tx.update(_gradients(params, key), opt_state, params)
        return optax.apply_updates(params, updates), opt_state


def _gradients(params: PyTree, key: jax.Array) -> PyTree:
    """Uniform in ± twice a leaf's mean magnitude, so that steps of 0.1 move many codes and masks."""

    def draw(index: int, x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros_like(x)
        noise = jax.random.uniform(jax.random.fold_in(key, index), x.shape, minval=-2.0, maxval=2.0)
        return (noise * jnp.sum(jnp.abs(x).astype(jnp.float32) / max(x.size, 1))).astype(x.dtype)

    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten([draw(index, x) for index, x in enumerate(leaves)])


def _check_training(loop: _Loop, steps: int, ulp: int) -> Encoded:
    """Law 5, and that params land on decoded weights; returns what was trained."""
    params, opt_state = start(loop.tx, loop.params)
    for index in range(steps):
        before = params
        params, opt_state = loop.step(params, opt_state, jax.random.fold_in(loop.key, index))
        _check_landing(_case(loop, params, opt_state, ulp, f"at step {index + 1}"), before)
    case = _case(loop, params, opt_state, ulp, f"after {steps} steps")
    if loop.traces != 1:
        case.fail(5, f"the training step was traced {loop.traces} times; its state changes shape or dtype")
    return case.encoded


def _case(loop: _Loop, params: PyTree, opt_state: PyTree, ulp: int, when: str) -> Case:
    state = wrap_states(opt_state)[0]
    return Case(state.transform.value, params, state.encoded, loop.given, ulp, when)


def _check_landing(case: Case, before: PyTree) -> None:
    """Params are the decoded weights within one ulp of the larger of old and new, zeros exactly."""
    exact = trees.merge(case.params, case.decode())
    rows = zip(trees.named_leaves(case.params), *map(jax.tree.leaves, (exact, before)), strict=True)
    for (name, landed), new, old in rows:
        if not jnp.issubdtype(landed.dtype, jnp.floating):
            continue
        found, wanted, was = (host(x).astype(np.float64) for x in (landed, new, old))
        unit = spacing(np.maximum(np.abs(wanted), np.abs(was)), landed.dtype)
        slack = case.ulp * spacing(np.max(np.abs(wanted), initial=0.0), landed.dtype)
        if np.any(np.abs(found - wanted) > unit + slack):
            case.fail(1, f"leaf {name!r}: the params are not on the decoded weights within one ulp")
        if not case.ulp and np.any((wanted == 0) & (found != 0)):
            case.fail(1, f"leaf {name!r}: a decoded weight is zero and the param is not")


def _check_next_step(case: Case, loop: _Loop) -> None:
    packed = dataclasses.replace(case._replace(params=loop.params).pack(), step=3)
    tx = wrap(optax.sgd(0.1), case.transform, given=case.given, resume=packed)
    params, opt_state = start(tx, packing.unpack(packed))
    case = _case(loop, params, opt_state, case.ulp, "resumed")
    if int(wrap_states(opt_state)[0].step) != packed.step:
        case.fail(3, "the step counter does not go on from the packed model")
    params, opt_state = loop.step(params, opt_state, loop.key)
    after = _case(loop, params, opt_state, case.ulp, "one step after resuming")
    _check_landing(after, packing.unpack(packed))
    if loop.traces != 1:
        after.fail(5, "the training step was traced again for a resumed state")


def _check_chains(case: Case) -> None:
    for what, variant, reference in _variants(case):
        encoded = _init(variant, case.params, case.given)
        inside = case._replace(transform=variant, encoded=encoded, when=f"in {what}")
        decoded = inside.decode()
        inside.same(4, packing.unpack(inside.pack()), trees.merge(case.params, decoded), "unpack", case.ulp)
        _check_resume(inside, inside.pack(), law=4)
        reference(inside, decoded)


def _variants(case: Case) -> Iterator[tuple[str, Transform, Callable[[Case, PyTree], None]]]:
    """Combinations that contain the transform, and what each has to decode to."""
    from modelzip_jax.masking.pruning import prune

    t, plain, half = case.transform, case.decode(), prune(sparsity=0.5)
    leaves = trees.outlines(case.params)
    keep = selects(t, leaves)
    chosen = tuple(leaf.name for leaf, kept in zip(leaves, keep, strict=True) if kept)

    def equal(inside: Case, decoded: PyTree) -> None:
        for (name, a), b in zip(trees.named_leaves(plain), jax.tree.leaves(decoded), strict=False):
            inside.same(4, {name: b}, {name: a}, "decodes otherwise than alone", case.ulp)

    def zeros(inside: Case, decoded: PyTree) -> None:
        masked = only(chosen, half)
        # Not where the first decodes to zeros: a weight that is kept may be zero itself.
        kept = support_of(masked, _init(masked, case.params, case.given))
        for (name, a), b in zip(trees.named_leaves(kept), jax.tree.leaves(decoded), strict=True):
            if np.any(host(b)[~host(a)]):
                inside.fail(4, f"leaf {name!r}: zeros of the mask are not zero after it")

    if not chosen:
        return
    yield "only", only(chosen, t), equal
    yield "partition", partition({"all": t}, dict.fromkeys(chosen, "all")), equal
    yield "chain after identity", only(chosen, chain(identity(), t)), equal
    if not any(ends(t, leaves)):
        yield "chain before identity", only(chosen, chain(t, identity())), equal
    yield "chain after prune", only(chosen, chain(half, t)), zeros


def _check_vmap(*cases: Case) -> None:
    case = cases[0]._replace(when="under vmap")
    update = _update(case)

    def both(encoded: Encoded, grads: PyTree) -> tuple[PyTree, Encoded]:
        return case.transform.decode(encoded), update(encoded, grads)

    def stack(*x: PyTree) -> PyTree:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *x)

    decoded = [c.decode() for c in cases]
    mapped, updated = jax.jit(jax.vmap(both))(stack(*(c.encoded for c in cases)), stack(*decoded))
    case.same(5, mapped, stack(*decoded), "decode under vmap is not decode", case.ulp)
    case.alike(5, updated, stack(*(c.encoded for c in cases)), "update under vmap")
