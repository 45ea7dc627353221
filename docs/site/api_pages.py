"""Writes the pages of the API reference, from the `__all__` of what is public: none is written by hand."""

from __future__ import annotations

import collections
import inspect
import shutil
from pathlib import Path

import public_names


def pages() -> dict[str, str]:
    """The text of each generated page by its file's path from the repository's root."""
    by_page = collections.defaultdict(list)
    for name in public_names.names():
        by_page[name.page].append(name)
    found = {f"{page}.rst": _name_page(page, names) for page, names in by_page.items()}
    rooms = public_names.rooms()
    for room, module in rooms.items():
        found[f"docs/api/{room}.md"] = _room_page(room, inspect.getdoc(module) or "")
    found["docs/api/index.md"] = _front_page(rooms)
    return found


def write(root: Path) -> None:
    """Writes those that changed, so that Sphinx reads those again and no others; takes away what is public no more."""
    folder, wanted = root / "docs" / "api", pages()
    for path in folder.glob("*"):
        if path.relative_to(root).as_posix() not in wanted:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(exist_ok=True)
    for name, text in wanted.items():
        path = root / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def first_sentence(thing: object) -> str:
    """What its docstring begins with; that of a constant is its type's, and says nothing."""
    if not (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing) or _jitted(thing)):
        return "A constant" if isinstance(thing, dict | tuple) else "A type"
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".:")


def _jitted(thing: object) -> bool:
    return inspect.isroutine(getattr(thing, "__wrapped__", None))


def _directive(name: public_names.Name) -> str:
    if inspect.isclass(name.thing):
        return "autoexception" if issubclass(name.thing, Exception) else "autoclass"
    return "autofunction" if inspect.isroutine(name.thing) or _jitted(name.thing) else "autodata"


def _name_page(page: str, names: list[public_names.Name]) -> str:
    title = Path(page).name
    room = title.rpartition(".")[0]
    # Not in the tree of pages, which would have hundreds: the room's page leads here, and this line back.
    parts = [":orphan:", "", title, "=" * len(title), "", f"In :doc:`{room} </docs/api/{room}>`.", ""]
    functions_first = sorted(
        names, key=lambda name: (inspect.isclass(name.thing), page != f"docs/api/{name.path}")
    )
    done: set[int] = set()
    for name in functions_first:
        if id(name.thing) in done:
            continue
        done.add(id(name.thing))
        module = public_names.rooms()[name.room].__name__
        parts += [f".. {_directive(name)}:: {module}.{name.name}"]
        parts += ["   :members:", ""] if inspect.isclass(name.thing) else [""]
    return "\n".join(parts)


def _room_page(room: str, text: str) -> str:
    listed = sorted((n for n in public_names.names() if n.room == room), key=lambda n: n.name.lower())
    rows = [f"| [`{name.name}`](/{name.page}.rst) | {_cell(first_sentence(name.thing))} |" for name in listed]
    summary, _, rest = text.partition("\n")
    table = "\n".join(["| | |", "| --- | --- |", *rows])
    return f"# {room}\n\n{summary}\n{rest}\n\n{table}\n"


def _front_page(rooms: dict[str, object]) -> str:
    rows = [
        f"| [`{room}`](/docs/api/{room}.md) | {_cell(first_sentence(module))} |"
        for room, module in rooms.items()
    ]
    listed = "\n".join(f"/docs/api/{room}" for room in rooms)
    return "\n".join(
        [
            "# API reference",
            "",
            "`import modelzip_jax as mz` gives the names of `mz` and of the rooms below it. Every public name has a "
            "page, with shapes, errors and sources, and with examples that run.",
            "",
            "| | |",
            "| --- | --- |",
            *rows,
            "",
            "```{toctree}",
            ":hidden:",
            "",
            listed,
            "```",
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
