"""A run with ids that could break a page, and functions that read its report."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dhr_batch.pipeline.report.write import write_report
from dhr_batch.pipeline.tables import rows as tables
from dhr_batch.pipeline.tables import schemas

HOSTILE = '<script>alert(1)</script>"|`.png'
IDS = ["people/anna.jpg", "people/büşra 東.png", HOSTILE]
EDITS = [("smile", -2.0), ("smile", 2.0), ("yaw", 1.5)]


def write(*arguments: Any, **options: Any) -> Path:
    return Path(write_report(*arguments, **options))


def portrait(seed: int, size: int = 64) -> bytes:
    base = np.random.default_rng(seed).integers(0, 255, 3)
    ramp = np.linspace(0, 1, size)[:, None, None]
    return tables.png(np.broadcast_to(base * ramp, (size, size, 3)).astype(np.uint8))


def labels() -> np.ndarray:
    found = np.zeros((64, 64), np.uint8)
    found[16:48, 16:48] = 2
    found[20:24, 20:28] = 8
    found[:16] = 14
    return found


def table_of(run: Path, name: str, rows: list[dict]) -> None:
    """Write a table in two files. Readers must not rely on where the first one ends."""
    (run / name).mkdir()
    half = (len(rows) + 1) // 2
    for part, chunk in enumerate((rows[:half], rows[half:])):
        filled = [{"shard": part, **row} for row in chunk]
        table = pa.Table.from_pylist(filled, schema=schemas.schema(name, rows=8))
        pq.write_table(table, run / name / f"part-{part:05}.parquet")


def quarantine(run: Path) -> None:
    table_of(
        run,
        "quarantine",
        [
            {
                "image_id": "bad/<b>x</b>.png",
                "source": "bad/<b>x</b>.png",
                "stage": "align",
                "error_class": "no_face",
                "message": "no face in bad/<b>x</b>.png; use a picture that shows one",
            }
        ],
    )


def made(
    folder: Path,
    edits: list[tuple[str, float]] = EDITS,
    generator: str = "mobilestylegan-256",
) -> Path:
    """Write a finished run with random pictures to a folder whose name contains a space."""
    run = folder / "my run"
    run.mkdir()
    plan = {
        "config": {"generator": generator, "embed": {"name": "w+", "steps": 60}},
        "fingerprint": {"models": {"mobilestylegan-ffhq": "0123456789abcdef"}},
        "versions": {"python": "3.99.0"},
        "shards": [IDS[:2], IDS[2:]],
    }
    (run / "plan.json").write_text(json.dumps(plan), "utf-8")
    images, masks, metrics = [], [], []
    for n, image_id in enumerate(IDS):
        kinds = [("aligned", None, None), ("inverted", None, None), ("refined", None, None)]
        for m, (kind, name, strength) in enumerate(kinds + [("edit", *e) for e in edits]):
            images.append(
                {
                    "image_id": image_id,
                    "kind": kind,
                    "image": {"bytes": portrait(10 * n + m), "path": f"{n}_{m}.png"},
                    "edit_name": name,
                    "edit_strength": strength,
                }
            )
        mask = np.ones((64, 64), bool)
        mask[: 16 + 8 * n * n] = False
        for kind, data in (("in_domain", tables.png(mask)), ("labels", tables.png(labels()))):
            row = {"image_id": image_id, "kind": kind, "mask": {"bytes": data, "path": kind}}
            masks.append({**row, "area_fraction": float(mask.mean())})
        metrics.append(
            {
                "image_id": image_id,
                "stage": "source",
                "metric": "score_smile",
                "value": 0.45,
                "model": "dlib-landmarks68",
            }
        )
        stages = ["inverted", "refined"] + [f"edit:{name}:{s:g}" for name, s in edits]
        for k, stage in enumerate(stages):
            values = {"psnr": 18.0 + 10 * (k == 1) + n, "psnr_in": 20.0, "ssim": 0.5 + k / 9}
            metrics += [
                {"image_id": image_id, "stage": stage, "metric": m, "value": v, "model": "none"}
                for m, v in values.items()
            ]
            metrics.append(
                {
                    "image_id": image_id,
                    "stage": stage,
                    "metric": "identity_dlib_distance",
                    "value": 0.3 + n / 10,
                    "model": "dlib-face-resnet",
                }
            )
            if "yaw" not in stage:
                score = {"refined": 0.5, "edit:smile:2": 0.8}.get(stage, 0.4)
                row = {"image_id": image_id, "stage": stage, "metric": "score_smile"}
                metrics.append({**row, "value": score, "model": "dlib-landmarks68"})
    (run / "_state" / "shards").mkdir(parents=True)
    for shard, count in enumerate((2, 1)):
        manifest = {
            "models": ["mobilestylegan-ffhq", "a model since removed"],
            "ok": count,
            "quarantined": 1 - shard,
            "stage_seconds": {"align": 3, "embed": 30, "segment": 6, "refine": 60},
        }
        (run / "_state" / "shards" / f"0000{shard}.json").write_text(json.dumps(manifest))
    table_of(run, "images", images)
    table_of(run, "masks", masks)
    table_of(run, "metrics", metrics)
    quarantine(run)
    return run


def embedded(page: Path) -> tuple[dict[str, Any], list[list[bytes | None]]]:
    """Return the data of the gallery and the pictures of each of its items."""
    text = page.read_text("utf-8")
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', text)
    content = {name: json.loads(data) for name, data in found}
    gallery = content.pop("gallery-data", {"items": [], "scores": []})
    assert list(content) == [f"p{n}" for n in range(len(gallery["items"]))]
    rows = [[p if p is None else base64.b64decode(p) for p in row] for row in content.values()]
    return gallery, rows


def names(page: Path) -> list[str]:
    return [item[0] for item in embedded(page)[0]["items"]]
