"""Stages one after another: each leaves its files, and a record that says what they were made from."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelzip_jax.atomic import atomic_file
from modelzip_jax.errors import ConfigError
from modelzip_jax.naming import nearest_name

__all__ = ["ExampleStage", "claim_settings", "run_stages", "write_json"]

RECORD = "stage.json"


class ExampleStage(NamedTuple):
    """One step of an example.

    name: also of its folder. says: what it does, in a few words. work: writes into the folder of its name, which is
    there. reads: files of earlier stages that it is made from, `"stage/file"`. leaves: the names of the files that it
    leaves for others.
    """

    name: str
    says: str
    work: Callable[[], None]
    reads: tuple[str, ...]
    leaves: tuple[str, ...]


def run_stages(
    stages: Sequence[ExampleStage],
    folder: Path,
    settings: Any,
    until: str = "",
    tell: Callable[[ExampleStage, float | None], None] = lambda stage, seconds: None,
) -> dict[str, float]:
    """Runs the stages whose results are not there, and gives the seconds that each has taken.

    A stage is done when its record is there, was made from files of these digests and these settings, and the files
    that it left have the digests that it names. A stage that was stopped, or whose files are damaged, goes on in its
    folder with what it finds there; one that was made from other files or settings begins anew. A record also has the
    seconds of the run that finished the stage.

    Args:
      stages: in order. folder: of the example. settings: plain data that JSON can hold, the same for all stages.
      until: the name of the last stage to run; all of them if empty.
      tell: called before each stage with None, and behind it with its seconds, 0 if it was done before.

    Raises:
      ConfigError: there is no stage of this name. What a stage raises: its folder stays, those before it are done.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> one = ExampleStage("one", "writes", lambda: write_json(root / "one/n.json", 1), (), ("n.json",))
    >>> seconds = run_stages([one], root, {})
    >>> (root / "one/n.json").read_text(), list(seconds)
    ('1\\n', ['one'])
    """
    names = [stage.name for stage in stages]
    if until and until not in names:
        raise ConfigError(f"there is no stage {until!r}; {nearest_name(until, names)}")
    taken = {}
    for stage in stages:
        tell(stage, None)
        taken[stage.name] = _run(stage, folder, settings)
        tell(stage, taken[stage.name])
        if stage.name == until:
            break
    return taken


def _run(stage: ExampleStage, folder: Path, settings: Any) -> float:
    own, text = folder / stage.name, json.dumps(settings, sort_keys=True)
    made_from = {name: _digest(folder / name) for name in stage.reads}
    made_from["settings"] = hashlib.sha256(text.encode()).hexdigest()
    record = _record(own)
    if record is not None and record.get("made_from") != made_from:
        shutil.rmtree(own)
    elif record is not None and record.get("files") == _digests(own, stage.leaves):
        return 0.0
    own.mkdir(parents=True, exist_ok=True)
    write_json(own / RECORD, {"made_from": made_from})
    began, of_cpu = time.perf_counter(), time.process_time()
    stage.work()
    seconds, of_cpu = time.perf_counter() - began, time.process_time() - of_cpu
    files = _digests(own, stage.leaves)
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(of_cpu, 2)}
    write_json(own / RECORD, {"made_from": made_from, "files": files, **times})
    return seconds


def _record(own: Path) -> dict[str, Any] | None:
    """What a stage says of itself: {} if nobody can read it, None if it has not begun. Finished ones name files."""
    if not (own / RECORD).exists():
        return None
    try:
        found = json.loads((own / RECORD).read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _digests(own: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: _digest(own / name) for name in names if (own / name).is_file()}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Plain data as a file that appears whole or not at all."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def claim_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings into the folder, or checks that they are the ones there.

    Raises:
      ConfigError: the folder cannot be made, or holds an example of other settings, with the names of their fields.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    path, ours = folder / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, ours)
        return
    theirs = json.loads(path.read_text())
    changed = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if changed:
        raise ConfigError(
            f"{folder} holds this example with other settings: {', '.join(changed)} differ; choose another folder, or "
            "remove it to begin anew"
        )
