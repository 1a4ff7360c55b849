"""Turn fitted directions into a shipped set: measure what an edit does, calibrate, write files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dhr_batch.fitting.directions import PUBLISHED_RATIO, Fit, fit
from dhr_batch.fitting.scoring import row
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.files import whole
from dhr_batch.stages.edit.direction_files import PUBLISHED_ROWS, digest
from dhr_batch.stages.networks.faces.identity import Portrait

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.measure.face_scores import Scorer

# The scores that each edit should not change, if there are scorers of them. A smile opens the mouth
# a little and lifts the cheeks. Without that it would be a smirk, so the other scores of the mouth
# are not conditions of smile.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "smile": ("yaw", "pitch", "brow_raise"),
    "mouth_open": ("smile", "yaw", "pitch", "eyes_open"),
    "eyes_open": ("smile", "mouth_open", "yaw", "pitch", "brow_raise"),
    "brow_raise": ("smile", "mouth_open", "yaw", "pitch", "eyes_open"),
    "yaw": ("smile", "mouth_open", "pitch", "eyes_open", "brow_raise", "face_width"),
    "pitch": ("smile", "mouth_open", "yaw", "eyes_open", "brow_raise"),
    "face_width": ("smile", "mouth_open", "yaw", "pitch", "eyes_open", "brow_raise"),
    # Hair becomes grey and thin with age.
    "age": ("gender", "smile", "mouth_open", "yaw", "pitch"),
    "gender": ("age", "smile", "mouth_open", "yaw", "pitch"),
    "hair_brightness": ("age", "gender", "smile", "yaw", "pitch", "hair_length"),
    "hair_length": ("age", "gender", "smile", "yaw", "pitch", "hair_brightness"),
    "stubble": ("age", "gender", "smile", "mouth_open", "yaw", "pitch", "hair_brightness"),
}
# Directions whose strength 1 is one unit of their score, and not its standard deviation; and the
# strengths of an edit that gives none.
UNITS = {"age": ("one year", (-20.0, -10.0, 10.0, 20.0))}
# Number of faces on which the effect of a direction is measured.
PROBES = 24


def fit_scores(
    w: np.ndarray,
    table: Mapping[str, np.ndarray],
    names: Sequence[str],
    conditions: Mapping[str, Sequence[str]],
    others: Mapping[str, np.ndarray],
    seed: int = 0,
    method: str = "best",
    ratio: float = PUBLISHED_RATIO,
) -> tuple[dict[str, Fit], int]:
    """Fit directions of scores to the samples that have all of them.

    Args:
        w: Latents, [N, 512].
        table: Scores by name, [N], NaN where there is none.
        names: The scores to fit.
        conditions, others, seed, method, ratio: See `fit`.

    Returns:
        The fits by score, and the number of samples that have the scores.
    """
    wanted = dict.fromkeys([*names, *(c for name in names for c in conditions.get(name, ()))])
    used = {name: table[name] for name in wanted if name not in others}
    found = np.isfinite(list(used.values())).all(0)
    scores = {name: score[found] for name, score in used.items()}
    fits = fit(
        w[found],
        scores,
        conditions,
        seed,
        method=method,
        ratio=ratio,
        others=others,
        names=names,
    )
    return fits, int(found.sum())


def probe(
    context: Context,
    scorers: Iterable[Scorer],
    array: np.ndarray,
    deviations: Mapping[str, float],
    seed: int,
) -> dict[str, float]:
    """Measure how strength 1 of a direction changes every score, in standard deviations.

    This is half the difference between strengths +1 and -1, as mean over `PROBES` generated faces.
    Faces without scores are left out.

    Args:
        context: Resources of the generator.
        scorers: The scorers that give these scores.
        array: The direction, [512] or [18, 512].
        deviations: Standard deviation of each score.
        seed: Seed of the faces, which should differ from that of the fit.
    """
    import torch

    from dhr_batch.fitting.samples import draw, find_landmarks
    from dhr_batch.stages.tensors import tensor_to_images

    generator = context.network("generator", context.generator)
    finder = context.network("landmarks", "dlib68")
    move = generator.expand_direction(torch.from_numpy(array)).to(context.device)
    changes: list[list[float]] = []
    with torch.inference_mode():
        z = torch.from_numpy(draw(seed, 0)[:PROBES]).to(context.device)
        for ws in generator.broadcast(generator.map(z, 0.7)).split(1):
            ends = []
            for sign in (1, -1):
                image = tensor_to_images(generator.synthesize(ws + sign * move))[0]
                points = find_landmarks(finder, image)
                portrait = Portrait(image, points if np.isfinite(points).all() else None)
                found = {k: v for scorer in scorers for k, v in row(scorer, portrait).items()}
                ends.append([found[name] for name in deviations])
            changes.append([up - down for up, down in zip(*ends, strict=True)])
    mean = np.nanmean(changes, 0) / 2
    return {n: float(m / sd) for m, (n, sd) in zip(mean, deviations.items(), strict=True)}


def calibrate(
    context: Context,
    scorers: Iterable[Scorer],
    fits: Mapping[str, Fit],
    deviations: Mapping[str, float],
    seed: int,
) -> dict[str, Fit]:
    """Scale every direction so that strength 1 changes its score by one standard deviation.

    Directions of `UNITS` change it by one unit.

    Args:
        context: Resources of the generator.
        scorers: The scorers.
        fits: The directions by score.
        deviations: Standard deviation of every score whose change is measured.
        seed: See `probe`.

    Raises:
        CommandError: A direction changes its own score by less than a tenth of what the linear
            model predicts, so it is not the edit that its name says.
    """
    scorers = tuple(scorers)
    done = {}
    for name, fitted in fits.items():
        array, own = fitted.array, 1.0
        # A second time for scores that are far from linear, as those of two classes are.
        for _ in range(2):
            array = array / np.float32(own)
            effect = probe(context, scorers, array, deviations, seed)
            own = effect[name] * deviations[name] / fitted.std
            if not own > 0.1:
                raise CommandError(
                    f"direction {name!r}",
                    f"it changes its own score by {own:.2f} instead of 1",
                    "fit it to more samples, or leave this score out",
                )
            if 0.5 < own < 2:
                break
        scale = own * (fitted.std if name in UNITS else 1)
        scaled = {n: float(f"{e / scale:.3g}") for n, e in effect.items()}
        done[name] = replace(fitted, array=array / np.float32(scale), effect=scaled)
    return done


def in_rows(array: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return a direction [512] in some rows of StyleGAN2's code alone, [18, 512].

    Args:
        array: The direction.
        first: The first row.
        last: The last row.
    """
    rows = np.zeros((PUBLISHED_ROWS, len(array)), np.float32)
    rows[first : last + 1] = array
    return rows


def describe(fitted: Fit, kind: str = "landmark") -> dict[str, Any]:
    """Return the description of a direction in the YAML file of a set.

    Args:
        fitted: The direction.
        kind: The word before "score" in its unit.
    """
    accuracy = {n: round(a, 4) for n, a in fitted.accuracy.items() if not np.isnan(a)}
    unit, strengths = f"one standard deviation ({fitted.std:.4g})", tuple[float, ...]()
    if fitted.name in UNITS:
        unit, strengths = UNITS[fitted.name]
    rows = np.flatnonzero(fitted.array.any(1)).tolist() if fitted.array.ndim == 2 else []
    return {
        "sha256": digest(fitted.array),
        "unit": f"{unit} of the {kind} score {fitted.name}",
        **({"strengths": list(strengths)} if strengths else {}),
        "shape": list(fitted.array.shape),
        **({"rows": [rows[0], rows[-1]]} if rows else {}),
        "length": round(float(np.linalg.norm(fitted.array)), 4),
        "held_out_correlation": round(fitted.correlation, 3),
        "held_out_r2": round(fitted.r2, 3),
        "compared": {m: round(r, 3) for m, r in fitted.compared.items()},
        **({"accuracy": accuracy} if accuracy else {}),
        "leaves_alone": list(fitted.conditions),
        "kept_of_normal": round(fitted.kept, 3),
        "effect_of_strength_1": fitted.effect,
    }


def write_set(
    folder: Path,
    name: str,
    arrays: Mapping[str, np.ndarray],
    directions: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
) -> Path:
    """Write `name`.npz and `name`.yaml, each atomically.

    Args:
        folder: Folder to write to.
        name: Name of the set.
        arrays: Directions by name.
        directions: Description of each direction, with at least `sha256` and `unit`.
        about: Description of the set.

    Returns:
        The path of the YAML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    stored: dict[str, Any] = {n: np.asarray(a, np.float32) for n, a in arrays.items()}
    np.savez_compressed(buffer, **stored)
    text = yaml.safe_dump(
        {**about, "directions": {n: dict(d) for n, d in directions.items()}},
        sort_keys=False,
        allow_unicode=True,
        width=96,
    )
    file = folder / f"{name}.yaml"
    for target, data in ((file.with_suffix(".npz"), buffer.getvalue()), (file, text.encode())):
        with whole(target) as part:
            part.write_bytes(data)
    return file
