"""Linear edit directions from scores of generated faces.

Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing" (2020): a score is
approximately linear in W, ``s(w) = n . w + b``, so the normal n of a linear model is a direction of
an edit. The normals of other scores are projected out so that these do not change. Linear models
are compared on held-out samples; that of InterFaceGAN is the support vector machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.edit.formulas import orthogonalise

FOLDS = 5
# Share of samples at each end from which classifiers learn. InterFaceGAN takes 2 % of 500,000
# samples; of a few thousand, these would be fewer samples than latent dimensions.
EXTREMES = 0.25
# Penalties per sample. The variance of a latent dimension is 0.2 on average and 8 at most.
RIDGE_PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3)
Model = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted direction, scaled so that strength 1 changes the linear model by one deviation.

    Attributes:
        name: Name of the score.
        array: The direction, float32 [512].
        method: The linear model.
        correlation, r2: Its quality on held-out samples.
        compared: Held-out correlation of every method.
        mean, std: Mean and standard deviation of the score over the samples.
        conditions: Scores whose normals are projected out.
        kept: Length of the normal after the projection, relative to the length before.
        effect: Measured change of every score at strength 1 (`direction_sets.calibrate`).
    """

    name: str
    array: np.ndarray
    method: str
    correlation: float
    r2: float
    compared: dict[str, float]
    mean: float
    std: float
    conditions: tuple[str, ...] = ()
    kept: float = 1.0
    effect: dict[str, float] = field(default_factory=dict)


def _ridge(penalty: float) -> Model:
    def normal(w: np.ndarray, score: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import Ridge

        return Ridge(alpha=penalty * len(w)).fit(w, score).coef_

    return normal


def _extremes(score: np.ndarray) -> np.ndarray:
    """Return the indices of the lowest and the highest scores."""
    order = np.argsort(score, kind="stable")
    count = max(2, int(len(score) * EXTREMES))
    return np.concatenate([order[:count], order[-count:]])


def _logistic(w: np.ndarray, score: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    chosen = _extremes(score)
    model = LogisticRegression(C=0.01, max_iter=500)
    return model.fit(w[chosen], score[chosen] > np.median(score)).coef_[0]


def _svm(w: np.ndarray, score: np.ndarray) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    chosen = _extremes(score)
    model = LinearSVC(C=0.001, max_iter=5000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(w[chosen], score[chosen] > np.median(score)).coef_[0]


METHODS: dict[str, Model] = {
    **{f"ridge {p:g}": _ridge(p) for p in RIDGE_PENALTIES},
    "logistic": _logistic,
    "svm": _svm,
}


def cross_validate(
    model: Model, w: np.ndarray, score: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """Return correlation and R2 of a linear model on held-out samples, as means over folds.

    The normal of a classifier has no scale, so a line is first fitted to the training samples.
    """
    parts = np.array_split(np.random.default_rng(seed).permutation(len(w)), FOLDS)
    results = []
    for part in parts:
        seen = np.setdiff1d(np.arange(len(w)), part)
        normal = model(w[seen], score[seen])
        along = w @ normal
        slope, offset = np.polyfit(along[seen], score[seen], 1)
        residual = score[part] - (slope * along[part] + offset)
        correlation = np.corrcoef(along[part], score[part])[0, 1]
        results.append((correlation, 1 - residual.var() / score[part].var()))
    correlation, r2 = np.mean(results, 0)
    return float(correlation), float(r2)


def clip_outliers(score: np.ndarray, tail: float = 0.5) -> np.ndarray:
    """Clip a score to its percentiles `tail` and 100 - `tail`, because of misplaced landmarks."""
    return np.clip(score, *np.percentile(score, [tail, 100 - tail]))


def fit(
    w: np.ndarray,
    scores: Mapping[str, np.ndarray],
    conditions: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> dict[str, Fit]:
    """Fit a direction for every score.

    The method with the best mean held-out correlation is used for all scores, so that the normals
    that are projected out are of one kind.

    Args:
        w: Latents, [N, 512].
        scores: Finite scores by name, [N].
        conditions: For each score, the scores that its edit should not change; by default all.
        seed: Seed of the folds.

    Raises:
        Refused: There are too few samples, or a score does not vary.
    """
    count = len(w)
    if count < 10 * FOLDS:
        raise Refused(
            f"{count} samples", "they are too few to fit directions", f"use {10 * FOLDS} or more"
        )
    clean = {name: clip_outliers(np.asarray(s, np.float64)) for name, s in scores.items()}
    for name, score in clean.items():
        if not score.std() > 0:
            raise Refused(f"score {name!r}", "it is the same for all samples")
    w = np.asarray(w, np.float64)
    centred = w - w.mean(0)
    standard = {name: (s - s.mean()) / s.std() for name, s in clean.items()}

    quality = {
        name: {method: cross_validate(model, centred, s, seed) for method, model in METHODS.items()}
        for name, s in standard.items()
    }
    mean = {m: np.mean([quality[name][m][0] for name in quality]) for m in METHODS}
    method = max(METHODS, key=lambda m: mean[m])
    normals = {name: METHODS[method](centred, s) for name, s in standard.items()}

    fits = {}
    for name, score in standard.items():
        wanted = conditions.get(name, ()) if conditions is not None else normals
        others = tuple(o for o in wanted if o != name)
        normal = orthogonalise(normals[name], np.array([normals[o] for o in others]))
        slope = np.polyfit(centred @ normals[name], score, 1)[0]
        step = slope * (normals[name] @ normal)
        fits[name] = Fit(
            name=name,
            array=(normal / step).astype(np.float32),
            method=method,
            correlation=quality[name][method][0],
            r2=quality[name][method][1],
            compared={m: quality[name][m][0] for m in METHODS},
            mean=float(clean[name].mean()),
            std=float(clean[name].std()),
            conditions=others,
            kept=float(np.linalg.norm(normal) / np.linalg.norm(normals[name])),
        )
    return fits
