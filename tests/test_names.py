"""A name means one thing: of classes and functions, of files, and of what stands outside the core."""

import ast
import collections
import inspect
import re
from pathlib import Path

import pytest

import modelzip_jax as mz

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "modelzip_jax"
FILES = {path: ast.parse(path.read_text()) for path in sorted(LIBRARY.rglob("*.py"))}

# Names that stand in several modules and mean one thing in all of them: name -> where, and why.
SAME = {
    "read": ("checkpoints/", "one function for each format, called by checkpoints.read"),
    "write": ("checkpoints/", "one function for each format, called by checkpoints.write"),
    "score": ("evaluation/", "what one example is worth, one function for each task"),
    "evaluate": ("evaluation/|cli/evaluating.py", "every metric of a task; the command prints them"),
    "cross_entropy": ("evaluation/", "the metric, over examples and over tokens"),
    "compress": ("packing.py|cli/compressing.py", "the command is the function, on files"),
    "inspect": ("evaluation/report.py|cli/inspecting.py", "the command prints what the function finds"),
    "MLP": ("models/", "the same network, as Linen and as NNX module"),
    "lenet_300_100": ("models/", "the same network, as Linen and as NNX module"),
    "BasicBlock": ("models/", "the same network, as Linen and as NNX module"),
    "CifarResNet": ("models/", "the same network, as Linen and as NNX module"),
    "resnet20": ("models/", "the same network, as Linen and as NNX module"),
    "static": (
        "packed.py|quantization/activations/",
        "the survey's name of a quantization; a field's, as in equinox",
    ),
    "binary": ("quantization/", "two values, of weights (a grid) and of activations"),
    "ternary": ("quantization/", "three values, of weights (a grid) and of activations"),
    "dorefa": ("quantization/", "the paper's two halves, of weights and of activations"),
}

# The sentinel of leaves that are not selected is the core's: `mz.tree.absent` asks for it.
INTERNAL = {"UNSELECTED"}

ROOMS = [
    mz, mz.activations, mz.allocation, mz.distillation, mz.loop, mz.rewrites, mz.schedules, mz.scores, mz.sensitivity,
    mz.sharing, mz.structures, mz.testing, mz.trace, mz.tree, mz.wavelets,
]  # fmt: skip


def where(path):
    return path.relative_to(LIBRARY).as_posix()


def defined(tree):
    """Public functions, classes and types of a module; not its constants and type variables."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("TypeVar("):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            yield from (name for name in names if re.search("^[A-Z].*[a-z]", name))


def public(tree):
    return [name for name in defined(tree) if not name.startswith("_")]


def places():
    found = collections.defaultdict(list)
    for path, tree in FILES.items():
        for name in public(tree):
            found[name].append(where(path))
    return found


def test_a_class_or_function_has_a_name_of_its_own():
    clashes = {
        name: files
        for name, files in places().items()
        if len(files) > 1 and not (name in SAME and all(re.match(SAME[name][0], file) for file in files))
    }
    assert not clashes


def test_what_may_have_one_name_still_has_it():
    assert [name for name in SAME if len(places()[name]) < 2] == []


def test_no_two_files_have_one_name():
    count = collections.Counter(path.name for path in FILES)
    assert [name for name, n in count.items() if n > 1 and not name.startswith("__")] == []


def test_no_file_is_called_as_its_public_function():
    # Else `from modelzip_jax.room import thing` gives the module or the function, as imports happened to go.
    assert [where(path) for path, tree in FILES.items() if path.stem in public(tree)] == []


def outside_of_the_core():
    for folder in (
        "modelzip_jax/training",
        "modelzip_jax/evaluation",
        "modelzip_jax/cli",
        "tests",
        "benchmarks",
    ):
        yield from ((path, path.read_text()) for path in sorted((ROOT / folder).rglob("*.py")))
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        yield from ((page, block) for block in blocks)


def test_nothing_outside_the_core_needs_what_is_internal_to_it():
    for path, text in outside_of_the_core():
        nodes = list(ast.walk(ast.parse(text)))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not used & INTERNAL, path


def exported():
    """Every public function and class once."""
    for room in ROOMS:
        for name in room.__all__:
            thing = getattr(room, name)
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            if callable(thing) and not is_error and thing.__module__.startswith("modelzip_jax"):
                yield pytest.param(room, name, id=f"{room.__name__}.{name}")


def has_example(room, name):
    thing = getattr(room, name)
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    if text and ">>>" in text and "+SKIP" not in text:
        return True
    # A recorded class stands beside the factory that makes it, whose example is its own.
    factory = re.search(r"^\s*See `(\w+)`", text or "", re.MULTILINE)
    return bool(factory) and inspect.isclass(thing) and ">>>" in getattr(room, factory[1]).__doc__


@pytest.mark.parametrize(("room", "name"), list(exported()))
def test_what_is_public_has_an_example_that_runs(room, name):
    assert has_example(room, name)
