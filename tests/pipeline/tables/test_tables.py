"""What is written can be read by everyone, and says what it is."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.errors import NoRun, Refused
from dhr_batch.pipeline.runs import card
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.tables import codec, schemas
from dhr_batch.pipeline.tables import rows as tables
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages.record import EditedImage, Feature, Metric, Record

ROWS = 3
INFO = RunInfo(
    rows=ROWS,
    embedder="w+",
    thresholds={"face": 0.5},
    store_features=True,
    random_weights=True,
    magnitudes={"conv1.weight": 400.0, "feature": 1.0},
)
WEIGHT_STEP, FEATURE_STEP = 400 * codec.LEVELS["small"].weight, codec.LEVELS["small"].feature


def record(image_id: str, seed: int = 0) -> Record:
    draw = np.random.default_rng(seed)

    def picture() -> np.ndarray:
        return draw.integers(0, 256, (16, 16, 3), np.uint8)

    def code() -> np.ndarray:
        return draw.standard_normal((ROWS, 512)).astype(np.float32)

    edits = tuple(
        EditedImage("smile", s, "ab" * 32, code(), picture(), {"smile": s}) for s in (-1.0, 1.5)
    )
    return Record(
        image_id=image_id,
        source=image_id,
        image=picture(),
        quad=np.arange(8.0).reshape(4, 2),
        source_size=(40, 30),
        latent=code(),
        inverted=picture(),
        labels=draw.integers(0, 19, (16, 16), np.uint8),
        mask=draw.random((16, 16)) > 0.25,
        delta={"conv1.weight": draw.standard_normal((4, 4, 3, 3)).astype(np.float32)},
        feature=draw.standard_normal((2, 4, 4)).astype(np.float32),
        refined=picture(),
        edits=edits,
        metrics=(Metric("refined", "psnr", 21.5, "tiny"),),
        features=tuple(
            Feature(kind, "tiny", draw.standard_normal(5).astype(np.float32))
            for kind in ("aligned", "refined")
        ),
        notes=("first frame of 3",),
    )


def write(root: Path, records: list[Record], info: RunInfo = INFO, shard: int = 0) -> Path:
    for table in info.tables:
        (root / table).mkdir(parents=True, exist_ok=True)
    files = {t: TableFile(root / t / f"part-{shard:05d}.parquet", t, info) for t in info.tables}
    for one in records:
        for table, rows in tables.rows_of(one, shard, info).items():
            files[table].append(rows)
    for file in files.values():
        file.close()
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards; the second one has a quarantined image only."""
    root = tmp_path_factory.mktemp("run")
    write(root, [record("a.jpg", 1), record("b/c d.png", 2)])
    write(root, [record("e.jpg").failed("align", "no_face", "e.jpg shows no face")], shard=1)
    plan = {
        "dataset": "photos",
        "config": {"generator": "tiny"},
        "fingerprint": {"version": "0"},
        "shards": [["a.jpg", "b/c d.png"], ["e.jpg"]],
    }
    (root / "plan.json").write_text(json.dumps(plan))
    (root / "_state").mkdir()
    (root / "_staging" / "x").mkdir(parents=True)
    (root / "_staging" / "x" / "images.parquet").write_bytes(b"unfinished")
    card.write_card(root, StoredPlan.from_json(plan), 3, COUNTS)
    # Runs of early versions list no files. In others, parts without a manifest are refused.
    (root / "_state" / "owner.json").unlink()
    return root


COUNTS = {
    "images": 10,
    "latents": 2,
    "masks": 4,
    "edits": 4,
    "metrics": 2,
    "quarantine": 1,
    "deltas": 4,
    "features": 4,
}


def test_the_card_counts_rows_without_opening_a_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "part-00000.parquet").write_bytes(b"no Parquet")
    plan = {
        "dataset": "photos",
        "config": {"generator": "tiny"},
        "fingerprint": {"version": "0"},
        "shards": [["a.jpg"], ["b.jpg"]],
    }
    card.write_card(tmp_path, StoredPlan.from_json(plan), 2, {"images": 12, "quarantine": 0})
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "| images | 12 |" in text
    assert "| quarantine | 0 |" in text
    assert "config_name: quarantine" not in text


# A column of text, of numbers and of bytes, where a table has them.
CHECKED = {
    "images": ("image_id", "edit_strength", "image"),
    "latents": ("image_id", "shard", "latent"),
    "masks": ("image_id", "area_fraction", "mask"),
    "edits": ("edit", "strength", "latent"),
    "metrics": ("metric", "value", "model"),
    "quarantine": ("image_id", "error_class", "message"),
    "deltas": ("tensor", "scales", "base", "data"),
    "features": ("kind", "extractor", "feature"),
}
Columns = dict[str, list[Any]]


def _pandas(run: Path, table: str) -> Columns:
    frame = pytest.importorskip("pandas").read_parquet(run / table)
    return {name: list(frame[name]) for name in frame}


def _pyarrow(run: Path, table: str) -> Columns:
    return pq.read_table(run / table).to_pydict()


def _polars(run: Path, table: str) -> Columns:
    frame = pytest.importorskip("polars").read_parquet(run / table / "*.parquet")
    return frame.to_dict(as_series=False)


def _duckdb(run: Path, table: str) -> Columns:
    rows = pytest.importorskip("duckdb").sql(f"SELECT * FROM '{run}/{table}/*.parquet'")
    return dict(zip(rows.columns, map(list, zip(*rows.fetchall(), strict=True)), strict=True))


def _datasets(run: Path, table: str) -> Columns:
    datasets = pytest.importorskip("datasets")
    cache = run.parent / "datasets-cache"
    rows = datasets.load_dataset(str(run), table, split="train", cache_dir=str(cache))
    for name, kind in rows.features.items():
        if isinstance(kind, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows.to_dict()


def _digest(values: list[Any]) -> str:
    """Equal for equal content, whatever the types of a reader."""
    return hashlib.sha256(json.dumps(values, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, bytes) else np.asarray(value).tolist()


@pytest.mark.parametrize("table", COUNTS)
@pytest.mark.parametrize("reader", [_pandas, _polars, _duckdb, _datasets])
def test_every_reader_finds_the_same_in_every_table(
    run: Path, table: str, reader: Callable[[Path, str], Columns]
) -> None:
    expected, found = _pyarrow(run, table), reader(run, table)
    assert found.keys() == expected.keys()
    assert {len(column) for column in found.values()} == {COUNTS[table]}
    for column in CHECKED[table]:
        assert _digest(_nan_as_none(found[column])) == _digest(expected[column]), column


def _nan_as_none(values: list[Any]) -> list[Any]:
    """pandas has no missing numbers."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


def test_hugging_face_decodes_pictures(run: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cache = run.parent / "datasets-cache"
    rows = datasets.load_dataset(str(run), "images", split="train", cache_dir=str(cache))
    assert isinstance(rows[0]["image"], Image.Image)
    assert np.asarray(rows[0]["image"]).tolist() == record("a.jpg", 1).image.tolist()  # type: ignore[union-attr]


def test_library_gives_back_what_was_stored(run: Path) -> None:
    opened, one = dhr_batch.open(run), record("a.jpg", 1)
    assert opened.ids == ["a.jpg", "b/c d.png"]
    np.testing.assert_array_equal(opened.latents["a.jpg"], one.latent)
    np.testing.assert_array_equal(opened.masks["a.jpg"], one.mask)
    np.testing.assert_array_equal(opened.labels["a.jpg"], one.labels)
    for kind, pixels in (
        ("aligned", one.image),
        ("inverted", one.inverted),
        ("refined", one.refined),
    ):
        np.testing.assert_array_equal(opened.images(kind)["a.jpg"], pixels)
    assert opened.images(ids=["b/c d.png"]).keys() == {"b/c d.png"}
    np.testing.assert_array_equal(opened.edited("smile", 1.5)["a.jpg"], one.edits[1].image)
    with pytest.raises(Refused, match=r"'edit'.*the kinds are aligned, inverted, refined"):
        opened.images("edit")
    with pytest.raises(Refused, match=r"no edit smirk \+1.5; choose from: .*smile \+1.5"):
        opened.edited("smirk", 1.5)
    assert opened.metrics["value"].tolist() == [21.5, 21.5]
    assert opened.metrics_wide().loc[("a.jpg", "refined"), "psnr"] == 21.5
    assert opened.edits["effect"][0] == {"smile": -1.0}
    np.testing.assert_array_equal(opened.edits["latent"][0], one.edits[0].latent)
    assert opened.quarantine["error_class"].tolist() == ["no_face"]
    delta, weight = opened.delta("a.jpg"), one.delta["conv1.weight"]  # type: ignore[index]
    assert delta.keys() == {"conv1.weight", "feature"}
    assert np.abs(delta["conv1.weight"] - weight).max() <= WEIGHT_STEP / 4 / 2 * 1.001
    feature, used = one.feature, codec.used_cells(one.mask, (4, 4))
    assert np.abs(delta["feature"] - feature)[:, used].max() <= FEATURE_STEP / 2 * 1.001
    assert (delta["feature"][:, ~used] == 0).all()
    with pytest.raises(KeyError, match=r"e\.jpg"):
        opened.delta("e.jpg")


def test_no_run_and_no_table_are_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(NoRun, match=r"no plan\.json"):
        dhr_batch.open(tmp_path)
    with pytest.raises(NoRun, match=r"no table 'stages'; choose from: deltas, edits"):
        dhr_batch.open(run).table("stages")


def test_edited_pictures_say_so(run: Path) -> None:
    for row in pq.read_table(run / "images").to_pylist():
        text = Image.open(io.BytesIO(row["image"]["bytes"])).text  # type: ignore[attr-defined]
        if row["kind"] == "edit":
            assert text["Comment"] == f"edited by dhr-batch: smile {row['edit_strength']:+g}"
            assert text["dhr-batch:edit"] == "smile"
            assert float(text["dhr-batch:strength"]) == row["edit_strength"]
        else:
            assert text == {}


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 3, 3), (7, 9), (64, 48, 3)])
@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_pictures_are_stored_without_loss(shape: tuple[int, ...], kind: type) -> None:
    if kind is bool:
        shape = shape[:2]
    pixels = np.random.default_rng(0).integers(0, 1 if kind is bool else 255, shape, endpoint=True)
    texts = {"Software": "dhr-batch", "dhr-batch:edit": "\N{GREEK SMALL LETTER ALPHA}, glasses"}
    stored = tables.png(pixels.astype(kind), texts)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.mode == ("1" if kind is bool else "RGB" if len(shape) == 3 else "L")
        assert image.text == texts  # type: ignore[attr-defined]
        assert (np.asarray(image) == pixels).all()
    assert cv2.imdecode(np.frombuffer(stored, np.uint8), 0).shape == shape[:2]


def test_random_weights_are_declared_everywhere(run: Path) -> None:
    for table in COUNTS:
        about = pq.read_schema(run / table / "part-00000.parquet").metadata[b"dhr_batch"]
        assert json.loads(about)["warning"] == "random weights"
    assert set(pq.read_table(run / "metrics")["model"].to_pylist()) == {"tiny (random weights)"}
    notes = pq.read_table(run / "images")["note"].to_pylist()
    assert set(notes) == {"first frame of 3; random weights"}


def test_schemas_are_frozen(golden: Path) -> None:
    """Readers depend on them, so the file of a version never changes: whoever changes a table
    raises SCHEMA_VERSION and adds a file, and those of versions that can be read stay."""
    info = RunInfo(rows=ROWS, embedder="w+", metadata={"version": "0", "seed": 0})
    now = {"schema_version": schemas.SCHEMA_VERSION}
    now |= {table: _described(table, info) for table in schemas.TABLES}
    known = range(1, schemas.SCHEMA_VERSION + 1)
    frozen = {n: json.loads((golden / f"schemas-{n}.json").read_text("utf-8")) for n in known}
    assert now == frozen[schemas.SCHEMA_VERSION], "raise SCHEMA_VERSION, add its schemas-N.json"
    assert [content["schema_version"] for content in frozen.values()] == list(known)


def _described(table: str, info: RunInfo) -> dict[str, Any]:
    """Columns with types and nullability, and what the metadata say."""
    schema = schemas.described(table, info)
    metadata = {key.decode(): json.loads(value) for key, value in schema.metadata.items()}
    columns = [[c.name, str(c.type), c.nullable] for c in schema]
    return {"columns": columns, "metadata": metadata}


def _chunk(path: Path, column: str) -> Any:
    group = pq.read_metadata(path).row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    return next(chunk for chunk in chunks if chunk.path_in_schema == column)


def test_encodings(run: Path) -> None:
    latent = _chunk(run / "latents/part-00000.parquet", "latent.list.element.list.element")
    assert latent.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in latent.encodings
    picture = _chunk(run / "images/part-00000.parquet", "image.bytes")
    assert picture.compression == "UNCOMPRESSED"
    assert not picture.is_stats_set
    assert _chunk(run / "metrics/part-00000.parquet", "value").has_column_index
    assert pq.read_metadata(run / "deltas/part-00000.parquet").num_row_groups == 2


def test_row_groups_are_cut_for_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Metric("refined", f"m{i}", float(i), "x") for i in range(600)]
    one = record("a.jpg")
    write(tmp_path, [Record("a.jpg", "a.jpg", latent=one.latent, metrics=tuple(many))])
    groups = pq.read_metadata(tmp_path / "metrics/part-00000.parquet")
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sizes == [256, 256, 88]
    values = pq.read_table(tmp_path / "metrics")["value"].to_pylist()
    assert values == [float(i) for i in range(600)]


def test_same_records_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / n, [record("a.jpg", 1), record("b.jpg", 2)]) for n in "ab")
    for path in first.glob("*/*.parquet"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_deltas_and_features_only_on_demand(tmp_path: Path) -> None:
    info = RunInfo(rows=ROWS, embedder="w", deltas=None)
    write(tmp_path, [record("a.jpg")], info)
    assert not (tmp_path / "deltas").exists()
    assert not (tmp_path / "features").exists()


def test_features_are_stored_as_they_are(run: Path) -> None:
    rows = dhr_batch.open(run).table("features", kind="refined").to_pylist()
    assert [row["image_id"] for row in rows] == ["a.jpg", "b/c d.png"]
    for row, one in zip(rows, (record("a.jpg", 1), record("b/c d.png", 2)), strict=True):
        assert row["feature"] == one.features[1].vector.tolist()
