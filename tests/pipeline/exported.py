"""A small run with pictures, photographs and made-up measurements, for tests of exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from dhr_batch.cli import main
from dhr_batch.pipeline.datasets.named import find, list_images
from dhr_batch.pipeline.planning import config, plan
from dhr_batch.pipeline.planning.contents import digest
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.rows import rows_of
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages.ffhq import crop
from dhr_batch.stages.record import EditedImage, Metric, Record

SIZE = 32
EDITS = (
    ("smile", -2.0),
    ("smile", -1.0),
    ("smile", 1.0),
    ("smile", 2.0),
    ("yaw", -1.0),
    ("yaw", 1.5),
)
FACELESS = 3
IDS = tuple(f"{person}/{number}.png" for person in ("ann", "bob", "eve") for number in range(3))
ALL = len(IDS) * len(EDITS)
INFO = RunInfo(rows=2, embedder="w+", deltas=None)
QUAD = np.array([(30, 12), (20, 62), (70, 72), (80, 22)], float)


def photograph(number: int, width: int = 110, height: int = 90) -> np.ndarray:
    """Return a smooth picture, different for each number, as uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    layers = [np.sin(x / 9 + number + p) + np.cos(y / 11 - p * number) for p in (0, 1, 2)]
    return np.rint(127 + 60 * np.dstack(layers)).astype(np.uint8)


def write_photographs(folder: Path) -> Path:
    for number, image_id in enumerate(IDS):
        path = folder / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(number)).save(path)
    return folder


def metrics(stage: str, draw: np.random.Generator) -> Iterator[Metric]:
    yield Metric(stage, "identity_dlib_cosine", float(draw.uniform(0.85, 1)), "dlib")
    yield Metric(stage, "st_lpips_alex", float(draw.uniform(0, 0.3)), "alex")
    if stage != "refined":
        yield Metric(stage, "change_out", float(draw.uniform(0, 0.1)), "tiny")


def scores(stage: str, draw: np.random.Generator) -> Iterator[Metric]:
    for name in ("smile", "yaw", "yaw_degrees"):
        yield Metric(stage, f"score_{name}", float(draw.uniform(-0.5, 1)), "dlib")


def record(image_id: str, number: int) -> Record:
    """Return a record. Every third has no face in the last edit; the first has a NaN identity."""
    draw = np.random.default_rng(number)
    source = photograph(number)
    aligned = crop(source, QUAD, SIZE)
    stages = ["refined", *(f"edit:{name}:{strength:g}" for name, strength in EDITS)]
    found = [m for stage in stages for m in metrics(stage, draw)]
    seen = stages[:-1] if number % 3 == 0 else stages
    found += [m for stage in ["source", *seen] for m in scores(stage, draw)]
    if number == 0:
        found = [
            replace(m, value=float("nan"))
            if (m.stage, m.metric) == ("edit:smile:1", "identity_dlib_cosine")
            else m
            for m in found
        ]
    code = np.zeros((2, 512), np.float32)
    shades = np.clip(aligned + draw.integers(-90, 90, (len(EDITS), 1, 1, 3)), 0, 255)
    edits = [
        EditedImage(name, strength, "ab" * 32, code, shade.astype(np.uint8))
        for (name, strength), shade in zip(EDITS, shades, strict=True)
    ]
    return Record(
        image_id,
        image_id,
        image=aligned,
        quad=QUAD,
        source_size=(source.shape[1], source.shape[0]),
        latent=code,
        inverted=255 - aligned,
        refined=aligned,
        edits=tuple(edits),
        metrics=tuple(found),
    )


def write_run(root: Path, photographs: Path, seed: int = 0, hashed: bool = False) -> Path:
    """Write a run of `IDS` in shards of two; another image of its plan is quarantined.

    hashed: whether it records the content of the photographs, as earlier versions did not.
    """
    Image.fromarray(photograph(99)).save(photographs / "zoe.png")
    items = list_images(find(photographs))
    measured = {"measure": {"identity": "dlib", "landmarks": "dlib68"}}
    layers = [config.preset("tiny"), {"dataset": str(photographs), "gpus": 0, "shard_size": 2}]
    settings = config.resolve(config.build([*layers, measured, {"seed": seed}]), 0, len(items))
    made = plan.make(settings, find(photographs), items)
    root.mkdir(parents=True)
    (root / "plan.json").write_text(json.dumps(made.stored().to_json()))
    numbers = {image_id: number for number, image_id in enumerate(IDS)}
    for shard in made.shards:
        files = {}
        for table in INFO.tables:
            (root / table).mkdir(exist_ok=True)
            path = root / table / f"part-{shard.index:05d}.parquet"
            files[table] = TableFile(path, table, INFO)
        for item in shard.items:
            if item.image_id in numbers:
                one = record(item.image_id, numbers[item.image_id])
                if hashed:
                    sha256 = digest((photographs / item.image_id).read_bytes())
                    one = replace(one, source_bytes=item.size, source_sha256=sha256)
            else:
                one = Record(item.image_id, item.image_id).failed("align", "no_face", "no face")
            for table, rows in rows_of(one, shard.index, INFO).items():
                files[table].append(rows)
        for file in files.values():
            file.close()
    return root


def write_later_run(root: Path, first: Path) -> Path:
    """Write a run as by `run --dataset FIRST --from edit`, with the first run as its dataset."""
    shutil.copytree(first, root)
    plan = json.loads((root / "plan.json").read_text())
    plan["fingerprint"]["origin"] = json.loads((first / "plan.json").read_text())["fingerprint"]
    plan["dataset"] = first.name
    plan["config"] |= {"dataset": str(first), "first_stage": "edit"}
    plan["contents"] = [["99:ab"] * len(ids) for ids in plan["shards"]]
    (root / "plan.json").write_text(json.dumps(plan))
    return root


def listed(folder: Path) -> list[dict[str, Any]]:
    """Return all lines of an image folder's metadata, with their split."""
    found = []
    for path in sorted(folder.glob("*/metadata.jsonl")):
        lines = path.read_text("utf-8").splitlines()
        found += [json.loads(line) | {"split": path.parent.name} for line in lines]
    return found


def dhr(*words: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, words)])


def exported(run: Path, out: Path, *words: object) -> dict[str, Any]:
    result = dhr(run, "--out", out, "--json", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the marker, which lists them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".dhr-batch.json"
    }
