"""The dataset `synthetic`, with the tiny generator and a parser that takes a disc for the face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.datasets import ground_truth, listing, named, parquet, synthetic
from dhr_batch.pipeline.datasets.items import DatasetError
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.stages.occluders import KINDS
from dhr_batch.stages.record import required
from dhr_batch.tests.pipeline.discs import Disc, context


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "context", lambda generator: context())


def test_a_picture_depends_on_its_seed_and_number_alone() -> None:
    made = context()
    one = synthetic.sample(made, 5, 3, 0.7)
    for index in (0, 7):
        synthetic.sample(made, 5, index, 0.7)
    again, other, seed = (
        synthetic.sample(context(), 5, 3, 0.7),
        synthetic.sample(made, 5, 4, 0.7),
        synthetic.sample(made, 6, 3, 0.7),
    )
    np.testing.assert_array_equal(one.occluded.image, again.occluded.image)
    np.testing.assert_array_equal(one.truth.latent, again.truth.latent)
    for different in (other, seed):
        assert np.abs(one.truth.latent - different.truth.latent).max() > 0.01


def test_the_picture_is_the_render_of_its_code() -> None:
    import torch

    from dhr_batch.stages.tensors import tensor_to_images

    made = context()
    truth = synthetic.sample(made, 0, 0, 0.7).truth
    net = made.network("generator", "tiny")
    code = torch.from_numpy(truth.latent[None])
    assert np.allclose(net.map(torch.from_numpy(truth.z[None]), 0.7), code, atol=1e-5)
    (picture,) = tensor_to_images(net.synthesize(net.broadcast(code)))
    np.testing.assert_array_equal(picture, truth.clean)


@pytest.mark.parametrize("count", [8, 64, 1000])
def test_any_first_pictures_cover_the_shares_evenly_and_so_does_each_kind(count: int) -> None:
    shares = np.array([synthetic.share(i) for i in range(count)])
    assert shares.min() >= 0.05
    assert shares.max() <= 0.4
    quarters = np.histogram(shares, 4, (0.05, 0.4))[0]
    assert quarters.min() >= count // 4 - 1
    if count >= 64:
        for kind in range(len(KINDS)):
            own = np.histogram(shares[kind :: len(KINDS)], 4, (0.05, 0.4))[0]
            assert own.min() >= count // 16 - 2


def test_a_draw_without_a_face_is_drawn_again() -> None:
    made = context(Disc(blind=2))
    first, second = (synthetic.sample(made, 0, 0, 0.7) for _ in range(2))
    assert np.abs(first.truth.latent - second.truth.latent).max() > 0.01


def test_a_generator_without_faces_is_named() -> None:
    with pytest.raises(DatasetError, match=r"'tiny': no face was found"):
        synthetic.sample(context(Disc(blind=1)), 0, 0, 0.7)


@pytest.mark.usefixtures("tiny")
def test_what_is_written_is_a_dataset_with_its_truth(tmp_path: Path) -> None:
    described = synthetic.write_dataset(tmp_path / "a", 10, seed=2, generator="tiny", pairs=True)
    dataset = named.find(described)
    assert dataset.aligned
    items = named.list_images(dataset)
    ids = [name for n in range(10) for name in (f"{n:05}.png", f"{n:05}-clean.png")]
    assert [item.image_id for item in items] == ids
    records = [read_record(item, "") for item in items]
    for n, (record, twin) in enumerate(zip(records[::2], records[1::2], strict=True)):
        made = synthetic.sample(context(), 2, n, 0.7)
        truth, other = required(record.truth), required(twin.truth)
        for name in ("clean", "face", "occluder", "z", "latent"):
            np.testing.assert_array_equal(getattr(truth, name), getattr(made.truth, name))
            np.testing.assert_array_equal(getattr(other, name), getattr(made.truth, name))
        assert truth.truncation == 0.7
        assert truth.occluded
        assert not other.occluded
    table = pq.read_table(tmp_path / "a" / "synthetic.parquet").to_pandas()
    assert table["kind"][::2].tolist() == [KINDS[n % 4] for n in range(10)]
    assert set(table["kind"][1::2]) == {"none"}
    # 32 px: a pixel of an edge is a large share of a face.
    assert np.allclose(table["share"][::2], [synthetic.share(n) for n in range(10)], atol=0.1)
    assert list((tmp_path / "a").glob("*.part")) == []


@pytest.mark.usefixtures("tiny")
def test_more_pictures_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    for images in (3, 9):
        synthetic.write_dataset(tmp_path / str(images), images, generator="tiny")
    few, many = (pq.read_table(tmp_path / n / "synthetic.parquet") for n in ("3", "9"))
    assert many.slice(0, 3).equals(few)


@pytest.mark.usefixtures("tiny")
def test_a_damaged_truth_costs_its_image_alone(tmp_path: Path) -> None:
    described = synthetic.write_dataset(tmp_path, 3, generator="tiny")
    file = tmp_path / "synthetic.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1]["occluder"]["bytes"] = rows[1]["occluder"]["bytes"][:40]
    file.unlink()
    ground_truth.write_truths(file, rows, {})
    parquet._kept.cache_clear()
    parquet._other_rows.cache_clear()
    parquet._image_rows.cache_clear()
    records = [read_record(item, "") for item in named.list_images(named.find(described))]
    assert [record.failure is not None for record in records] == [False, True, False]
    assert "00001.png" in required(records[1].failure).message
    assert "ground truth of row 1" in required(records[1].failure).message


@pytest.mark.usefixtures("tiny")
def test_a_parquet_of_the_same_columns_without_the_mark_has_no_truth(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 2, generator="tiny")
    file = tmp_path / "synthetic.parquet"
    table = pq.read_table(file)
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata(None), other)
    marked, plain = (
        named.scan(named.Dataset(name="x", root=str(f), column="image")).items[0]
        for f in (file, other)
    )
    assert ground_truth.read_truth(marked) is not None
    assert ground_truth.read_truth(plain) is None
    assert listing.read_bytes(plain) == listing.read_bytes(marked)


@pytest.mark.usefixtures("tiny")
def test_the_command_makes_the_named_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHR_BATCH_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="dhr-batch datasets synthesize"):
        named.list_images(named.find("synthetic"))
    words = ["datasets", "synthesize", "--images", "2", "--generator", "tiny"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "synthetic" / "synthetic.yaml") in result.output
    items = named.list_images(named.find("synthetic"))
    assert [item.image_id for item in items] == ["00000.png", "00001.png"]


def test_an_unknown_generator_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["datasets", "synthesize", "--generator", "mobile", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "unknown generator 'mobile'" in result.output
    assert list(tmp_path.iterdir()) == []
