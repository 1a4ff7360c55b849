"""Distances between sets of pictures, computed from the features that a run has stored.

- Fréchet distance: ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` for sets with means m and
  covariances C (Dowson and Landau, "The Fréchet distance between multivariate normal
  distributions", 1982). On Inception features it is the FID (Heusel et al., "GANs Trained by a Two
  Time-Scale Update Rule", 2017).
- KID: the unbiased estimate of the squared maximum mean discrepancy with the kernel
  ``k(x, y) = (x.y / D + 1)^3`` (Bińkowski et al., "Demystifying MMD GANs", 2018).

Sums are computed in float64 and in the order of the plan, so the results do not depend on how a
run is split into shards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.linalg

from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.stages import registry

if TYPE_CHECKING:
    import pyarrow.dataset as ds

SOURCE = "aligned"
INCEPTION = "inception"
_KID_BLOCK = 5000
# Numbers of rows that are in memory as float64: of features, and of a kernel matrix.
_CHUNK, _ROWS = 4096, 500


@dataclass(frozen=True)
class Moments:
    """Mean and scatter matrix of a set of features. The sum of two is that of the disjoint union.

    Attributes:
        count: Number of features.
        mean: float64 [D].
        scatter: float64 [D, D], the sum of ``(x - mean) (x - mean)^T``.

    >>> halves = Moments.of(np.array([[1.0], [3.0]])) + Moments.of(np.array([[5.0]]))
    >>> halves.count, halves.mean.tolist(), halves.scatter.tolist()
    (3, [3.0], [[8.0]])
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Compute the moments of features [N, D] with N > 0."""
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
        """Return a factor F of the unbiased covariance ``C = F F^T``.

        Returns:
            float64 [D, r]; r is the numerical rank of C.

        Raises:
            ValueError: If there are fewer than two features.
        """
        if self.count < 2:
            raise ValueError("a covariance needs at least two pictures")
        # A Cholesky factorisation with pivots ends at the numerical rank, which few pictures have
        # much smaller than D. Beyond it, rounding errors would have large square roots.
        covariance = self.scatter / (self.count - 1)
        lower, order, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
        root = np.empty((len(lower), rank))
        root[order - 1] = np.tril(lower)[:, :rank]
        return root


def frechet(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance of two sets, at least 0.

    With ``C = F F^T``, the trace of ``(C1 C2)^(1/2)`` is the sum of the singular values of
    ``F1^T F2``, so no matrix square root is needed.

    >>> a = Moments.of(np.array([[0.0], [2.0]]))
    >>> b = Moments.of(np.array([[3.0], [5.0]]))
    >>> frechet(a, b)
    9.0
    """
    return _frechet(a, a.factor(), b, b.factor())


def _frechet(a: Moments, root_a: np.ndarray, b: Moments, root_b: np.ndarray) -> float:
    common = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * common
    return max(0.0, float(np.square(a.mean - b.mean).sum() + spread))


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Return the KID of two sets of features. The unbiased estimate can be less than 0.

    Up to 5,000 pictures, all pairs are used (torch-fidelity averages over random subsets instead).
    More pictures are split into blocks of at most 5,000 and the KIDs of the blocks are averaged, so
    that the time is linear in N.

    Args:
        a: [N, D] with N > 1.
        b: [N, D].

    Raises:
        ValueError: If the sets have different sizes.

    >>> x = np.array([[0.0], [1.0]])
    >>> kid(x, x)
    -3.5
    """
    if len(a) != len(b):
        raise ValueError(f"KID needs sets of the same size, not {len(a)} and {len(b)} pictures")
    blocks = -(-len(a) // _KID_BLOCK)
    pairs = zip(np.array_split(a, blocks), np.array_split(b, blocks), strict=True)
    return float(np.mean([_mmd(x.astype(np.float64), y.astype(np.float64)) for x, y in pairs]))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared MMD, whose sums over pairs of one set leave out i = j."""
    n = len(x)
    own = sum(_kernel(v, v) - float(((np.square(v).mean(1) + 1) ** 3).sum()) for v in (x, y))
    return own / (n * (n - 1)) - 2 * _kernel(x, y) / n**2


def _kernel(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sum of the kernel over all pairs of a row of x and a row of y."""
    rows = np.array_split(x, -(-len(x) // _ROWS))
    return sum(float(((part @ y.T / x.shape[1] + 1) ** 3).sum()) for part in rows)


@dataclass(frozen=True)
class SetDistance:
    """The distance between the pictures of a stage and the aligned photographs.

    Attributes:
        stage: The stage, as in the table `metrics`.
        metric: `fid`, `kid` or `frechet_EXTRACTOR`.
        value: The distance.
        n: Number of pictures in each set.
        model: The networks that were used, as in the table `metrics`.
    """

    stage: str
    metric: str
    value: float
    n: int
    model: str


def distances(
    run: Storage | Parts, generator: str, leave_out: Collection[str] = ()
) -> list[SetDistance]:
    """Return the distances of all stages, for every extractor whose features are stored.

    The features of two sets are in memory at a time.

    Args:
        run: The run.
        generator: The generator that made its pictures.
        leave_out: Ids of images to leave out.

    Returns:
        The distances; empty without the table `features` or with fewer than two images.

    Raises:
        Damaged: If the table does not match its manifests, or cannot be read.
    """
    parts = Parts.of(run)
    with parts.reading("features"):
        keys = parts.table("features")
        return _distances(parts.dataset(keys), generator, leave_out) if keys else []


def _distances(data: ds.Dataset, generator: str, leave_out: Collection[str]) -> list[SetDistance]:
    counted = ~pc.field("image_id").isin(pa.array(leave_out, pa.string()))
    names = data.to_table(columns=["extractor", "kind"], filter=counted).to_pylist()
    found = []
    for extractor in dict.fromkeys(row["extractor"] for row in names):
        chosen = counted & (pc.field("extractor") == extractor)
        source = _Set(data, chosen & (pc.field("kind") == SOURCE))
        kinds = dict.fromkeys(row["kind"] for row in names if row["extractor"] == extractor)
        for kind in [kind for kind in kinds if kind != SOURCE]:
            pictures = _Set(data, chosen & (pc.field("kind") == kind))
            if min(source.count, pictures.count) > 1:
                model = _model(extractor, generator)
                found += [
                    SetDistance(kind, metric, value, pictures.count, model)
                    for metric, value in _compared(extractor, source, pictures)
                ]
    return found


@dataclass(frozen=True)
class EditingDistance:
    """The distance of pictures of some images to the aligned photographs of others.

    Attributes:
        stage: The stage of the pictures, `aligned` for photographs.
        metric: `fid` or `frechet_EXTRACTOR`.
        value: The Fréchet distance.
        pictures: Number of pictures.
        photographs: Number of photographs.
        model: The networks that were used, as in the table `metrics`.
    """

    stage: str
    metric: str
    value: float
    pictures: int
    photographs: int
    model: str


def editing_distances(
    run: Storage | Parts,
    generator: str,
    stages: Sequence[str],
    without: Collection[str],
    showing: Collection[str],
) -> list[EditingDistance]:
    """Return how far pictures of images without an attribute are from photographs that show it.

    This is the editing FID of StyleRes (Pehlivan et al., CVPR 2023) and StyleFeatureEditor (Bobkov
    et al., CVPR 2024): an edit that brings the attribute, and nothing else, makes the one set look
    like the other. Distances of sets of different sizes must not be compared, because the estimate
    is larger for fewer pictures.

    Args:
        run: The run.
        generator: The generator that made its pictures.
        stages: The stages to compare, such as `aligned`, `refined` and `edit:smile:2`.
        without: Ids of the images whose pictures are compared.
        showing: Ids of the images whose photographs they are compared with.

    Returns:
        The distances by extractor and stage; none of fewer than two pictures or photographs.

    Raises:
        Damaged: If the table does not match its manifests, or cannot be read.
    """
    parts = Parts.of(run)
    with parts.reading("features"):
        keys = parts.table("features")
        if not keys:
            return []
        data = parts.dataset(keys)
        names = data.to_table(columns=["extractor"])["extractor"].unique().to_pylist()
        found = []
        for extractor in names:
            real = _Set(data, _where(extractor, SOURCE, showing))
            metric = "fid" if extractor == INCEPTION else f"frechet_{extractor}"
            for stage in stages:
                made = _Set(data, _where(extractor, stage, without))
                if min(real.count, made.count) > 1:
                    value = _frechet(real.moments, real.root, made.moments, made.root)
                    model = _model(extractor, generator)
                    found.append(
                        EditingDistance(stage, metric, value, made.count, real.count, model)
                    )
        return found


def _where(extractor: str, kind: str, ids: Collection[str]) -> pc.Expression:
    named = pc.field("image_id").isin(pa.array(ids, pa.string()))
    return (pc.field("extractor") == extractor) & (pc.field("kind") == kind) & named


class _Set:
    """Features of one kind of picture, float32 [count, D] in the order of the plan, and moments."""

    def __init__(self, data: ds.Dataset, keep: pc.Expression) -> None:
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


def _model(extractor: str, generator: str) -> str:
    names = ", ".join(registry.MODELS.get(("features", extractor), (extractor,)))
    parts = (names, f"generator={registry.label(generator)}")
    return "; ".join(f"{p} (random weights)" if "tiny" in p else p for p in parts)
