"""Five tasks, each by a float network and by a compressed one: `docs/tasks.md` says what they are.

    python -m benchmarks.five_tasks [TASK ...] [--seconds S] [--runs DIR] [--quick]

Networks are trained once, by `configs/`, and kept in `runs/`; the detector's two runs, also what is half done of them,
in DIR. What is measured is kept in `benchmarks/results/five_tasks_cells.json`, so that a run that was stopped, also by
--seconds, goes on where it stood.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.tasks.training import ROOT, trained
from benchmarks.teaching.cells import Cells, OutOfTimeError
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.evaluation.estimate import Estimate
from modelzip_jax.evaluation.task_scores import named_scores, score_changes
from modelzip_jax.models import sentence_encoder
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment
from modelzip_jax.tree import PyTree

FLOAT_BAR, LOST_BAR = 0.85, 0.03
FINE_TUNED = {"epochs": 2.0, "optimizer.schedule.peak": 1e-3}


class Case(NamedTuple):
    """title, network: as the table names them. config: of `configs/`, with `quality`. load: weights and variables."""

    title: str
    network: str
    config: str
    load: Callable[[], tuple[PyTree, PyTree]]


def _kept(name: str, config: str) -> Callable[[], tuple[PyTree, PyTree]]:
    return lambda: tuple(trained(name, config, {}))  # type: ignore[return-value]


CASES = {
    "classification": Case(
        "classification: Fashion-MNIST, 10,000 images", "LeNet-5", "classification",
        _kept("lenet5-fashion_mnist-0", "classification"),
    ),
    "generation": Case(
        "text generation: King James Version, 1,000 windows of 128 bytes", "4-layer decoder", "text_generation",
        _kept("kjv_model", "text_generation"),
    ),
    "search": Case(
        "image search: Fashion-MNIST, 2,000 images among each other", "ResNet-20", "image_search",
        _kept("resnet20-fashion_mnist", "image_search"),
    ),
    "answers": Case(
        "question–answer matching: 500 docstrings", "MiniLM-L6-v2", "question_answering",
        lambda: (jax.tree.map(np.asarray, sentence_encoder.load_minilm()[1]), {}),
    ),
}  # fmt: skip
DETECTION = "detection"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join([*CASES, DETECTION]))
    parser.add_argument("--seconds", type=float, default=math.inf, help="to stop after")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "five_tasks", help="of the detector")
    parser.add_argument("--quick", action="store_true", help="classification alone, written to no file")
    chosen = parser.parse_args()
    runs = chosen.runs
    del chosen.runs  # A record names no folders.
    report = harness.Report("five_tasks", "Five tasks", chosen)
    report.command = "python -m benchmarks.five_tasks"
    cells = Cells(None if chosen.quick else harness.RESULTS / "five_tasks_cells.json", chosen.seconds)
    names = ["classification"] if chosen.quick else chosen.tasks or [*CASES, DETECTION]
    try:
        for name in names:
            _measure(cells, name, runs)
    except OutOfTimeError:
        print("the time is over")
    _tabulate(report, cells)
    report.finish()


def _measure(cells: Cells, name: str, runs: Path) -> None:
    if name == DETECTION:
        cells.get("detection/float", lambda: _detector(runs / "detection", {}, None))
        cells.get("detection/default", lambda: _default_detector(runs / "detection" / "model.mz"))
        small = {**FINE_TUNED, "start": str(runs / "detection" / "model.mz")}
        cells.get(
            "detection/small", lambda: _detector(runs / "detection_small", small, "configs.detection:recipe")
        )
    else:
        cells.get(name, lambda: _compared(CASES[name]))


def _compared(case: Case) -> dict[str, Any]:
    params, variables = case.load()
    packed = mz.compress(params, mz.smallest(), variables=variables or None)
    return _found(case.config, (params, variables), packed)


def _found(config: str, before: tuple[PyTree, PyTree], packed: mz.Packed) -> dict[str, Any]:
    """Bytes, and what the config's `quality` says before and after."""
    quality = importlib.import_module(f"configs.{config}").quality
    params, variables = before

    def scores(params: PyTree) -> Any:
        return named_scores(quality({"params": params, **variables} if variables else params))

    changes = score_changes(scores(jax.tree.map(np.asarray, mz.unpack(packed))), scores(params))
    return {
        "dense_bytes": packed.dense_bytes,
        "file_bytes": file_sizes(packed).total,
        "scores": {
            c.name: {
                part: [float(x), x.standard_error if isinstance(x, Estimate) else math.nan]
                for part, x in (("before", c.before), ("after", c.after), ("change", c.change))
                if x is not None
            }
            for c in changes
        },
    }


def _detector(folder: Path, fields: dict[str, Any], recipe: str | None) -> dict[str, Any]:
    """Trains one, or goes on; its figures are those of the run."""
    result = folder / "result.json"
    if not result.exists():
        changes = [f"--config.{name}={value}" for name, value in fields.items()]
        chosen = configs.override(configs.load_config(ROOT / "configs" / "detection.py"), changes)
        transform = None if recipe is None else importlib.import_module("configs.detection").recipe()
        experiment.run(chosen, folder, transform)
    found = json.loads(result.read_text())
    kernels = [row for row in mz.inspect(folder / "model.mz").tensors if row.name.endswith("kernel")]
    return {
        "dense_bytes": found["dense_bytes"],
        "file_bytes": found["file_bytes"],
        "map_50": [found["test"]["map_50"], found["test"]["map_50_se"]],
        "zeros": sum(row.sparsity * row.size for row in kernels) / sum(row.size for row in kernels),
    }


def _default_detector(model: Path) -> dict[str, Any]:
    packed = mz.load(model)
    params = jax.tree.map(np.asarray, mz.unpack(packed))
    small = mz.compress(params, mz.smallest(), variables=packed.variables)
    return _found("detection", (params, packed.variables), small)


def _tabulate(report: harness.Report, cells: Cells) -> None:
    rows: list[list[Any]] = []
    missing: list[str] = []
    for name, case in CASES.items():
        if name not in cells.found:
            missing.append(name)
            continue
        found = cells.found[name]
        for i, (measure, of) in enumerate(found["scores"].items()):
            head = (
                [case.title, case.network, found["dense_bytes"], found["file_bytes"]] if not i else [""] * 4
            )
            rows.append([*head, measure, *(_said(of[part]) for part in ("before", "after", "change"))])
    rows += _detection_rows(report, cells, missing)
    report.table(
        "Quality of float networks and of compressed ones, ± standard error; changes are paired, example by example, "
        "but for detection. Where nothing else is said, `mz.smallest()` without data has compressed",
        ["task", "network", "bytes", "bytes in the file", "measure", "float", "compressed", "change"],
        rows,
    )
    if missing:
        report.note(f"not finished: {', '.join(missing)}")


def _detection_rows(report: harness.Report, cells: Cells, missing: list[str]) -> list[list[Any]]:
    title, network = "detection: 1,000 scenes of Fashion-MNIST", "center detector"
    if "detection/float" not in cells.found:
        missing.append(DETECTION)
        return []
    rows: list[list[Any]] = []
    base = cells.found["detection/float"]
    report.bar("detection: float mAP@0.5", FLOAT_BAR, base["map_50"][0], least=True)
    if "detection/default" in cells.found:
        found = cells.found["detection/default"]
        of = found["scores"]["map_50"]
        parts = (_said(of[part]) for part in ("before", "after"))
        rows.append(
            [title, network, found["dense_bytes"], found["file_bytes"], "map_50", *parts, of["change"][0]]
        )
    if "detection/small" in cells.found:
        small = cells.found["detection/small"]
        lost = base["map_50"][0] - small["map_50"][0]
        zeros = f"{small['zeros']:.1%} of the kernels' weights are 0"
        report.bar("detection: mAP@0.5 lost by 4 bits and 80 % sparsity", LOST_BAR, lost, remark=zeros)
        rows.append([
            "the same, trained at 4 bits and 80 % sparsity", network, small["dense_bytes"], small["file_bytes"],
            "map_50", _said(base["map_50"]), _said(small["map_50"]), -lost,
        ])  # fmt: skip
    if not rows:
        rows.append([title, network, base["dense_bytes"], "", "map_50", _said(base["map_50"]), "", ""])
    missing += [name for name in ("detection/default", "detection/small") if name not in cells.found]
    return rows


def _said(pair: Sequence[float]) -> str:
    return f"{pair[0]:.4f}" if math.isnan(pair[1]) else f"{pair[0]:.4f} ± {pair[1]:.4f}"


if __name__ == "__main__":
    main()
