"""From fitted directions to a shipped set: what an edit really does, calibration, and the files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dhr_batch.fitting.directions import Fit, fit
from dhr_batch.stages.direction_files import digest

if TYPE_CHECKING:
    from dhr_batch.fitting.samples import Samples
    from dhr_batch.stages.base import Context

# What each edit leaves alone. A smile opens the mouth a little and lifts the cheeks: taking that
# out would leave a smirk, so smile is not held against the other scores of the mouth.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "smile": ("yaw", "pitch", "brow_raise"),
    "mouth_open": ("smile", "yaw", "pitch", "eyes_open"),
    "eyes_open": ("smile", "mouth_open", "yaw", "pitch", "brow_raise"),
    "brow_raise": ("smile", "mouth_open", "yaw", "pitch", "eyes_open"),
    "yaw": ("smile", "mouth_open", "pitch", "eyes_open", "brow_raise", "face_width"),
    "pitch": ("smile", "mouth_open", "yaw", "eyes_open", "brow_raise"),
    "face_width": ("smile", "mouth_open", "yaw", "pitch", "eyes_open", "brow_raise"),
}
PROBES = 24


def score_table(landmarks: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of N faces by name, [N]; NaN where the landmarks [N, 68, 2] are NaN."""
    from dhr_batch.stages.face_scores import scores

    rows = [scores(p) if np.isfinite(p).all() else dict.fromkeys(names, np.nan) for p in landmarks]
    return {name: np.array([row[name] for row in rows]) for name in names}


def fit_samples(samples: Samples, seed: int = 0) -> tuple[dict[str, Fit], int]:
    """Fit every score of `CONDITIONS`; returns the fits and how many samples had landmarks."""
    table = score_table(samples.landmarks, tuple(CONDITIONS))
    found = np.isfinite(samples.landmarks).all((1, 2))
    fits = fit(samples.w[found], {n: s[found] for n, s in table.items()}, CONDITIONS, seed)
    return fits, int(found.sum())


def probe(
    context: Context, array: np.ndarray, deviations: Mapping[str, float], seed: int
) -> dict[str, float]:
    """What strength 1 of a direction [512] does to every score, in deviations of that score.

    Mean over `PROBES` generated faces (seeded apart from any fit) of half the difference between
    strengths +1 and -1; faces that lose their landmarks are left out.
    """
    import torch

    from dhr_batch.fitting.samples import draw, find_landmarks
    from dhr_batch.stages.tensors import tensor_to_images

    generator = context.network("generator", context.generator)
    finder = context.network("landmarks", "dlib68")
    move = generator.expand_direction(torch.from_numpy(array)).to(context.device)
    ends: dict[int, list[np.ndarray]] = {1: [], -1: []}
    with torch.inference_mode():
        z = torch.from_numpy(draw(seed, 0)[:PROBES]).to(context.device)
        for ws in generator.broadcast(generator.map(z, 0.7)).split(1):
            for sign, landmarks in ends.items():
                image = tensor_to_images(generator.synthesize(ws + sign * move))[0]
                landmarks.append(find_landmarks(finder, image))
    up, down = (score_table(np.stack(ends[sign]), tuple(deviations)) for sign in (1, -1))
    return {n: float(np.nanmean(up[n] - down[n]) / 2 / sd) for n, sd in deviations.items()}


def calibrate(context: Context, fits: Mapping[str, Fit], seed: int) -> dict[str, Fit]:
    """Scale every direction so that strength 1 really moves its score by one deviation.

    Raises ValueError for a direction that moves its own score by less than a quarter of what the
    linear model says: it is not the edit that its name promises.
    """
    deviations = {name: f.std for name, f in fits.items()}
    done = {}
    for name, fitted in fits.items():
        effect = probe(context, fitted.array, deviations, seed)
        own = effect[name]
        if not own > 0.25:
            raise ValueError(f"direction {name!r} moves its own score by {own:.2f} instead of 1")
        scaled = {n: round(e / own, 3) for n, e in effect.items()}
        done[name] = replace(fitted, array=fitted.array / np.float32(own), effect=scaled)
    return done


def describe(fitted: Fit) -> dict[str, Any]:
    """What the YAML of a set says about one direction."""
    return {
        "sha256": digest(fitted.array),
        "unit": f"one standard deviation ({fitted.std:.4g}) of the landmark score {fitted.name}",
        "shape": list(fitted.array.shape),
        "held_out_correlation": round(fitted.correlation, 3),
        "held_out_r2": round(fitted.r2, 3),
        "compared": {m: round(r, 3) for m, r in fitted.compared.items()},
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
    """Write `name`.npz and `name`.yaml, each in one step; returns the YAML's path.

    directions: per name at least `sha256` and `unit`. about: what made the set.
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
        part = target.with_suffix(f"{target.suffix}.{os.getpid()}.part")
        part.write_bytes(data)
        os.replace(part, target)
    return file
