"""The benchmark `paper` from end to end, with filled checkpoints in place of published ones.

Its runs are computed in this process, which loads each network once. A worker of each run would
load a gigabyte of networks for two small pictures.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench.matrix import Matrix, parse_matrix, shipped_matrix
from dhr_batch.pipeline.bench.write import write_benchmark
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import config
from dhr_batch.pipeline.planning.plan import Plan, Shard
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.stopping import Stopper
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.encoders import style_transformer
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.tests import filled
from dhr_batch.tests.pipeline.benched import MACHINE
from dhr_batch.tests.pipeline.chromium import Chromium
from dhr_batch.tests.pipeline.typeset import needs_latex, typeset

pytestmark = pytest.mark.slow
# What the stages take instead, where they have these options: few steps at small sizes.
SHORT = {
    "steps": 2,
    "coarse_steps": 1,
    "error_size": 64,
    "perceptual_size": 64,
    "stop": 0,
    # Images whose face is out-of-domain are not counted. Noise is no face, and superpixels must
    # have a cell in the coarsest layer.
    "segments": 4,
    "thresholds": {"face": 1000, "parts": 1000, "other": 1000},
}
# A second generator, with one method.
OTHER = f"{filled.GENERATOR}-other"
DARKNESS = "dhr_batch.tests.pipeline.scorers:Darkness"


def shortened(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = config.merge([settings])
    for stage in {"embed", "segment", "refine"} & found.keys():
        fields = config.options_class(stage, found[stage]["name"]).model_fields
        found[stage] |= {name: value for name, value in SHORT.items() if name in fields}
    return found


def short_paper(folder: Path, dataset: Path) -> Matrix:
    """The shipped benchmark on filled generators, with an edit of noise that can be measured.

    The published encoders give as many rows as a generator has, so filled ones fit that of 64 px.
    """
    found = shipped_matrix("paper").model_dump()
    for name, entry in [*found["embedders"].items(), *found["refiners"].items()]:
        entry["settings"] = shortened(entry["settings"])
        entry["by_generator"] = {} if name == "style_transformer" else {OTHER: None}
    generators = [str(folder / f"{name}.safetensors") for name in (filled.GENERATOR, OTHER)]
    found["settings"]["measure"]["scores"] = [DARKNESS]
    found["settings"] |= {"shard_size": 2} | shortened({"segment": "dhr"})
    found["edits"] = [{"direction": "smile", "strengths": [-2, 2], "label": "darkness"}]
    chosen = {"generators": generators, "datasets": [str(dataset)]}
    # Filled networks have no effect in common, at which edits could be compared.
    columns = [c for c in found["columns"] if "@" not in c]
    return parse_matrix(found | chosen | {"columns": columns}, "paper")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with filled checkpoints, which this process uses."""
    folder = tmp_path_factory.mktemp("paper") / "filled"
    networks: dict[tuple[str, ...], Any] = {}

    def network(context: Context, family: str, name: str) -> Any:
        key = (context.generator, family, name)
        if key not in networks:
            networks[key] = registry.lookup(family, name)(context)
        return networks[key]

    described = catalogue._folders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style_transformer, "ROWS", filled.ROWS)
        checkpoint = filled.write(folder).with_suffix(".safetensors")
        stylegan2_layouts.convert(checkpoint.with_suffix(".pt"), checkpoint)
        shutil.copy(checkpoint, folder / f"{OTHER}.safetensors")
        patch.setattr(catalogue, "_folders", lambda: (folder, described()[1]))
        patch.setattr(Context, "network", network)
        patch.setattr(runner, "_process", computed_here)
        yield folder


def computed_here(
    plan: Plan,
    request: Request,
    folder: RunFolder,
    progress: Progress,
    todo: Iterator[Shard],
    stopper: Stopper,
) -> bool:
    """Compute the shards of a run in this process, in place of `runner._process`."""
    worker = Worker(runner.worker_settings(plan, folder.storage))
    worker.setup()
    runner.keep_plan(folder, plan)
    for shard in todo:
        receipt = worker.run_shard(shard, folder.new_attempt(shard.index, 1))
        folder.commit(shard.index, receipt, len(shard.items))
    return True


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory):
    """The finished benchmark: its plan, its outcome and its folder."""
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("photographs")
    face = Image.fromarray(astronaut()).crop((128, 0, 320, 192))
    for number, picture in enumerate((face, face.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
        picture.resize((128, 128)).save(folder / f"{number}.png")
    described = folder.parent / "two.yaml"
    described.write_text(f"name: two\nroot: {folder}\naligned: true\n")
    out = tmp_path_factory.mktemp("benchmark") / "out"
    matrix = short_paper(home, described)
    planned = bench.plan(matrix, out, machine=MACHINE)
    done = bench.run(planned, MACHINE, print)
    write_benchmark(planned, done.failed)
    return planned, done, out


def test_every_method_of_the_paper_is_computed(finished):
    planned, done, _ = finished
    assert done.failed == {}
    assert [cell.name for cell in planned.cells if cell.needs or cell.lacks] == []
    assert done.exit_code == runner.DONE
    assert done.computed == [cell.name for cell in planned.cells]


def test_every_figure_of_the_table_is_there_and_marked(finished):
    planned, _, out = finished
    boards = json.loads((out / "benchmark.json").read_text())["datasets"]
    assert sum(len(found["methods"]) for found in boards) == len(planned.cells)
    for found in boards:
        assert found["summary"] == list(planned.matrix.columns)
        for method in found["methods"]:
            values = {key: method["figures"].get(key, {}).get("value") for key in found["summary"]}
            missing = {k for k, v in values.items() if v is None or not math.isfinite(v)}
            # No face is found in noise, so identity has no value.
            assert missing <= {key for key in values if "identity" in key}, method["method"]
        assert all("random weights" in " ".join(made) for made in found["made_by"].values())
    assert (out / "benchmark.md").read_text("utf-8").count("random weights: the figures say") == 1


@needs_latex
def test_the_table_is_typeset(finished, tmp_path):
    assert "Missing character" not in typeset(finished[2] / "benchmark.tex", tmp_path)


def test_chromium_shows_the_table_with_published_figures(finished):
    with Chromium() as browser:
        browser.open(finished[2] / "index.html")
        browser.settle()
        table = "[...document.querySelectorAll('[id^=figures] table')][0]"
        names = browser.run(f"[...{table}.tBodies[0].rows].map(r => r.cells[0].textContent)")
        cells = [cell for cell in finished[0].cells if cell.generator == filled.GENERATOR]
        assert names[: len(cells)] == [f"{cell.embedder} / {cell.refiner}" for cell in cells]
        assert "GANInverter: LSAP / DHR" in names
        banner = browser.run("document.querySelectorAll('.banner')[0].textContent")
        assert banner.startswith("random weights")
        assert browser.errors == []
