"""Linear edit directions from scores of generated faces.

Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing" (2020): a score is
linear in W to a good approximation, so the normal of a linear model of it is an edit, and the
normals of other scores are projected out so that these stay. Linear models are compared on held-out
samples; InterFaceGAN's own is the support vector machine on the extremes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dhr_batch.stages.directions import orthogonalise

FOLDS = 5
# Share of samples at each end that the classifiers learn from. InterFaceGAN takes 2 % of 500 000;
# of a few thousand that would leave fewer samples than latent dimensions.
EXTREMES = 0.25
# Penalties per sample, in units of the variance of a latent (0.2 on average, 8 at most).
RIDGE_PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3)
Model = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted direction, scaled so that strength 1 moves the linear model by one deviation.

    correlation, r2: of the chosen method on held-out samples. compared: held-out correlation of
    every method. mean, std: of the score over the samples.
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
    """Indices of the lowest and the highest scores."""
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
    """Mean over folds of (correlation, R2) of a linear model's predictions for unseen samples.

    A classifier's normal has no scale, so R2 is taken after a line is fitted on the seen samples.
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
    """A score with its lowest and highest `tail` percent pulled in: misplaced landmarks."""
    return np.clip(score, *np.percentile(score, [tail, 100 - tail]))


def fit(
    w: np.ndarray,
    scores: Mapping[str, np.ndarray],
    conditions: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> dict[str, Fit]:
    """Fit a direction for every score.

    w: [N, 512]. scores: name -> [N], finite. conditions: name -> the scores that its edit leaves
    alone; by default all others. The method with the best held-out correlation is used for all
    scores alike, so that the normals that are projected out are of one kind. Raises ValueError for
    too few samples and for a score that does not vary.
    """
    count = len(w)
    if count < 10 * FOLDS:
        raise ValueError(
            f"{count} samples are too few to fit directions; take {10 * FOLDS} or more"
        )
    clean = {name: clip_outliers(np.asarray(s, np.float64)) for name, s in scores.items()}
    for name, score in clean.items():
        if not score.std() > 0:
            raise ValueError(f"score {name!r} is the same for all samples")
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
