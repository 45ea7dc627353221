"""Whether a backend computes what the CPU does: laws of every transform, golden files, pack, save and load.

Bits are compared, but for what decodes by a sum (wavelets, cosines, mean neurons): within 8 units in the last place
of the largest weight, as `mz.testing.check_laws` has it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SUMS = (
    "wavelet", "cosines", "best basis", "shared neurons", "chain of three", "low rank", "residual, low rank",
)  # fmt: skip
"""Transforms of `tests/loop/every_transform.py` that decode by a sum."""
ULP = 8


def every_transform() -> tuple[Any, dict[str, mz.Transform]]:
    """Small params and all transforms, from the tests: they need no more than jax, flax, optax and numpy."""
    from tests.loop.every_transform import PARAMS, TRANSFORMS

    return PARAMS, TRANSFORMS


def allowed(name: str) -> int:
    return ULP if name.startswith(SUMS) else 0


def given_to(transform: Any, params: Any) -> dict[str, Any]:
    """Gradients for the scores that want some."""
    return {"grads": jax.tree.map(lambda x: x * x, params)} if "fisher" in repr(transform).lower() else {}


def different(found: Any, wanted: Any, ulp: int) -> str:
    """Where two trees differ by more than `ulp`; empty if nowhere."""
    for (name, a), (_, b) in zip(mz.tree.named_leaves(found), mz.tree.named_leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{name}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        if ulp == 0 and a.tobytes() != b.tobytes():
            return f"{name}: {np.mean(a != b):.2%} of its values"
        if ulp and a.size:
            wide, other = a.astype(np.float64), b.astype(np.float64)
            unit = np.spacing(np.abs(other).max().astype(np.float32)) * (1 if a.dtype.itemsize > 2 else 2**16)
            if np.abs(wide - other).max() > ulp * unit:
                return f"{name}: {np.abs(wide - other).max() / unit:.0f} ulp"
    return ""


def unpacked_on(device: Any, packed: mz.Packed) -> Any:
    """The weights, computed on a device by one program."""
    return jax.device_get(jax.jit(mz.unpack)(mz.to_device(packed.params, device)))


def laws(name: str, params: Any, transform: mz.Transform) -> str:
    """What breaks of the laws; empty if nothing does."""
    try:
        mz.testing.check_laws(
            transform, params, given=given_to(transform, params), steps=2, ulp=allowed(name)
        )
    except AssertionError as error:
        return str(error).splitlines()[0]
    return ""


def like_the_cpu(name: str, params: Any, transform: mz.Transform) -> str:
    """Compress and save here, load, unpack here, on the CPU, and on the host."""
    packed = mz.compress(params, transform, **given_to(transform, params))
    with tempfile.TemporaryDirectory() as folder:
        mz.save(Path(folder) / "model.mz", packed)
        loaded = mz.load(Path(folder) / "model.mz")
    if found := different(loaded.params, packed.params, 0):
        return f"load(save()) differs at {found}"
    here = unpacked_on(jax.devices()[0], loaded)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        there, host = unpacked_on(cpu, loaded), jax.device_get(mz.unpack(loaded))
    for what, other in (("the CPU's program", there), ("NumPy's values", host)):
        if found := different(here, other, allowed(name)):
            return f"unpacked here is not {what}: {found}"
    return ""


def golden(path: Path) -> str:
    """A golden file's weights, unpacked on the device, against their recorded digests."""
    packed = mz.load(path)
    wide = [n for n, x in mz.tree.named_leaves(mz.unpack(packed)) if np.asarray(x).dtype.itemsize == 8]
    if (
        wide
    ):  # JAX would narrow 64-bit numbers on a device: they stay on the host, where no program touches them.
        keep = [name not in wide for name, _ in mz.tree.named_leaves(packed.params, mz.is_packed)]
        treedef = jax.tree.structure(packed.params, is_leaf=mz.is_packed)
        packed = dataclasses.replace(packed, params=mz.tree.select(packed.params, keep, treedef))
    found = unpacked_on(jax.devices()[0], packed)
    with np.load(GOLDEN / "sums.npz") as sums:
        if path.stem in sums:
            return different({"kernel": found["kernel"]}, {"kernel": sums[path.stem]}, ULP)
    expected = json.loads((GOLDEN / "expected.json").read_text())[path.stem]["params"]
    wrong = [name for name, leaf in mz.tree.named_leaves(found) if _digest(leaf) != expected[name]]
    return f"leaves {', '.join(wrong)}" if wrong else ""


def _digest(leaf: Any) -> list[Any]:
    array = np.asarray(leaf)
    return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:32]]


def checks(quick: bool) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Kind, name and check; the cheap and telling ones first."""
    files = sorted(GOLDEN.glob("*.mz"))
    for path in files[::8] if quick else files:
        yield "golden file", path.stem, lambda path=path: golden(path)
    params, transforms = every_transform()
    names = ("quantize", "chain", "wavelet") if quick else tuple(transforms)
    for name in names:
        yield "same bits as the CPU", name, lambda n=name: like_the_cpu(n, params, transforms[n])
    for name in names[:1] if quick else names:
        yield "laws", name, lambda n=name: laws(n, params, transforms[n])


def run_checks(report: Any, deadline: float, quick: bool) -> None:
    """All checks that fit before the deadline (of `time.monotonic`); others are named in a note."""
    passed: dict[str, int] = {}
    failed: dict[str, int] = {}
    left: dict[str, list[str]] = {}
    for kind, name, check in checks(quick):
        if time.monotonic() > deadline:
            left.setdefault(kind, []).append(name)
            continue
        try:
            wrong = check()
        except Exception as error:  # What one transform cannot do here is a finding, and no reason to stop.
            wrong = f"{type(error).__name__}: {error}".splitlines()[0]
        (failed if wrong else passed)[kind] = (failed if wrong else passed).get(kind, 0) + 1
        if wrong:
            report.note(f"{kind}: {name}: {wrong}")
    for kind, names in left.items():
        report.note(f"{kind}: no time was left for {', '.join(names)}")
    kinds = list(dict.fromkeys((*passed, *failed, *left)))
    rows = [[k, passed.get(k, 0), failed.get(k, 0), len(left.get(k, ()))] for k in kinds]
    report.table("Correct on this backend", ["check", "passed", "failed", "no time left"], rows)
    for kind in kinds:
        report.bar(f"{kind}: failures", 0, failed.get(kind, 0))
