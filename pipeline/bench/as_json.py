"""The results of a benchmark as JSON, with images, settings, models and checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dhr_batch.pipeline.bench.board import Board
from dhr_batch.pipeline.bench.data import Method
from dhr_batch.pipeline.bench.ranking import marks_of
from dhr_batch.pipeline.bench.run import Benchmark
from dhr_batch.pipeline.bench.text import finite, published
from dhr_batch.pipeline.report import truth
from dhr_batch.pipeline.stats.bootstrap import DRAWS, LEVEL, Estimate
from dhr_batch.version import __version__


def to_json(benchmark: Benchmark, boards: Sequence[Board], failed: Mapping[str, str]) -> str:
    """Return the results of a benchmark as JSON, without the numbers of images (`images.csv`).

    Args:
        benchmark: The benchmark.
        boards: The results of each dataset.
        failed: The reason why each failed run has no complete tables.
    """
    content = {
        "version": __version__,
        "matrix": benchmark.matrix.model_dump(mode="json"),
        "intervals": {"level": LEVEL, "draws": DRAWS, "kind": "expanded percentile bootstrap"},
        "failed_runs": dict(failed),
        "datasets": [_board(board) for board in boards],
        "published": [found.model_dump(mode="json") for found in published()],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _board(board: Board) -> dict[str, Any]:
    compared = board.compared
    marked = {c.key: marks_of(board, c) for c in board.columns}
    return {
        "dataset": compared.dataset,
        "generator": compared.generator,
        "planned": compared.planned,
        "images": list(compared.counted),
        "failed": {i: dict(why) for i, why in compared.failed.items()},
        "excluded": {i: list(methods) for i, methods in compared.excluded.items()},
        "same_masks": compared.same_masks,
        "columns": {
            c.key: {"title": c.title, "table": c.sheet, "better": c.better} for c in board.columns
        },
        "made_by": compared.made_by,
        "needs": {method: dict(models) for method, models in compared.needs.items()},
        "lacks": {key: dict(models) for key, models in compared.lacks.items()},
        "summary": [c.key for c in board.summary],
        "edits": {
            edited.name: {
                "score": edited.score,
                "measured": edited.measured,
                "compared": edited.full.compared,
                "images": edited.full.images,
                "matches": [
                    {"image_id": m.image_id, "effect": m.effect} for m in edited.full.matches
                ],
            }
            for edited in board.edits
        },
        "methods": [_method(method, board, marked) for method in compared.methods],
        "truth": {
            "occluded_shares": truth.BINS,
            "figures": [{"method": name} | asdict(found) for name, found in board.truths],
        },
    }


def _method(
    method: Method, board: Board, marked: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    cells = board.cells[method.name]
    return {
        "method": method.name,
        "embedder": method.embedder,
        "refiner": method.refiner,
        "figures": {
            c.key: _estimate(cells[c.key]) | {"mark": marked[c.key].get(method.name, "")}
            for c in board.columns
            if c.key in cells
        },
        "compared_to": board.against.get(method.name),
        "differences": {
            key: _estimate(found) for key, found in board.differences.get(method.name, {}).items()
        },
        "runs": [
            {
                "name": run.cell.name,
                "begins_from": run.cell.base or None,
                "fingerprint": run.fingerprint,
                "models": run.models,
                "settings": run.data.plan.settings.values,
                "versions": run.data.plan.versions,
            }
            for run in method.runs
        ],
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    value, low, high = map(finite, (estimate.value, estimate.low, estimate.high))
    return {"value": value, "low": low, "high": high, "n": estimate.n}
