"""What the options of `modelzip compress` ask for: a recipe, so many bits within a range, or the smallest file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import typer

from modelzip_jax.cli.calibration_option import search_of
from modelzip_jax.cli.named_objects import recipe_of
from modelzip_jax.cli.terminal import Meter
from modelzip_jax.decimal_units import human_bytes
from modelzip_jax.errors import TransformError

__all__ = ["ChosenEncoding", "Finder", "finder"]

_RANGED = ("bits", "granularity", "group_size", "axis", "step_range")
"""What rounds within a range, by parameter of the command."""
_CHOSEN = ("sparsity", "allocation", "only", "min_ndim")
_SEARCHED = ("target_bytes", "max_drop", "calibrate")
_BITS, _MIN_NDIM = 6, 2


@dataclasses.dataclass(frozen=True)
class ChosenEncoding:
    """How to compress a checkpoint.

    transform: or a search. encoded: the names of what it encodes. notes: what the user should know.
    data: `(apply_fn, batches)` to calibrate by, or None.
    """

    transform: Any
    encoded: Collection[str]
    notes: list[str]
    data: Any = None

    def told_of(self, meter: Meter, target: Path) -> Any:
        """What `mz.compress` takes; the tries of a search are shown, and kept beside the file that is to be made."""
        from modelzip_jax.smallest.smallest_file import Smallest

        search = self.transform
        if not isinstance(search, Smallest):
            return search
        of = "" if search.bytes is None else f" of {human_bytes(search.bytes)}"

        def tried(number: int, size: int | None, drop: float | None) -> None:
            seen = f"{human_bytes(size)}{of}" if size is not None else f"drop {drop:.3g}"
            meter.restart(f"try {number}: {seen}")

        return dataclasses.replace(search, tried=tried, journal=f"{target}.tries")


Finder = Callable[[Any, dict[str, Any]], ChosenEncoding]
"""From the weights, and the metadata that the file will have, to how they are compressed."""


def finder(context: typer.Context) -> Finder:
    """What looks at the weights once they are read; mistakes in options are told before.

    Raises:
      TransformError, RecipeError: options that are no values, or of which one would be passed over.
    """
    options = context.params
    given = [name for name in options if _is_given(name, context)]
    searched = [name for name in _SEARCHED if name in given]
    if options["recipe"] is not None:
        _refuse_beside(f"--recipe {options['recipe']}", given, (*_RANGED, *_CHOSEN, *_SEARCHED))
        return _by_recipe(options["recipe"])
    _check_choice(options, given)
    ranged = [name for name in _RANGED if name in given]
    if ranged and not searched:
        return _by_bits(options, given)
    _refuse_beside("a search for the smallest file", given, _RANGED)
    return _by_search(options)


def _is_given(name: str, context: typer.Context) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _option(name: str) -> str:
    return "--" + {"step_range": "range"}.get(name, name).replace("_", "-")


def _refuse_beside(what: str, given: list[str], names: tuple[str, ...]) -> None:
    """Options that would be passed over beside what says all that they say."""
    for name in names:
        if name in given:
            raise TransformError(f"{what} is taken instead of {_option(name)}; leave one of them out")


def _check_choice(options: dict[str, Any], given: list[str]) -> None:
    """What every way but a recipe takes: sparsity, and which tensors."""
    sparsity, min_ndim = options["sparsity"], options["min_ndim"]
    if not 0.0 <= sparsity < 1.0:
        share = sparsity / 100
        meant = f"; did you mean {share:g}?" if 1.0 < sparsity < 100.0 else ""
        raise TransformError(f"--sparsity {sparsity:g} must be a share from 0 to below 1{meant}")
    if "allocation" in given and not sparsity:
        raise TransformError("--allocation does nothing without --sparsity")
    if min_ndim is not None and min_ndim < 0:
        raise TransformError(f"--min-ndim {min_ndim} must be 0 or more")


def _pruning(options: dict[str, Any]) -> Any:
    import modelzip_jax as mz

    sparsity = options["sparsity"]
    return mz.prune(sparsity=sparsity, allocation=options["allocation"]) if sparsity else None


def _by_recipe(text: str) -> Finder:
    transform = recipe_of(text)

    def found(tree: Any, metadata: dict[str, Any]) -> ChosenEncoding:
        from modelzip_jax.cli.leaf_choice import (
            encoded_names,
            nothing_encoded,
            refuse_what_needs_data,
            remarks,
        )

        refuse_what_needs_data(transform, tree)
        names = encoded_names(transform, tree)
        least = getattr(transform, "min_ndim", 0)
        return ChosenEncoding(transform, set(names), nothing_encoded(names, least) + remarks(names, tree))

    return found


def _by_bits(options: dict[str, Any], given: list[str]) -> Finder:
    """So many bits a weight within a range, for each tensor, channel or group."""
    import modelzip_jax as mz

    bits = _BITS if options["bits"] is None else options["bits"]
    granularity, only = options["granularity"], options["only"]
    cases = [(name, not bits, "with --bits 0") for name in ("granularity", "axis", "step_range")]
    cases += [
        ("axis", granularity == "tensor", "with --granularity tensor"),
        ("group_size", not bits or granularity != "group", "without --granularity group"),
    ]
    for name, idle, beside in cases:
        if idle and name in given:
            raise TransformError(f"{_option(name)} does nothing {beside}")
    if not 0 <= bits <= 8:
        raise TransformError(f"--bits {bits} must be from 1 to 8, or 0 to keep the weights lossless")
    pruning = _pruning(options)
    parts: list[mz.Transform] = [] if pruning is None else [pruning]
    if bits:
        along: dict[str, Any] = {} if options["axis"] is None else {"axis": options["axis"]}
        along |= {"group_size": options["group_size"]} if granularity == "group" else {}
        parts.append(mz.quantize(bits, granularity=granularity, range=options["step_range"], **along))
    least = _MIN_NDIM if options["min_ndim"] is None else options["min_ndim"]
    asked = mz.only(tuple(only or ["**"]), mz.chain(*parts), min_ndim=least, floating=not only)

    def found(tree: Any, metadata: dict[str, Any]) -> ChosenEncoding:
        from modelzip_jax.cli.leaf_choice import encoded_names, nothing_encoded, remarks, without_nonfinite

        if not parts:  # Lossless on purpose.
            return ChosenEncoding(asked, (), remarks((), tree))
        transform, said = (asked, []) if only else without_nonfinite(asked, tree)
        names = encoded_names(transform, tree)
        return ChosenEncoding(
            transform, set(names), said + nothing_encoded(names, least) + remarks(names, tree)
        )

    return found


def _by_search(options: dict[str, Any]) -> Finder:
    """The smallest file: of a number of bytes, within a drop, or of the quality that is the default."""
    import modelzip_jax as mz

    least, only, target = options["min_ndim"], options["only"], options["target_bytes"]
    if options["calibrate"] is not None and options["sparsity"]:
        raise TransformError("--sparsity goes without --calibrate, where it follows from what errors cost")
    search, data = search_of(target, options["max_drop"], options["calibrate"])
    search = dataclasses.replace(
        search, only=tuple(only or ()), min_ndim=least or 0, before=_pruning(options)
    )

    def found(tree: Any, metadata: dict[str, Any]) -> ChosenEncoding:
        from modelzip_jax.cli.leaf_choice import nothing_encoded, remarks, without_nonfinite

        every = mz.only("**", mz.quantize(), min_ndim=search.min_ndim, floating=True)
        spared, said = (every, []) if only else without_nonfinite(every, tree)
        kept = tuple(name for name, label in spared.labels if label == "lossless")
        chosen = dataclasses.replace(search, keep=kept)
        if target is not None:
            # What is stored beside the model counts as well.
            chosen = dataclasses.replace(chosen, besides=_beside(metadata))
        names = chosen.encoded_names(tree, calibrated=data is not None)
        return ChosenEncoding(chosen, names, said + nothing_encoded(names, None) + remarks(names, tree), data)

    return found


def _beside(metadata: dict[str, Any]) -> int:
    """About how many bytes of a file metadata take, rather more."""
    import numpy as np

    import modelzip_jax as mz
    from modelzip_jax.coding.writer import file_sizes
    from modelzip_jax.metadata import Metadata

    if not metadata:
        return 0
    least = mz.compress({"w": np.zeros(1, np.float32)}, mz.identity())
    told = dataclasses.replace(least, metadata=Metadata(metadata))
    return 16 + file_sizes(told).total - file_sizes(least).total
