"""Distances between sets of pictures: analytic values, torch-fidelity's, and any split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity import metric_fid, metric_kid

from dhr_batch.pipeline.stats import set_distances
from dhr_batch.pipeline.stats.set_distances import (
    Moments,
    SetDistance,
    distances,
    editing_distances,
    frechet,
    kid,
)
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.tables import rows as tables
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages.record import Feature, Record

GENERATOR = "mobilestylegan-256"
INFO = RunInfo(rows=1, embedder="w+", store_features=True)


def draws(seed: int, count: int, size: int, shift: float = 0) -> np.ndarray:
    """Correlated features with a mean and scales of their own."""
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((count, size)) @ draw.uniform(-1, 1, (size, size)) / size**0.5
    return (mixed + draw.uniform(0, 1, size) + shift).astype(np.float32)


def test_equal_covariances_leave_the_squared_distance_of_the_means():
    a = draws(0, 300, 16).astype(np.float64)
    step = np.linspace(-1, 2, 16)
    assert frechet(Moments.of(a), Moments.of(a + step)) == pytest.approx((step**2).sum(), rel=1e-9)
    assert frechet(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-9)


def test_commuting_covariances_leave_the_distance_of_the_deviations():
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.standard_normal((8, 8)))[0]
    # An orthonormal design without mean: its covariance is exactly the identity.
    columns = np.column_stack([np.ones(64), draw.standard_normal((64, 8))])
    design = np.linalg.qr(columns)[0][:, 1:] * 63**0.5
    s, t = np.linspace(0.5, 2, 8), np.linspace(3, 1, 8)
    value = frechet(Moments.of(design * s @ basis), Moments.of(design * t @ basis))
    assert value == pytest.approx(((s - t) ** 2).sum(), rel=1e-9)


def fidelity(a: np.ndarray, b: np.ndarray) -> float:
    one, two = (
        metric_fid.fid_features_to_statistics(torch.from_numpy(x.astype(np.float64)))
        for x in (a, b)
    )
    return metric_fid.fid_statistics_to_metric(one, two, False)[metric_fid.KEY_METRIC_FID]


def test_frechet_equals_torch_fidelity():
    a, b = draws(0, 500, 48), draws(1, 700, 48, 0.1)
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(fidelity(a, b), rel=1e-9)


def test_fewer_pictures_than_dimensions():
    """The trace of the root is then the nuclear norm of X1 X2^T: no root of a rounding error."""
    a, b = draws(0, 20, 64), draws(1, 20, 64, 0.1)
    x, y = (v.astype(np.float64) - v.astype(np.float64).mean(0) for v in (a, b))
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum() / 19
    steps = np.square(a.astype(np.float64).mean(0) - b.astype(np.float64).mean(0)).sum()
    exact = steps + np.square(x).sum() / 19 + np.square(y).sum() / 19 - 2 * root
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(exact, rel=1e-9)
    assert fidelity(a, b) == pytest.approx(exact, rel=1e-3)


def test_moments_of_any_split_add_up():
    a = draws(0, 300, 32) + 1000
    whole = Moments.of(a)
    for cuts in ([1], [100, 101, 250], list(range(1, 300))):
        total, *others = map(Moments.of, np.split(a, cuts))
        for part in others:
            total += part
        assert total.count == 300
        np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(total.scatter, whole.scatter, rtol=1e-9, atol=1e-7)


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="at least two pictures"):
        Moments.of(draws(0, 1, 4)).factor()


def fidelity_kid(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (torch.from_numpy(v.astype(np.float64)) for v in (a, b))
    found = metric_kid.kid_features_to_metric(
        x, y, kid_subsets=1, kid_subset_size=len(a), verbose=False
    )
    return found[metric_kid.KEY_METRIC_KID_MEAN]


def test_kid_is_unbiased_over_all_pairs():
    a, b = (x.astype(np.float64) for x in (draws(0, 40, 8), draws(1, 40, 8, 0.3)))

    def kernel(x, y):
        return (x @ y.T / 8 + 1) ** 3

    off = ~np.eye(40, dtype=bool)
    exact = kernel(a, a)[off].mean() + kernel(b, b)[off].mean() - 2 * kernel(a, b).mean()
    assert kid(a, b) == pytest.approx(exact, rel=1e-9)


def test_kid_of_sets_of_two_sizes_is_refused():
    with pytest.raises(ValueError, match="not 40 and 55 pictures"):
        kid(draws(0, 40, 8), draws(1, 55, 8))


def test_kid_equals_torch_fidelity():
    a, b = draws(0, 1100, 24), draws(1, 1100, 24, 0.1)
    assert kid(a, b) == pytest.approx(fidelity_kid(a, b), rel=1e-9)


def test_kid_of_many_pictures_is_the_mean_over_blocks(monkeypatch: pytest.MonkeyPatch):
    a, b = draws(0, 90, 4), draws(1, 90, 4, 0.3)
    monkeypatch.setattr(set_distances, "_KID_BLOCK", 40)
    blocks = [fidelity_kid(a[i : i + 30], b[i : i + 30]) for i in (0, 30, 60)]
    assert kid(a, b) == pytest.approx(np.mean(blocks), rel=1e-9)


KINDS = ("aligned", "inverted", "edit:smile:-1.5")


def write(root: Path, sizes: list[int]) -> Path:
    """A run of 30 images in shards of these sizes, with features of two extractors."""
    sets = {(e, k): draws(i, 30, 12, i / 9) for i, (e, k) in enumerate(
        (e, k) for e in ("inception", "st_alex") for k in KINDS
    )}  # fmt: skip
    (root / "features").mkdir(parents=True)
    first = 0
    for shard, size in enumerate(sizes):
        file = TableFile(root / "features" / f"part-{shard:05d}.parquet", "features", INFO)
        for n in range(first, first + size):
            vectors = tuple(Feature(k, e, rows[n]) for (e, k), rows in sets.items())
            record = Record(f"{n:02d}.png", "", features=vectors)
            file.append(tables.rows_of(record, shard, INFO)["features"])
        file.close()
        first += size
    return root


def test_shards_give_the_values_of_a_single_pass(tmp_path: Path):
    whole = distances(connect(write(tmp_path / "one", [30])), GENERATOR)
    assert [(d.stage, d.metric, d.n) for d in whole] == [
        ("inverted", "fid", 30),
        ("inverted", "kid", 30),
        ("edit:smile:-1.5", "fid", 30),
        ("edit:smile:-1.5", "kid", 30),
        ("inverted", "frechet_st_alex", 30),
        ("edit:smile:-1.5", "frechet_st_alex", 30),
    ]
    assert whole[0].model == "inception-2015-12-05; generator=mobilestylegan-256"
    assert whole[-1].model == "stlpips-alex; generator=mobilestylegan-256"
    source, inverted = draws(0, 30, 12), draws(1, 30, 12, 1 / 9)
    assert whole[0].value == pytest.approx(fidelity(source, inverted), rel=1e-6)
    assert whole[1].value == pytest.approx(kid(source, inverted), rel=1e-9)
    for sizes in ([1] * 30, [7, 0, 11, 12]):
        split = distances(connect(write(tmp_path / str(len(sizes)), sizes)), GENERATOR)
        for a, b in zip(whole, split, strict=True):
            assert (a.stage, a.metric, a.n) == (b.stage, b.metric, b.n)
            assert a.value == pytest.approx(b.value, rel=1e-9)


def test_chunks_give_the_value_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = connect(write(tmp_path, [30]))
    whole = distances(run, GENERATOR)
    monkeypatch.setattr(set_distances, "_CHUNK", 7)
    for a, b in zip(whole, distances(run, GENERATOR), strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-9)


def test_images_that_do_not_count_are_left_out(tmp_path: Path):
    found = distances(connect(write(tmp_path, [15, 15])), GENERATOR, ["00.png", "29.png"])
    source, inverted = draws(0, 30, 12)[1:29], draws(1, 30, 12, 1 / 9)[1:29]
    assert found[0] == SetDistance(
        "inverted", "fid", found[0].value, 28, "inception-2015-12-05; generator=mobilestylegan-256"
    )
    assert found[0].value == pytest.approx(fidelity(source, inverted), rel=1e-6)


def test_without_features_or_with_one_image_there_are_none(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert distances(connect(tmp_path / "empty"), GENERATOR) == []
    assert distances(connect(write(tmp_path / "one", [1])), GENERATOR) == []


def test_random_weights_are_said(tmp_path: Path):
    assert set_distances._model("tiny", "tiny") == (
        "tiny (random weights); generator=tiny (random weights)"
    )


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance with a matrix root, straight from its definition."""
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1 + c2 - 2 * root.real))


def test_edited_pictures_are_compared_with_photographs_of_other_images(tmp_path: Path):
    run = connect(write(tmp_path, [7, 0, 11, 12]))
    ids = [f"{n:02d}.png" for n in range(30)]
    stages = ["aligned", "edit:smile:-1.5", "edit:smile:9"]
    found = editing_distances(run, GENERATOR, stages, ids[:14], ids[14:])
    assert [(d.metric, d.stage, d.pictures, d.photographs) for d in found] == [
        (metric, stage, 14, 16) for metric in ("fid", "frechet_st_alex") for stage in stages[:2]
    ]
    photographs, edited = draws(0, 30, 12), draws(2, 30, 12, 2 / 9)
    of = {"aligned": photographs, "edit:smile:-1.5": edited}
    for distance in found[:2]:
        expected = by_definition(photographs[14:], of[distance.stage][:14])
        assert distance.value == pytest.approx(expected, rel=1e-6)
    assert found[1].model == "inception-2015-12-05; generator=mobilestylegan-256"
    assert editing_distances(run, GENERATOR, stages, ids[:1], ids[14:]) == []


def test_an_edit_that_moves_the_features_by_hand(tmp_path: Path):
    """Photographs 0 and 4 have the attribute, 1 and 3 do not, and the edit moves these to 0, 4."""
    vectors = {
        "a.png": {"aligned": 0.0},
        "b.png": {"aligned": 4.0},
        "c.png": {"aligned": 1.0, "edit:smile:2": 0.0},
        "d.png": {"aligned": 3.0, "edit:smile:2": 4.0},
    }
    (tmp_path / "features").mkdir()
    file = TableFile(tmp_path / "features" / "part-00000.parquet", "features", INFO)
    for image_id, of in vectors.items():
        made = [Feature(k, "st_alex", np.array([v], np.float32)) for k, v in of.items()]
        record = Record(image_id, "", features=tuple(made))
        file.append(tables.rows_of(record, 0, INFO)["features"])
    file.close()
    stages, images = ["aligned", "edit:smile:2"], list(vectors)
    found = editing_distances(connect(tmp_path), GENERATOR, stages, images[2:], images[:2])
    # Variances 8 and 2 with equal means: 8 + 2 - 2 * sqrt(8 * 2) = 2.
    assert [d.value for d in found] == pytest.approx([2, 0], abs=1e-9)
