"""VGG19 within a million parameters, stage by stage: what compression surveys describe in words.

    dense → active → shrunk → recovered → sparse → quantized → tuned → table

Each stage reads files of earlier ones and leaves its own, so that any of them can be looked at, and gone on from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.atomic import atomic_file
from modelzip_jax.evaluation.pages.page_building import html_report
from modelzip_jax.examples.example_table import table_rows
from modelzip_jax.examples.filter_visits import parameter_count, visit_filters
from modelzip_jax.examples.stage_records import ExampleStage, write_json
from modelzip_jax.examples.vgg19_sizes import FULL_PARAMETERS
from modelzip_jax.examples.weight_reach import within_reach
from modelzip_jax.models import create
from modelzip_jax.training import experiment
from modelzip_jax.training.calibrating_runs import run_calibration
from modelzip_jax.training.config import base
from modelzip_jax.tree import PyTree

__all__ = ["Vgg19Example"]

TRAINED = ("model.mz", "result.json")
IN_TABLE = ("dense", "recovered", "sparse", "quantized", "tuned")


class Vgg19Example:
    """The stages of one run: `run_stages(Vgg19Example(config, folder).stages(), ...)`.

    config: of `vgg19_settings`. folder: of the run. quiet: without progress bars.
    """

    def __init__(self, config: Any, folder: Path, quiet: bool = False):
        self.config, self.folder, self.quiet = config, folder, quiet
        self.own = config.compress

    def stages(self) -> list[ExampleStage]:
        """In order."""
        dense, small, sparse = "dense/model.mz", "recovered/model.mz", "sparse/model.mz"
        shrunk = ("shrunk/model.mz", "shrunk/visits.json")
        return [
            ExampleStage("dense", "the float network is trained", self.dense, (), TRAINED),
            ExampleStage("active", "its activations are measured", self.active, (dense,), ("activity.json",)),
            ExampleStage(
                "shrunk", "convolutions are visited, and filters leave", self.shrunk,
                (dense, "active/activity.json"), ("model.mz", "visits.json"),
            ),
            ExampleStage("recovered", "what is left is trained", self.recovered, shrunk, TRAINED),
            ExampleStage("sparse", "layers become sparse", self.sparse, (small,), (*TRAINED, "activity.json")),
            ExampleStage(
                "quantized", "weights are quantized, means corrected", self.quantized,
                (sparse, "sparse/activity.json"), ("model.mz", "result.json"),
            ),
            ExampleStage("tuned", "the file is trained further", self.tuned, ("quantized/model.mz",), TRAINED),
            ExampleStage(
                "table", "all of it is measured", self.table,
                tuple(f"{name}/{file}" for name in IN_TABLE for file in TRAINED),
                ("table.json", "report.html"),
            ),
        ]  # fmt: skip

    def dense(self) -> None:
        """The float network: what `modelzip train` does with the same config."""
        self._train("dense", self._training())

    def active(self) -> None:
        """How sparse the activations of each layer are."""
        write_json(self.folder / "active/activity.json", _plain(self._measured("dense")))

    def shrunk(self) -> None:
        """Whole filters leave, until the parameters are within the budget."""
        own, packed = self.own, mz.load(self.folder / "dense/model.mz")
        variables = {"params": mz.unpack(packed), **packed.variables}
        found = _sparsity(json.loads((self.folder / "active/activity.json").read_text()))
        smaller, visits = visit_filters(
            self._model().apply, variables, self._batches("dense")[0][:1], found,
            max_params=own.parameters * parameter_count(variables["params"]) // FULL_PARAMETERS,
            order=own.order, keep=own.fewest, round_to=own.round_to,
        )  # fmt: skip
        mz.save(self.folder / "shrunk/model.mz", _stored(smaller))
        write_json(self.folder / "shrunk/visits.json", [visit._asdict() for visit in visits])

    def recovered(self) -> None:
        """The shrunk network is trained."""
        self._train("recovered", self._training(self.own.recovering, "shrunk"))

    def sparse(self) -> None:
        """Layers of sparse activations lose weights while they are trained, and become sparse matrices."""
        found, own = self._measured("recovered"), self.own
        write_json(self.folder / "sparse/activity.json", _plain(found))
        config = self._training(own.thinning, "recovered")
        last = experiment.build(config).steps * 2 // 3
        rising = mz.schedules.cubic(own.sparsity, begin=0, end=max(last, 1))
        pruning = mz.prune(sparsity=rising, allocation=self._thinned(found), every=max(last // 20, 1))
        self._train("sparse", config, mz.only("**/kernel", pruning))

    def quantized(self) -> None:
        """Weights within a reach, quantized with an offset; means of outputs are corrected; stored."""
        own, packed = self.own, mz.load(self.folder / "sparse/model.mz")
        variables = within_reach({"params": mz.unpack(packed), **packed.variables}, self.top)
        found = _sparsity(json.loads((self.folder / "sparse/activity.json").read_text()))
        transform = mz.only("**/kernel", mz.chain(
            # The same weights as before are zero: none is smaller.
            mz.prune(sparsity=own.sparsity, allocation=self._thinned(found)),
            mz.quantize(
                own.bits, granularity="tensor", range=mz.ranges.fixed(-self.top, self.top), offset=True
            ),
        ))  # fmt: skip
        coarse = {**variables, "params": mz.decoded(variables["params"], transform)}
        corrected = mz.rewrites.correct_bias(
            self._model(small=True).apply, variables, coarse, self._batches("recovered")
        ).params
        # Kernels as before they were rounded, so that they are rounded as before; all else as it was corrected.
        params = mz.tree.map_named(
            lambda name, x, y: x if name.endswith("kernel") else y, variables["params"], corrected["params"]
        )
        stats = {"batch_stats": corrected["batch_stats"]}
        packed = mz.compress(params, transform, variables=stats)
        size = mz.save(self.folder / "quantized/model.mz", packed).total
        numbers = experiment.split_numbers(experiment.build(self._training(start="quantized")), packed)
        write_json(self.folder / "quantized/result.json", {"file_bytes": size, **numbers})

    def tuned(self) -> None:
        """Training goes on from the file, with moving averages of chosen layers, which are what is stored."""
        own, config = self.own, self._training(self.own.tuning, "quantized")
        config.optimizer.average, config.optimizer.averaged = own.average, own.averaged
        self._train("tuned", config, mz.load(self.folder / "quantized/model.mz").transform)

    def table(self) -> None:
        """One table of all that was stored on the way, and the page of the last file."""
        sparse = mz.load(self.folder / "sparse/model.mz")
        before = within_reach({"params": mz.unpack(sparse), **sparse.variables}, self.top)
        page = html_report(
            mz.load(self.folder / "tuned/model.mz"),
            title=f"{self.title}, compressed",
            against=before["params"],
        )
        with atomic_file(self.folder / "table/report.html") as file:
            file.write(page.encode())
        rows = table_rows(self.folder, IN_TABLE)
        write_json(self.folder / "table/table.json", {"title": self.title, "rows": rows})

    @property
    def top(self) -> float:
        """The largest weight there may be: the smallest lies a step beyond its negative, at -reach."""
        reach: float = self.own.reach * (1.0 - 2.0 ** (1 - self.own.bits))
        return reach

    @property
    def title(self) -> str:
        """The network and its data, in words."""
        width, data = self.config.model.options.width, self.config.data.name
        return f"VGG19 of {width:g} of the width, {data}" if width != 1.0 else f"VGG19, {data}"

    def _training(self, part: Any = None, start: str = "") -> Any:
        """The config of one of the trainings: of the float network, or of a part and the stage that it starts from."""
        config = base()
        config.update({name: x for name, x in self.config.to_dict().items() if name != "compress"})
        if start:
            config.start = str(self.folder / start / "model.mz")
            config.model.options = {**config.model.options.to_dict(), "channels": self._channels()}
        if part is not None:
            config.epochs, config.steps, config.optimizer.schedule.peak = part.epochs, part.steps, part.peak
        return config

    def _train(self, name: str, config: Any, transform: mz.Transform | None = None) -> None:
        experiment.run(config, self.folder / name, transform, quiet=self.quiet)

    def _channels(self) -> tuple[int, ...]:
        """Of each convolution, once filters have left."""
        visits = json.loads((self.folder / "shrunk/visits.json").read_text())
        kept = {int(visit["leaf"].split("/")[0].removeprefix("Conv_")): visit["kept"] for visit in visits}
        return tuple(kept[place] for place in sorted(kept))

    def _model(self, small: bool = False) -> Any:
        options = self.config.model.options.to_dict()
        if small:
            options["channels"] = self._channels()
        return create(self.config.model.name, **options)

    def _thinned(self, found: trace.Sparsity) -> mz.allocation.Allocation:
        return mz.allocation.by_activation(found, self.own.limit or 1.0 - found.zeros)

    def _batches(self, name: str) -> list[Any]:
        return run_calibration(self.folder / name, self.own.calibration)[1]

    def _measured(self, name: str) -> trace.Sparsity:
        apply_fn, batches = run_calibration(self.folder / name, self.own.calibration)
        return trace.activation_sparsity(
            apply_fn, mz.unpack(mz.load(self.folder / name / "model.mz")), batches
        )


def _plain(found: trace.Sparsity) -> list[dict[str, Any]]:
    """What `_sparsity` reads."""
    return [
        {
            "name": layer.name,
            "zeros": layer.zeros.tolist(),
            "total": layer.total.tolist(),
            "count": layer.count,
        }
        for layer in found.layers
    ]


def _sparsity(plain: Sequence[dict[str, Any]]) -> trace.Sparsity:
    return trace.Sparsity(tuple(
        trace.LayerSparsity(each["name"], np.array(each["total"]), np.array(each["zeros"]), each["count"])
        for each in plain
    ))  # fmt: skip


def _stored(variables: PyTree) -> mz.Packed:
    """Variables as a file holds them that loses nothing."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return mz.compress(variables["params"], mz.identity(), variables=rest)
