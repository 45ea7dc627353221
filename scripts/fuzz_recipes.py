"""Random recipes: a typed error, or a transform of registered classes that works or says in words why not.

    python scripts/fuzz_recipes.py --count 10000 [--seed N]

Recipes are those in tests/golden/recipes.json, changed in one to three places. What is built has to come back from
its own plain data, and to encode and decode a small tree (traced only) or refuse with a `ModelzipError`, each within
2 s. Whatever else happens is printed with the recipe, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from fuzz import SECONDS, changed  # noqa: E402

SHAPES = {"a": {"kernel": (8, 4), "bias": (4,)}, "blocks": {"kernel": (2, 6, 4)}}


def known() -> list[Any]:
    """The recipes that are changed."""
    return json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text(encoding="utf-8"))


def fields_in(plain: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every field of a recipe, as the dict that holds it and its name."""
    if isinstance(plain, list):
        for item in plain:
            yield from fields_in(item)
    elif isinstance(plain, dict):
        held = plain.get("fields")
        for name in held if isinstance(held, dict) else ():
            yield held, name
            yield from fields_in(held[name])


def crossed(plain: Any, rng: np.random.Generator, values: dict[str, list[Any]]) -> Any:
    """The recipe with one field as it is elsewhere, or as a neighbouring number: most of these can be built."""
    plain = copy.deepcopy(plain)
    places = list(fields_in(plain))
    if not places:
        return plain
    held, name = places[rng.integers(len(places))]
    value = held[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.4:
        held[name] = (
            value * float(rng.choice([-1, 0, 0.5, 2, 1e3]))
            if rng.random() < 0.3
            else value + int(rng.integers(-2, 3))
        )
    else:
        near = name in values and rng.random() < 0.9
        others = values[name if near else list(values)[rng.integers(len(values))]]
        held[name] = copy.deepcopy(others[rng.integers(len(others))])
    return plain


def mutation(recipes: list[Any], values: dict[str, list[Any]], rng: np.random.Generator) -> Any:
    """One of the recipes with one to three changes."""
    plain = recipes[rng.integers(len(recipes))]
    for _ in range(rng.integers(1, 4)):
        plain = changed(plain, rng, recipes) if rng.random() < 0.3 else crossed(plain, rng, values)
    return plain


def objects(value: Any) -> Iterator[Any]:
    """All that a transform is made of."""
    yield value
    if isinstance(value, tuple):
        for item in value:
            yield from objects(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from objects(getattr(value, field.name))


def fault(plain: Any, encode: bool = True) -> str | None:
    """What is wrong with how a recipe is read; None if nothing. encode: whether to try it on a tree as well."""
    from modelzip_jax.errors import ModelzipError

    start = time.process_time()
    try:
        wrong = _fault(plain, encode)
    except ModelzipError:
        wrong = None
    except BaseException:
        return traceback.format_exc(limit=-4)
    spent = time.process_time() - start
    return f"{spent:.1f} s" if wrong is None and spent > SECONDS else wrong


def _fault(plain: Any, encode: bool) -> str | None:
    from modelzip_jax import recipe
    from modelzip_jax.transform import Transform

    recipe.recorded(plain)
    made = recipe.from_plain(plain)
    foreign = {type(x) for x in objects(made)} - {
        *recipe._classes.values(),
        tuple,
        str,
        int,
        float,
        bool,
        type(None),
    }
    if foreign - {recipe.Opaque}:
        return f"it constructs {foreign}"
    repr(made), hash(made)
    again = recipe.from_plain(recipe.to_plain(made))
    if repr(again) != repr(made):  # NaN is not itself.
        return f"it comes back as {again!r}"
    if encode and isinstance(made, Transform):
        _encode(made)
    return None


def _encode(transform: Any) -> None:
    import jax
    import jax.numpy as jnp

    import modelzip_jax as mz

    params = jax.tree.map(lambda shape: jnp.ones(shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    given = dict.fromkeys(("grads", "scores", "importance"), params)
    jax.eval_shape(lambda tree: mz.decoded(tree, transform, **given), params)


def run(count: int, seed: int, encode: bool = True) -> list[str]:
    """What is wrong with so many recipes, each with its recipe."""
    recipes, rng, found = known(), np.random.default_rng(seed), []
    values: dict[str, list[Any]] = {}
    for held, name in fields_in(recipes):
        values.setdefault(name, []).append(held[name])
    for _ in range(count):
        plain = mutation(recipes, values, rng)
        wrong = fault(plain, encode)
        if wrong:
            found.append(f"{plain!r:.2000}\n{wrong}")
    return found


def main() -> int:
    """The command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = run(options.count, options.seed)
    print(f"{options.count:,} recipes, {len(found)} findings, seed {options.seed}")
    print("\n".join(found[:20]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
