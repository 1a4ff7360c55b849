"""The benchmark `end-to-end`: whole chains that take turns, and their seconds by stage."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench import turns
from dhr_batch.pipeline.bench.costs import IN_TURN
from dhr_batch.pipeline.bench.matrix import Matrix, parse_matrix, shipped_matrix
from dhr_batch.pipeline.bench.write import write_benchmark
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.planning import config
from dhr_batch.stages.registry import STAGES
from dhr_batch.tests.pipeline.benched import MACHINE, TINY

# What the stages take instead, where they have these options.
SHORT = {
    "steps": 2,
    "coarse_steps": 1,
    "perceptual": "tiny",
    "perceptual_size": 32,
    "error_size": 32,
    "parser": "none",
}
CHAINS = ("w_plus_120 / published", "w_plus_120 / dhr", "default / dhr")


def shorten(settings: dict[str, Any]) -> None:
    preset = settings.get("preset")
    whole = config.merge([config.preset(preset), settings] if preset else [settings])
    for stage in {"embed", "segment", "refine"} & whole.keys():
        fields = config.options_class(stage, whole[stage]["name"]).model_fields
        own = config.merge([{stage: settings.get(stage, {})}])[stage]
        settings[stage] = own | {key: value for key, value in SHORT.items() if key in fields}


def tiny_chains(dataset: Path) -> Matrix:
    """The shipped benchmark on a generator and losses with random weights."""
    content = shipped_matrix("end-to-end").model_dump()
    for entry in (*content["embedders"].values(), *content["refiners"].values()):
        shorten(entry["settings"])
    measure = {key: value for key, value in TINY["measure"].items() if key != "features"}
    content["settings"] |= {"generator": "tiny", "measure": measure}
    # The masks differ then.
    content["refiners"]["published"]["settings"]["segment"]["error"] = False
    content["edits"] = [{"direction": "smile", "strengths": [-2, 2], "label": "darkness"}]
    return parse_matrix(content | {"datasets": [str(dataset)]}, "end-to-end")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """The finished benchmark, the runs of each round of turns, and the folder of the tables."""
    folder = tmp_path_factory.mktemp("end-to-end")
    (folder / "photos").mkdir()
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        small = Image.fromarray(draw.integers(0, 255, (4, 4, 3), np.uint8))
        small.resize((32, 32), Image.Resampling.BICUBIC).save(folder / "photos" / name)
    (folder / "photos" / "c.png").write_bytes(b"no picture")
    (folder / "photos.yaml").write_text(f"name: p\nroot: {folder / 'photos'}\naligned: true\n")
    rounds: list[list[str]] = []

    def take_turns(requests, say):
        rounds.append([Path(str(request.out)).name for request in requests])
        return real(requests, say)

    real = turns.take_turns
    with pytest.MonkeyPatch.context() as patch:
        # No model is there, so not that of e4e either.
        patch.setenv("DHR_BATCH_HOME", str(folder / "home"))
        patch.setattr(turns, "take_turns", take_turns)
        matrix = tiny_chains(folder / "photos.yaml")
        planned = bench.plan(matrix, folder / "out", machine=MACHINE, random_weights=True)
        done = bench.run(planned, MACHINE)
        write_benchmark(planned, done.failed)
    assert (done.failed, done.exit_code) == ({}, runner.DONE)
    assert len(done.computed) == 5
    return planned, rounds, folder / "out"


def figures(out: Path) -> dict[str, dict[str, Any]]:
    (board,) = json.loads((out / "benchmark.json").read_text())["datasets"]
    assert board["images"] == ["a.png", "b.png"]
    assert [*board["needs"]] == ["e4e / none", "e4e / published"]
    return {method["method"]: method for method in board["methods"]}


def clocked(out: Path, run: str) -> list[dict[str, float]]:
    """What was measured of the shards whose image was computed."""
    files = sorted((out / "runs" / run / "_state" / "shards").iterdir())
    manifests = [json.loads(file.read_text()) for file in files]
    return [manifest["clocked"] for manifest in manifests if manifest["ok"]]


def test_the_default_has_the_settings_of_the_preset_default(finished):
    """Whatever they are, also where its run begins from one without a refinement."""
    planned, _, out = finished
    stored = {
        cell.name: json.loads((out / "runs" / cell.name / "plan.json").read_text())["config"]
        for cell in planned.cells
        if not cell.needs
    }
    for name, preset in (("p-default-dhr", "default"), ("p-w_plus_120-dhr", "w-plus-120")):
        expected = config.resolve(config.build([config.preset(preset), {"dataset": "-"}]), 0, 1)
        for stage in ("embed", "segment", "refine"):
            own = {k: v for k, v in stored[name][stage].items() if k not in SHORT}
            assert own == {k: v for k, v in getattr(expected, stage).items() if k not in SHORT}
    published = stored["p-w_plus_120-published"]
    assert (published["first_stage"], published["segment"]["source"]) == ("segment", "coarse")
    assert published["refine"]["name"] == "dhr-published"


def test_embedders_take_turns_and_then_all_refiners(finished):
    assert finished[1] == [
        ["p-w_plus_120-none", "p-default-none"],
        ["p-w_plus_120-published", "p-w_plus_120-dhr", "p-default-dhr"],
    ]


def test_a_chain_has_the_seconds_of_all_of_its_stages(finished):
    _, _, out = finished
    found = figures(out)
    totals = {}
    for method in CHAINS:
        embedder, refiner = method.split(" / ")
        base, own = (clocked(out, f"p-{embedder}-{name}") for name in ("none", refiner))
        assert len(base) == len(own) == 2
        # What a run computes anew replaces the stage of its base.
        images = [before | after for before, after in zip(base, own, strict=True)]
        values = {key: f["value"] for key, f in found[method]["figures"].items()}
        for clock in IN_TURN:
            for stage in STAGES:
                key = f"{clock}_{stage}"
                assert values[f"turn_{key}"] == pytest.approx(median(i[key] for i in images))
                assert values[f"turn_{key}"] > 0
            whole = totals[method, clock] = [
                sum(i[f"{clock}_{stage}"] for stage in STAGES) for i in images
            ]
            assert values[f"turn_{clock}_all"] == pytest.approx(median(whole))
        assert set(own[0]) >= {f"seconds_{stage}" for stage in ("refine", "edit", "measure")}
        assert "seconds_embed" not in own[0]
    for method in CHAINS:
        for clock in IN_TURN:
            pairs = zip(totals[method, clock], totals["w_plus_120 / dhr", clock], strict=True)
            ratio = found[method]["figures"].get(f"turn_{clock}_all_ratio")
            if method == "w_plus_120 / dhr":
                assert ratio is None
            else:
                assert ratio["value"] == pytest.approx(median(a / b for a, b in pairs))
                assert ratio["n"] == 2
                assert f"turn_{clock}_embed_ratio" in found[method]["figures"]
                # They have the embedding of the reference.
                if method.startswith("w_plus_120"):
                    assert found[method]["figures"][f"turn_{clock}_embed_ratio"]["value"] == 1


def test_quality_is_compared_in_pairs(finished):
    found = figures(finished[2])
    for method in set(CHAINS) - {"w_plus_120 / dhr"}:
        assert found[method]["compared_to"] == "w_plus_120 / dhr"
        assert {"psnr", "ssim", "in_domain"} <= found[method]["differences"].keys()
    shares = {method: found[method]["figures"]["in_domain"]["value"] for method in CHAINS}
    assert shares["w_plus_120 / published"] == 1 > shares["w_plus_120 / dhr"]
    difference = found["w_plus_120 / published"]["differences"]["in_domain"]
    assert difference["value"] == pytest.approx(1 - shares["w_plus_120 / dhr"])


@pytest.mark.parametrize("name", ["benchmark.md", "benchmark.tex", "index.html"])
def test_every_format_has_chains_stages_and_ratios(finished, name):
    text = (finished[2] / name).read_text("utf-8").replace(r"\_", "_")
    for sheet in IN_TURN.values():
        table = text[text.index(sheet) :]
        for word in (*CHAINS, *STAGES, "all stages", *(f"{stage}: ratio" for stage in STAGES)):
            assert word in table
    assert "needs e4e-ffhq: dhr-batch models pull e4e-ffhq" in text
    if name != "benchmark.tex":
        differences = text[text.index("Paired differences") :]
        assert "default / dhr − w_plus_120 / dhr" in differences
        assert "In-domain share" in differences


def test_the_recorded_preset_depends_on_no_default():
    recorded = config.preset("w-plus-120")
    whole = config.resolve(config.build([recorded, {"dataset": "-"}]), 0, 1)
    # Edits are those of the default, by the former rule.
    assert recorded.pop("edit") == {"rows": "all", "follow": "none"}
    assert recorded.keys() == {"embed", "segment", "refine"}
    assert {stage: getattr(whole, stage) for stage in recorded} == recorded
