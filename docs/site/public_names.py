"""What is public: the names of `mz.*` and of every package that has an `__all__`, and the page each has."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

import modelzip_jax as mz

# Its names are commands: `docs/command_line.md` has them.
COMMANDS = "modelzip_jax.cli"


@dataclasses.dataclass(frozen=True)
class Name:
    """A public name: `room.name` is how a user writes it, `page` the document that describes it."""

    room: str
    name: str
    page: str
    thing: Any

    @property
    def path(self) -> str:
        return f"{self.room}.{self.name}"


@functools.cache
def rooms() -> dict[str, ModuleType]:
    """The public modules by the name that a user writes: `mz.scores`, or `modelzip_jax.checkpoints`."""
    found = {"mz": mz}
    for name in mz.__all__:
        if inspect.ismodule(getattr(mz, name)):
            found[f"mz.{name}"] = getattr(mz, name)
    known = {module.__name__ for module in found.values()}
    for info in pkgutil.walk_packages(mz.__path__, f"{mz.__name__}."):
        if info.ispkg and info.name not in known and not info.name.startswith(COMMANDS):
            module = importlib.import_module(info.name)
            if getattr(module, "__all__", ()):
                found[info.name] = module
    return found


@functools.cache
def names() -> tuple[Name, ...]:
    """Every public name; one that several rooms export has its page where it comes first.

    A class stands on the page of the function of its name (`Magnitude` with `magnitude`), also because some file
    systems take their pages' names for one.
    """
    pages: dict[int, str] = {}
    found = []
    for room, module in rooms().items():
        exported = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
        spelled = {name.lower(): name for name in sorted(exported)}
        for name in exported:
            thing = getattr(module, name)
            page = f"docs/api/{room}.{spelled[name.lower()]}"
            # Constants may be one object without being one thing.
            page = pages.setdefault(id(thing), page) if callable(thing) else page
            found.append(Name(room, name, page, thing))
    return tuple(found)
