"""The documentation: snippets are executed, and what it names exists."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

import dhr_batch
from dhr_batch.pipeline.bench import matrix
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.planning import config
from dhr_batch.pipeline.runs import card
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.tables import files, schemas
from dhr_batch.pipeline.tables import rows as tables
from dhr_batch.stages import registry
from dhr_batch.stages.record import EditedImage, Metric, Record
from dhr_batch.tests.documents import PAGES, ROOT, fenced, inline, name

_MODULE = re.compile(r"(\w+/)+\w+\.py|test_\w+\.py")


def _record(image_id: str, seed: int) -> Record:
    draw = np.random.default_rng(seed)
    picture = draw.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    latent = draw.normal(size=(23, 512)).astype(np.float32)
    stages = ("inverted", "refined", "edit:smile:2")
    names = ("psnr", "st_lpips_alex", "identity_dlib_distance")
    return Record(
        image_id,
        image_id,
        image=picture,
        quad=np.zeros((4, 2)),
        source_size=(64, 64),
        latent=latent,
        inverted=picture,
        refined=picture,
        labels=np.full((32, 32), 2, np.uint8),
        mask=picture[..., 0] > 60,
        edits=(EditedImage("smile", 2.0, "0" * 64, latent, picture, {"smile": 0.5}),),
        metrics=tuple(Metric(s, n, float(draw.random()), "m") for s in stages for n in names),
    )


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    """`runs/portraits` below the returned folder."""
    run = tmp_path / "runs" / "portraits"
    info = schemas.RunInfo(rows=23, embedder="w+", deltas=None)
    for table in info.tables:
        (run / table).mkdir(parents=True)
    ids = ["a.jpg", "b.jpg"]
    counts: Counter[str] = Counter()
    for shard, image_id in enumerate(ids):
        rows = tables.rows_of(_record(image_id, shard), shard, info)
        for table in info.tables:
            file = files.TableFile(run / table / f"part-{shard:05}.parquet", table, info)
            file.append(rows.get(table, []))
            file.close()
            counts[table] += len(rows.get(table, []))
    plan = {
        "dataset": "portraits",
        "config": {"generator": "mobilestylegan-256"},
        "fingerprint": {"version": "0"},
        "shards": [[image_id] for image_id in ids],
    }
    (run / "plan.json").write_text(json.dumps(plan), "utf-8")
    card.write_card(run, StoredPlan.from_json(plan), len(ids), counts)
    # Runs of early versions list no files. In others, parts without a manifest are refused.
    (run / "_state" / "owner.json").unlink()
    return tmp_path


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_every_reader_snippet_runs(portraits: Path) -> None:
    snippets = fenced(ROOT / "docs" / "reference" / "tables.md", "python")
    readers = ("pandas", "pyarrow", "polars", "duckdb", "datasets", "dhr_batch")
    assert len(snippets) == len(readers)
    for reader, snippet in zip(readers, snippets, strict=True):
        assert re.search(rf"^(import|from) {reader}|^import numpy", snippet)
    separate = "\nfor v in [v for v in globals() if v[0] != '_']: del globals()[v]\n"
    cache = {"HF_HOME": str(portraits / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", separate.join(snippets)],
        cwd=portraits,
        env=os.environ | cache,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    output = done.stdout.decode()
    assert "(2, 23, 512)" in output
    assert "(23, 512)" in output
    assert b"edited by dhr-batch" in (portraits / "first_edit.png").read_bytes()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_snippets_of_python_name_what_exists(page: Path) -> None:
    for snippet in fenced(page, "python"):
        if "import" not in snippet:  # A line of a table.
            continue
        used = {
            node.attr
            for node in ast.walk(ast.parse(snippet))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "dhr_batch"
        }
        assert [each for each in used if not hasattr(dhr_batch, each)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_snippets_of_yaml_are_valid(page: Path) -> None:
    """Each describes a dataset, a benchmark or settings of a run, as its keys tell."""
    for block in filter(None, map(yaml.safe_load, fenced(page, "yaml"))):  # Or comments alone.
        if "root" in block:
            named.Dataset(**block)
        elif "refiners" in block:
            matrix.parse_matrix(block, name(page))
        elif block.get("refine", {}).get("name") != "toy":  # The recipe for a refiner adds it.
            built = config.build([{"dataset": "portraits"}, block])
            for family in registry.STAGES:
                section = getattr(built, family)
                config.options_class(family, section["name"])(**section)


def test_the_yaml_of_edits_says_which_edits(root: Path) -> None:
    (settings, *_) = map(yaml.safe_load, fenced(root / "docs" / "guides" / "edits.md", "yaml"))
    options = config.options_class("edit", settings["edit"]["name"])(**settings["edit"])
    titles = [edit.title for edit in options.edits]
    assert titles[:3] == ["smile", "age", "directions/glasses.npy"]
    assert titles[3:] == ["ganspace-ffhq 54 [7, 8]", "ffhq_pca.pt 0 [0, 18]"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    """`make docs` checks links between pages below docs/, these too where they name a section."""
    made = {"settings.md", "contributing.md", "changelog.md"}
    for link in set(re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text("utf-8"))):
        assert Path(link).name in made or (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_modules_exist(page: Path) -> None:
    # The recipe for a refiner asks the reader to write one.
    named = set(filter(_MODULE.fullmatch, inline(page))) - {"tests/stages/refine/test_toy.py"}
    folders = [ROOT / folder for folder in ("", "tests", "pipeline", "stages", "fitting")]
    assert [n for n in named if not any((folder / n).is_file() for folder in folders)] == []


def test_results_name_command_date_and_commit() -> None:
    """Each section has a row in the first table. Figures of the README are those of the page."""
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    rows = [line for line in text.partition("## ")[0].splitlines() if line.startswith("| [")]
    row = re.compile(r"\|[^|]+\|[^|]*`[^|]+\|[^|]+\| \d{4}-\d\d-\d\d \| `[0-9a-f]{7}` \|")
    assert [line for line in rows if not row.fullmatch(line)] == []
    linked = {anchor for row in rows for anchor in re.findall(r"\(#([\w-]+)\)", row)}
    titles = set(re.findall(r"^## (.*)$", text, re.M)) - {"Not measured"}
    assert {title.lower().replace(" ", "-") for title in titles} == linked
    readme = (ROOT / "README.md").read_text("utf-8")
    figures = re.findall(r"^\|.* dB .*$", readme, re.M)
    assert len(figures) == 2
    assert [line for line in figures if line not in text] == []


def test_pages_are_read() -> None:
    """The tests above find something to check."""
    assert len(PAGES) > 20
    named = [text for page in PAGES for text in inline(page) if _MODULE.fullmatch(text)]
    assert len(named) > 150
    assert sum(len(fenced(page, "yaml")) for page in PAGES) >= 3
