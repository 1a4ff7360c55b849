"""Distances between sets of pictures, from the features that a run has stored.

Frechet distance: ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of the means and covariances of
two sets (Dowson and Landau 1982); on Inception's features it is FID (Heusel et al. 2017). KID
(Binkowski et al. 2018) is the unbiased squared MMD with the kernel ``(x.y / D + 1)^3``. All is
float64 and in the order of the plan, so any split into shards gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.stages import registry

SOURCE = "aligned"
INCEPTION = "inception"
_KID_BLOCK = 5000
# Rows at once in float64, of features and of a kernel matrix.
_CHUNK, _ROWS = 4096, 500


@dataclass(frozen=True)
class Moments:
    """What the Frechet distance needs of a set, float64; sets without common members add up.

    mean: [D]. scatter: sum of the outer products of the deviations from it, [D, D].
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Of [N, D], N > 0."""
        values = features.astype(np.float64)
        mean = values.mean(0)
        values -= mean
        return cls(len(values), mean, values.T @ values)

    def __add__(self, other: Moments) -> Moments:
        count, step = self.count + other.count, other.mean - self.mean
        share = other.count / count
        between = np.outer(step, step) * (self.count * share)
        return Moments(count, self.mean + share * step, self.scatter + other.scatter + between)

    def factor(self) -> np.ndarray:
        """F [D, r] with F F^T equal to the unbiased covariance; r is its numerical rank.

        Raises ValueError for fewer than two members.
        """
        if self.count < 2:
            raise ValueError("a covariance needs at least two pictures")
        values, vectors = np.linalg.eigh(self.scatter / (self.count - 1))
        # Rounding errors of eigenvalues that are 0 would count by their square roots.
        kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
        return vectors[:, kept] * np.sqrt(values[kept])


def frechet(a: Moments, b: Moments) -> float:
    """The Frechet distance of two sets, 0 or more."""
    return _frechet(a, a.factor(), b, b.factor())


def _frechet(a: Moments, root_a: np.ndarray, b: Moments, root_b: np.ndarray) -> float:
    # The trace of the root of C1 C2 is the sum of the singular values of F1^T F2.
    common = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * common
    return max(0.0, float(np.square(a.mean - b.mean).sum() + spread))


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """KID of two sets of N > 1 features each, [N, D]; below 0 for sets that are very alike.

    Of all pairs of up to 5,000 pictures, which torch-fidelity estimates from random subsets; of
    more pictures the mean over blocks of the plan's order, so that the time grows with N only.
    """
    if len(a) != len(b):
        raise ValueError(f"KID is of sets of one size, not of {len(a)} and {len(b)} pictures")
    blocks = -(-len(a) // _KID_BLOCK)
    pairs = zip(np.array_split(a, blocks), np.array_split(b, blocks), strict=True)
    return float(np.mean([_mmd(x.astype(np.float64), y.astype(np.float64)) for x, y in pairs]))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    own = sum(_kernel(v, v) - float(((np.square(v).mean(1) + 1) ** 3).sum()) for v in (x, y))
    return own / (n * (n - 1)) - 2 * _kernel(x, y) / n**2


def _kernel(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of the kernel over all pairs."""
    rows = np.array_split(x, -(-len(x) // _ROWS))
    return sum(float(((part @ y.T / x.shape[1] + 1) ** 3).sum()) for part in rows)


@dataclass(frozen=True)
class SetDistance:
    """How far the pictures of a stage are, as a set, from the aligned photographs.

    stage, model: as in the table `metrics`. n: pictures in each set.
    """

    stage: str
    metric: str
    value: float
    n: int
    model: str


def distances(
    run: Storage, plan: Mapping[str, Any], leave_out: Collection[str] = ()
) -> list[SetDistance]:
    """All distances that the stored features allow, by extractor and stage.

    leave_out: images that do not count. Features of two sets are in memory at a time. There are
    none without the table `features` or with fewer than two images. Raises OSError and ValueError
    where the table cannot be read.
    """
    parts = run.parts("features")
    if not parts:
        return []
    data = ds.dataset(parts, format="parquet", filesystem=run.files)
    counted = ~ds.field("image_id").isin(pa.array(leave_out, pa.string()))
    names = data.to_table(columns=["extractor", "kind"], filter=counted).to_pylist()
    found = []
    for extractor in dict.fromkeys(row["extractor"] for row in names):
        of_it = counted & (ds.field("extractor") == extractor)
        source = _Set(data, of_it & (ds.field("kind") == SOURCE))
        kinds = dict.fromkeys(row["kind"] for row in names if row["extractor"] == extractor)
        for kind in [kind for kind in kinds if kind != SOURCE]:
            pictures = _Set(data, of_it & (ds.field("kind") == kind))
            if min(source.count, pictures.count) > 1:
                model = _model(extractor, plan)
                found += [
                    SetDistance(kind, metric, value, pictures.count, model)
                    for metric, value in _compared(extractor, source, pictures)
                ]
    return found


class _Set:
    """The features of one kind of picture, float32 [count, D] in plan order, and their moments."""

    def __init__(self, data: ds.Dataset, keep: ds.Expression) -> None:
        batches = [
            batch["feature"].flatten().to_numpy().reshape(batch.num_rows, -1)
            for batch in data.to_batches(columns=["feature"], filter=keep)
            if batch.num_rows
        ]
        self.count = sum(map(len, batches))
        if self.count > 1:
            self.features = np.concatenate(batches)
            chunks = [self.features[i : i + _CHUNK] for i in range(0, self.count, _CHUNK)]
            self.moments = reduce(Moments.__add__, map(Moments.of, chunks))
            self.root = self.moments.factor()


def _compared(extractor: str, source: _Set, pictures: _Set) -> Iterator[tuple[str, float]]:
    distance = _frechet(source.moments, source.root, pictures.moments, pictures.root)
    if extractor == INCEPTION:
        yield "fid", distance
        yield "kid", kid(source.features, pictures.features)
    else:
        yield f"frechet_{extractor}", distance


def _model(extractor: str, plan: Mapping[str, Any]) -> str:
    names = ", ".join(registry.MODELS.get(("features", extractor), (extractor,)))
    generator = registry.label(plan.get("config", {}).get("generator", "unknown"))
    parts = (names, f"generator={generator}")
    return "; ".join(f"{p} (random weights)" if "tiny" in p else p for p in parts)
