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
from dhr_batch.stages.networks.faces.identity import Portrait

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context

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
    folders = {
        name: None if isinstance(scorer, LandmarkScores) else _folder(context, folder, name)
        for name, scorer in scorers.items()
    }
    table: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(samples.w), sampling.SHARD):
        part = slice(first, first + sampling.SHARD)
        number = f"{first // sampling.SHARD:05d}.npz"
        files = {name: stored / number for name, stored in folders.items() if stored}
        missing = {n: s for n, s in scorers.items() if n not in files or not files[n].is_file()}
        scored = _score(context, missing, samples, part)
        for name, scorer in scorers.items():
            if name in scored:
                found = scored[name]
                if name in files:
                    sampling.save(files[name], found)
            else:
                found = sampling.read_arrays(files[name], scorer.names)
            for score, values in found.items():
                table.setdefault(score, []).append(values)
        if files:
            report(min(part.stop, len(samples.w)), len(samples.w))
    return {score: np.concatenate(parts) for score, parts in table.items()}


def _folder(context: Context, folder: Path, name: str) -> Path:
    """Return the folder for scores of a scorer after checking what it contains."""
    stored = folder / f"scores-{re.sub('[^A-Za-z0-9_-]', '_', name)}"
    used = registry.MODELS.get(("scores", name), ())
    weights = weights_of(context.generator) if used else {}
    about = {"scorer": name, "weights": {model: weights.get(model, "") for model in used}}
    stored.mkdir(parents=True, exist_ok=True)
    card = stored / "scorer.json"
    if card.is_file() and (found := sampling.read_card(card)) != about:
        raise Refused(
            str(stored),
            f"it contains scores of {found}, but scores of {about} are needed",
            "delete this folder, or choose another one with --cache",
        )
    sampling.replace(card, json.dumps(about, indent=1).encode())
    return stored


def _score(
    context: Context, scorers: dict[str, Scorer], samples: Samples, part: slice
) -> dict[str, Scores]:
    """Return the scores of a part of the samples by scorer. Each picture is rendered once."""
    import torch

    from dhr_batch.stages.tensors import tensor_to_images

    generator = context.network("generator", context.generator)
    needed = not all(isinstance(scorer, LandmarkScores) for scorer in scorers.values())
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in scorers}
    with torch.inference_mode():
        for w, points in zip(samples.w[part], samples.landmarks[part], strict=True):
            picture = np.empty((0, 0, 3), np.uint8)
            if needed:
                code = torch.tensor(w).to(context.device)[None]
                picture = tensor_to_images(generator.synthesize(generator.broadcast(code)))[0]
            portrait = Portrait(picture, points if np.isfinite(points).all() else None)
            for name, scorer in scorers.items():
                rows[name].append(row(scorer, portrait))
    return {
        name: {s: np.array([r[s] for r in rows[name]], np.float64) for s in scorer.names}
        for name, scorer in scorers.items()
    }
