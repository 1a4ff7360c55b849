"""Benchmarks with missing models: what needs a model says so, and the rest is computed."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dhr_batch.pipeline.bench import needs
from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench.matrix import Matrix
from dhr_batch.pipeline.bench.write import write_benchmark
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.models import catalogue
from dhr_batch.tests.faults import harness
from dhr_batch.tests.pipeline.benched import MACHINE, REFINE, TINY, tiny
from dhr_batch.tests.pipeline.chromium import Chromium

MEASURE = TINY["measure"] | {"perceptual": ["tiny", "lpips_alex"], "features": ["inception"]}
E4E = "needs e4e-ffhq: dhr-batch models pull e4e-ffhq --file e4e_ffhq_encode.pt"
ALEX = "needs lpips-alex-backbone: dhr-batch models pull lpips-alex-backbone"
FFHQ = "stylegan2-ffhq-1024"


def lacking(photographs: Path, **more: Any) -> Matrix:
    """A benchmark of which one embedder, two metrics and one of two generators have no model."""
    embedders = {
        "w+": {"settings": {"embed": {"name": "w+", "steps": 1, "perceptual": "tiny"}}},
        "e4e": {"settings": {"embed": "e4e"}, "about": "one pass"},
    }
    content: dict[str, Any] = {
        "settings": TINY | {"measure": MEASURE},
        "generators": ["tiny", FFHQ],
        "embedders": embedders,
        "refiners": {"dhr": {"settings": {"refine": REFINE | {"steps": 1}}}},
        "columns": ["psnr", "psnr_ganinverter", "mse", "lpips_alex", "fid", "seconds", "bytes"],
    }
    return tiny(photographs, **content | more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of models that is empty."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DHR_BATCH_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "photos"
    folder.mkdir()
    for seed in range(2):
        draw = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(draw).save(folder / f"{seed}.png")
    (folder.parent / "photos.yaml").write_text(f"name: photos\nroot: {folder}\naligned: true\n")
    return folder.parent / "photos.yaml"


@pytest.fixture(scope="module")
def finished(home: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory):
    """The folder of a benchmark that ran, its plan, and what it said."""
    out, said = tmp_path_factory.mktemp("benchmark") / "out", []
    # The one benchmark with workers of Ray.
    with harness.session():
        planned = bench.plan(lacking(photographs), out, machine=MACHINE, random_weights=True)
        done = bench.run(planned, MACHINE, said.append)
        write_benchmark(planned, done.failed)
    assert (done.exit_code, done.failed) == (runner.DONE, {})
    return out, planned, said


def table(text: str, generator: str, sheet: str) -> dict[str, list[str]]:
    """Return the rows of a Markdown table by the text of their first cell."""
    part = text.partition(f"## photos, {generator}\n")[2].partition(f"### {sheet}\n")[2]
    lines = [line for line in part.partition("\n#")[0].splitlines() if line.startswith("|")]
    rows = (re.split(r" *(?<!\\)\| *", line)[1:-1] for line in lines)
    return {row[0]: row[1:] for row in rows}


def test_the_runs_that_have_their_models_are_computed(finished):
    out, planned, said = finished
    computed = ["photos-tiny-w+-none", "photos-tiny-w+-dhr"]
    assert sorted(p.name for p in (out / "runs").iterdir()) == sorted(computed)
    assert [cell.name for cell in planned.cells if not cell.needs] == computed
    assert f"[3/8] photos-tiny-e4e-none {E4E}" in said
    text = "\n".join(needs.summary(planned.cells))
    assert "6 of 8 runs need models that are missing." in text
    assert "Left out, as models are missing: lpips_alex, fid." in text
    assert "  e4e-ffhq: dhr-batch models pull e4e-ffhq --file e4e_ffhq_encode.pt" in text
    assert "  inception-2015-12-05: dhr-batch models pull inception-2015-12-05" in text


def test_rows_and_columns_say_what_they_need(finished):
    text = (finished[0] / "benchmark.md").read_text("utf-8")
    assert f"LPIPS (AlexNet) {ALEX}." in text
    for sheet in ("Beside published figures", "Reconstruction", "Cost"):
        rows = table(text, "tiny", sheet)
        head = rows["method"]
        assert [name for name in rows if "/" in name and ":" not in name] == [
            "w+ / none",
            "w+ / dhr",
            "e4e / none",
            "e4e / dhr",
        ]
        assert {len(row) for row in rows.values()} == {len(head)}
        assert rows["e4e / dhr"] == [E4E, *[""] * (len(head) - 1)]
        if sheet != "Cost":
            own = dict(zip(head, rows["w+ / dhr"], strict=True))
            assert own["LPIPS (AlexNet)"] == "needs lpips-alex-backbone"
            assert own["FID"] == "needs inception-2015-12-05"
            assert float(re.sub(r"[*]|<.?u>| .*", "", own["PSNR [dB]"])) > 0
    rows = table(text, FFHQ, "Beside published figures")
    assert rows["w+ / none"][0].startswith(f"needs {FFHQ}: dhr-batch models pull {FFHQ} --file")
    assert rows["e4e / dhr"][0].startswith("needs e4e-ffhq: dhr-batch models pull e4e-ffhq --file")


def test_published_figures_stand_below_with_their_source(finished):
    text = (finished[0] / "benchmark.md").read_text("utf-8")
    for generator in ("tiny", FFHQ):
        rows = table(text, generator, "Beside published figures")
        dhr = dict(zip(rows["method"], rows["GANInverter: LSAP / DHR"], strict=True))
        assert dhr["PSNR, 10·log10(2/MSE) [dB]"] == "28.2786"
        assert (dhr["PSNR [dB]"], dhr["FID"], dhr["s per image"]) == ("–", "6.0594", "12")
        assert rows["GANInverter: e4e / none"][3] == "0.1974"
        assert "StyleFeatureEditor: HFGI" in rows
        # It has no column that is defined alike.
        assert not [name for name in rows if name.startswith("StyleRes")]
    assert "### GANInverter, README, benchmark v1 (commit 3f54137, 2023-04-29)" in text


def test_latex_csv_and_json_say_what_is_needed(finished):
    out = finished[0]
    tex = (out / "benchmark.tex").read_text("utf-8")
    assert rf"e4e / dhr & \multicolumn{{7}}{{l}}{{{E4E.replace('_', chr(92) + '_')}}} \\" in tex
    for tabular in re.findall(r"\\begin\{tabular\}\{(l[rl]*)\}(.*?)\\end\{tabular\}", tex, re.S):
        for row in [line for line in tabular[1].splitlines() if line.endswith("\\\\")]:
            spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert len(re.split(r"(?<!\\)&", row)) + spans == len(tabular[0])
    rows = list(csv.DictReader((out / "benchmark.csv").open()))
    found = {(r["generator"], r["embedder"], r["refiner"], r["column"]): r for r in rows}
    assert found["tiny", "e4e", "dhr", ""]["needs"] == E4E
    assert found["tiny", "w+", "dhr", "lpips_alex"]["needs"] == ALEX
    assert found["tiny", "w+", "dhr", "lpips_alex"]["value"] == ""
    assert found["tiny", "w+", "dhr", "psnr"]["needs"] == ""
    content = json.loads((out / "benchmark.json").read_text())
    first, second = content["datasets"]
    assert (first["generator"], second["generator"]) == ("tiny", FFHQ)
    assert first["needs"]["e4e / none"] == {"e4e-ffhq": E4E.partition(": ")[2]}
    assert first["lacks"]["fid"].keys() == {"inception-2015-12-05"}
    assert second["methods"] == []


def test_chromium_shows_and_sorts_tables_with_needs(finished):
    with Chromium() as browser:
        browser.open(finished[0] / "index.html")
        browser.settle()
        table = "document.querySelector('#figures table')"
        wide = f"[...{table}.tBodies[0].rows].filter(r => r.cells.length === 2)"
        assert browser.run(f"{wide}.map(r => r.cells[1].textContent)") == [E4E, E4E]
        browser.run(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
        assert browser.run(f"{table}.tHead.rows[0].cells[2].ariaSort") == "ascending"
        # Without a value in that column, they are below those that have one.
        names = browser.run(f"[...{table}.tBodies[0].rows].map(r => r.cells[0].textContent)")
        assert names.index("e4e / none") > names.index("w+ / dhr")
        assert names.index("e4e / none") > names.index("GANInverter: LSAP / DHR")
        assert browser.errors == []


def test_a_benchmark_that_lacks_a_model_everywhere_is_refused(home, photographs, tmp_path):
    found = lacking(photographs, generators=[FFHQ])
    with pytest.raises(catalogue.ModelMissing) as refusal:
        bench.plan(found, tmp_path, machine=MACHINE, random_weights=True)
    assert "no run of it has all of its models: " in refusal.value.why
    assert f"dhr-batch models pull {FFHQ}" in refusal.value.way_out
    assert "--file e4e_ffhq_encode.pt" in refusal.value.way_out


def test_wrong_weights_are_refused_and_not_left_out(home, photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    folder = catalogue.folder_of(catalogue.find("lpips-alex-backbone"))
    folder.mkdir(parents=True)
    for name in catalogue.find("lpips-alex-backbone").files():
        (folder / name).write_bytes(b"others")
    with pytest.raises(catalogue.ModelDamaged, match="'lpips-alex-backbone' is damaged"):
        bench.plan(lacking(photographs), tmp_path / "out", machine=MACHINE, random_weights=True)
