"""The Python snippets of README.md, executed on a run of its shape."""

from __future__ import annotations

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

from dhr_batch.pipeline.planning import config
from dhr_batch.pipeline.runs import card
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.pipeline.tables import files, schemas
from dhr_batch.pipeline.tables import rows as tables
from dhr_batch.stages.base import EditedImage, Metric, Record


def _blocks(root: Path, language: str) -> list[str]:
    text = (root / "README.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


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
    return tmp_path


def test_every_reader_snippet_runs(root: Path, portraits: Path) -> None:
    snippets = _blocks(root, "python")
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


def test_the_yaml_of_the_readme_is_valid(root: Path) -> None:
    (settings,) = [yaml.safe_load(block) for block in _blocks(root, "yaml")]
    options = config.options_class("edit", settings["edit"]["name"])(**settings["edit"])
    titles = [edit.title for edit in options.edits]
    assert titles[:3] == ["smile", "age", "directions/glasses.npy"]
    assert titles[3:] == ["ganspace-ffhq 54 [7, 8]", "ffhq_pca.pt 0 [0, 18]"]


def test_named_files_and_links_exist(root: Path) -> None:
    for document in ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/scaling.md"):
        text = (root / document).read_text("utf-8")
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        assert "FIGURE" not in text
        for link in set(links):
            assert ((root / document).parent / link).is_file(), f"{document}: {link}"


def test_named_tests_exist(root: Path) -> None:
    for document in ("CONTRIBUTING.md", "docs/decisions.md"):
        text = (root / document).read_text("utf-8")
        named = set(re.findall(r"`((?:\w+/)*test_\w+\.py)`", text))
        # The recipe for a refiner asks the reader to write this one.
        named -= {"tests/stages/refine/test_toy.py"}
        assert len(named) > 3
        missing = [n for n in named if not ((root / n).is_file() or (root / "tests" / n).is_file())]
        assert missing == [], document


def test_files_named_by_the_architecture_page_exist(root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:pipeline|stages)/[\w/]+\.py)`", text)
    assert len(named) > 5
    assert [name for name in named if not (root / name).is_file()] == []
