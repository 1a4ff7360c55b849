"""Scores of generated faces by the scorers of the registry, from which directions are fitted.

The scores of a scorer are kept beside the samples they belong to, shard by shard, so that an
interrupted run continues and another fit need not render again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.fitting import samples as sampling
from dhr_batch.fitting.samples import Samples
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models.weights import weights_of
from dhr_batch.stages import registry
from dhr_batch.stages.measure.face_scores import LandmarkScores, Scorer
from dhr_batch.stages.networks.identity import Portrait

if TYPE_CHECKING:
    from dhr_batch.stages.base import Context

Scores = dict[str, np.ndarray]


def load(context: Context, names: Sequence[str]) -> dict[str, Scorer]:
    """Return scorers by name.

    Raises:
        UnknownName: There is no such scorer.
        Refused: Two scorers give a score of the same name.
    """
    found: dict[str, Scorer] = {name: context.network("scores", name) for name in names}
    owners: dict[str, str] = {}
    for scorer, made in found.items():
        for score in made.names:
            if owners.setdefault(score, scorer) != scorer:
                raise Refused(
                    f"scorers {owners[score]!r} and {scorer!r}",
                    f"both give a score {score!r}",
                    "leave one of them out",
                )
    return found


def row(scorer: Scorer, portrait: Portrait) -> dict[str, float]:
    """Return the scores of a face by name; NaN where the scorer gives none."""
    return dict.fromkeys(scorer.names, np.nan) | (scorer.score(portrait) or {})


def collect(
    context: Context,
    folder: Path,
    samples: Samples,
    scorers: dict[str, Scorer],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score samples, or read the scores that the cache folder of the samples already contains.

    Args:
        context: The device and the generator.
        folder: The cache folder of the samples.
        samples: The samples.
        scorers: Scorers by name. Scores of landmarks need no picture and are not stored.
        report: Called after each shard with the number of samples scored and in total.

    Returns:
        Scores by name, [N]; NaN where no face is found.

    Raises:
        Refused: The folder contains scores of other weights.
    """
    shards = range(0, len(samples.w), sampling.SHARD)
    total = len(samples.w) * sum(not isinstance(s, LandmarkScores) for s in scorers.values())
    table: dict[str, list[np.ndarray]] = {}
    done = 0
    for name, scorer in scorers.items():
        stored = None if isinstance(scorer, LandmarkScores) else _folder(context, folder, name)
        for first in shards:
            part = slice(first, first + sampling.SHARD)
            file = stored and stored / f"{first // sampling.SHARD:05d}.npz"
            if file and file.is_file():
                with np.load(file, allow_pickle=False) as archive:
                    found = {score: archive[score] for score in scorer.names}
            else:
                found = _score(context, scorer, samples, part)
                if file:
                    sampling.save(file, found)
            for score, values in found.items():
                table.setdefault(score, []).append(values)
            if file:
                done += len(samples.w[part])
                report(done, total)
    return {score: np.concatenate(parts) for score, parts in table.items()}


def _folder(context: Context, folder: Path, name: str) -> Path:
    """Return the folder for scores of a scorer after checking what it contains."""
    stored = folder / f"scores-{re.sub('[^A-Za-z0-9_-]', '_', name)}"
    used = registry.MODELS.get(("scores", name), ())
    weights = weights_of(context.generator) if used else {}
    about = {"scorer": name, "weights": {model: weights.get(model, "") for model in used}}
    stored.mkdir(parents=True, exist_ok=True)
    card = stored / "scorer.json"
    if card.is_file() and (found := json.loads(card.read_text())) != about:
        raise Refused(
            str(stored),
            f"it contains scores of {found}, but scores of {about} are needed",
            "delete this folder, or choose another one with --cache",
        )
    sampling.replace(card, json.dumps(about, indent=1).encode())
    return stored


def _score(context: Context, scorer: Scorer, samples: Samples, part: slice) -> Scores:
    import torch

    from dhr_batch.stages.tensors import tensor_to_images

    generator = context.network("generator", context.generator)
    rows = []
    with torch.inference_mode():
        for w, points in zip(samples.w[part], samples.landmarks[part], strict=True):
            landmarks = points if np.isfinite(points).all() else None
            picture = np.empty((0, 0, 3), np.uint8)
            if not isinstance(scorer, LandmarkScores):
                code = torch.tensor(w).to(context.device)[None]
                picture = tensor_to_images(generator.synthesize(generator.broadcast(code)))[0]
            rows.append(row(scorer, Portrait(picture, landmarks)))
    return {name: np.array([r[name] for r in rows], np.float64) for name in scorer.names}
