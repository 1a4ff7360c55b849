"""Linear edit directions from scores of generated faces.

Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing" (2020): a score is
approximately linear in W, ``s(w) = n . w + b``, so the normal n of a linear model is a direction of
an edit. The normals of other scores are projected out so that these do not change. Linear models
are compared on held-out samples; `boundary` is that of InterFaceGAN as published.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.edit.formulas import orthogonalise

FOLDS = 5
# Share of samples at each end from which compared classifiers learn. InterFaceGAN takes 2 % of
# 500,000 samples; of a few thousand, these would be fewer samples than latent dimensions.
EXTREMES = 0.25
# InterFaceGAN's share, and the part of it that it learns from.
PUBLISHED_RATIO, TRAINED = 0.02, 0.7
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
        compared: Held-out correlation of every method that was tried.
        mean, std: Mean and standard deviation of the score over the samples.
        conditions: Scores whose normals are projected out.
        kept: Length of the normal after the projection, relative to the length before.
        accuracy: Of the boundary, if the method is InterFaceGAN's: see `Boundary`.
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
    accuracy: dict[str, float] = field(default_factory=dict)
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


@dataclass(frozen=True, slots=True)
class Boundary:
    """The boundary between high and low scores in W.

    Attributes:
        normal: Its unit normal, which points to high scores, [512].
        validation: Accuracy on the chosen samples that it did not learn from.
        remaining: Accuracy on the samples that were not chosen, of which those above the middle of
            the lowest and the highest score count as high; NaN if there are none.
        trained: Number of samples that it learned from.
    """

    normal: np.ndarray
    validation: float
    remaining: float
    trained: int


def boundary(
    w: np.ndarray, score: np.ndarray, ratio: float = PUBLISHED_RATIO, seed: int = 0
) -> Boundary:
    """Return the boundary of a linear support vector machine, as InterFaceGAN trains it.

    The samples with the highest and the lowest scores are two classes. Of each, 70 % train the
    machine.

    Args:
        w: Latents, [N, D].
        score: Scores, [N].
        ratio: Share of samples of each class, at most 0.5.
        seed: Seed of the split.

    Raises:
        Refused: The share has fewer than two samples.
    """
    from sklearn.svm import SVC

    chosen = int(len(w) * min(ratio, 0.5))
    trained = int(chosen * TRAINED)
    if not trained:
        raise Refused(
            f"{len(w)} samples",
            f"a share of {ratio:g} of them is too little to train and validate a boundary",
            f"use {math.ceil(2 / ratio)} or more, or a larger ratio",
        )
    order = np.argsort(score, kind="stable")
    source = np.random.default_rng(seed)
    low, high = source.permutation(order[:chosen]), source.permutation(order[-chosen:])
    machine = SVC(kernel="linear")
    seen = np.concatenate([high[:trained], low[:trained]])
    machine.fit(w[seen], np.repeat([1, 0], trained))
    unseen = np.concatenate([high[trained:], low[trained:]])
    validation = machine.score(w[unseen], np.repeat([1, 0], chosen - trained))
    rest, remaining = order[chosen:-chosen], math.nan
    if len(rest):
        middle = (score[order[0]] + score[order[-1]]) / 2
        remaining = float(machine.score(w[rest], (score[rest] >= middle).astype(int)))
    normal = machine.coef_[0] / np.linalg.norm(machine.coef_[0])
    return Boundary(normal, float(validation), remaining, 2 * trained)


def methods(choice: str, ratio: float = PUBLISHED_RATIO, seed: int = 0) -> dict[str, Model]:
    """Return the linear models that a method compares: `best`, `ridge`, or `svm` as published."""
    if choice == "svm":
        return {"interfacegan": lambda w, score: boundary(w, score, ratio, seed).normal}
    return {name: m for name, m in METHODS.items() if choice == "best" or name.startswith(choice)}


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
    *,
    method: str = "best",
    ratio: float = PUBLISHED_RATIO,
    others: Mapping[str, np.ndarray] | None = None,
    names: Sequence[str] = (),
) -> dict[str, Fit]:
    """Fit a direction for every score.

    Of several linear models, the one with the best mean held-out correlation is used for all
    scores, so that the normals that are projected out are of one kind.

    Args:
        w: Latents, [N, 512].
        scores: Finite scores by name, [N].
        conditions: For each score, what its edit should not change: scores, or directions of
            `others`. By default all scores.
        seed: Seed of the folds and of the split of `svm`.
        method: The linear models that are compared: `best` for all of `METHODS`, `ridge`, or `svm`
            for the procedure of InterFaceGAN.
        ratio: See `boundary`.
        others: Directions that conditions name, [512].
        names: The scores to return; by default all. Others are only conditions.

    Raises:
        Refused: There are too few samples, a score does not vary, or nothing of a direction is left
            by its conditions.
    """
    count = len(w)
    if count < 10 * FOLDS:
        raise Refused(
            f"{count} samples", "they are too few to fit directions", f"use {10 * FOLDS} or more"
        )
    clean = {name: clip_outliers(np.asarray(s, np.float64)) for name, s in scores.items()}
    for name, score in clean.items():
        if not score.std() > 0:
            raise Refused(
                f"score {name!r}", "it is the same for all samples", "leave this score out"
            )
    w = np.asarray(w, np.float64)
    centred = w - w.mean(0)
    standard = {name: (s - s.mean()) / s.std() for name, s in clean.items()}

    models = methods(method, ratio, seed)
    quality = {
        name: {label: cross_validate(model, centred, s, seed) for label, model in models.items()}
        for name, s in standard.items()
    }
    mean = {m: np.mean([quality[name][m][0] for name in quality]) for m in models}
    best = max(models, key=lambda m: mean[m])
    accuracy: dict[str, dict[str, float]] = {}
    normals: dict[str, np.ndarray] = {}
    for name, score in standard.items():
        if method == "svm":
            found = boundary(centred, np.asarray(scores[name], np.float64), ratio, seed)
            normals[name] = found.normal
            accuracy[name] = {"validation": found.validation, "remaining": found.remaining}
        else:
            normals[name] = models[best](centred, score)

    fits = {}
    for name in names or standard:
        score = standard[name]
        wanted = conditions.get(name, ()) if conditions is not None else normals
        fixed = tuple(o for o in wanted if o != name)
        along = {**normals, **(others or {})}
        try:
            normal = orthogonalise(normals[name], np.array([along[o] for o in fixed]))
        except ValueError as error:
            raise Refused(f"score {name!r}", str(error), "use fewer conditions") from error
        slope = np.polyfit(centred @ normals[name], score, 1)[0]
        step = slope * (normals[name] @ normal)
        fits[name] = Fit(
            name=name,
            array=(normal / step).astype(np.float32),
            method=best,
            correlation=quality[name][best][0],
            r2=quality[name][best][1],
            compared={m: quality[name][m][0] for m in models},
            mean=float(clean[name].mean()),
            std=float(clean[name].std()),
            conditions=fixed,
            kept=float(np.linalg.norm(normal) / np.linalg.norm(normals[name])),
            accuracy=accuracy.get(name, {}),
        )
    return fits
