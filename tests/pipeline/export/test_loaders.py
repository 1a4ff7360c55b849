"""Exports of more than 40 edited pictures in the programs that they are made for."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.export import choice, formats
from dhr_batch.tests.pipeline.exported import EDITS, IDS

COUNTS = {"smile-2": 9, "smile-1": 9, "smile+1": 9, "smile+2": 9, "yaw-1": 9, "yaw+1_5": 6}
# In the order in which torchvision numbers folders, in all formats.
CLASSES = ["smile+1", "smile+2", "smile-1", "smile-2", "yaw+1_5", "yaw-1"]
SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def pixels(run: Path) -> dict[tuple[str, str, float], np.ndarray]:
    opened = dhr_batch.open(run)
    return {(i, *edit): image for edit in EDITS for i, image in opened.edited(*edit).items()}


def export(run: Path, out: Path, format_: str, *words: str) -> Path:
    words = (str(run), "--out", str(out), "--format", format_, "--val", "0.4", *words)
    result = CliRunner().invoke(main, ["export", *words])
    assert result.exit_code == 0, (result.output, result.exception)
    return out


@pytest.mark.parametrize("format_", ["imagefolder", "parquet", "hf", "webdataset"])
def test_datasets(
    run: Path, pixels: dict[tuple[str, str, float], np.ndarray], tmp_path: Path, format_: str
) -> None:
    from datasets import load_dataset

    folder = export(run, tmp_path / "out", format_)
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == set(SPLITS)
    labels = Counter()
    for split in SPLITS:
        for row in loaded[split]:
            image = row["png"] if format_ == "webdataset" else row["image"]
            about = row["json"] if format_ == "webdataset" else row
            key = (about["image_id"], about["edit"], about["strength"])
            np.testing.assert_array_equal(np.asarray(image), pixels[key])
            label = about["label"]
            if format_ in ("parquet", "hf"):
                label = loaded[split].features["label"].int2str(label)
                assert loaded[split].features["label"].names == CLASSES
            labels[label] += 1
    assert labels == COUNTS
    assert labels.total() > 40


def test_torchvision(
    run: Path, pixels: dict[tuple[str, str, float], np.ndarray], tmp_path: Path
) -> None:
    from torchvision.datasets import ImageFolder

    folder = export(run, tmp_path / "out", "imagefolder")
    labels = Counter()
    for split in SPLITS:
        loaded = ImageFolder(str(folder / split), allow_empty=True)
        assert loaded.classes == CLASSES
        lines = (folder / split / "metadata.jsonl").read_text("utf-8").splitlines()
        known = {row["file_name"]: row for row in map(json.loads, lines)}
        for (path, number), (image, _) in zip(loaded.samples, loaded, strict=True):
            row = known[Path(path).relative_to(folder / split).as_posix()]
            assert row["label"] == loaded.classes[number]
            key = (row["image_id"], row["edit"], row["strength"])
            np.testing.assert_array_equal(np.asarray(image), pixels[key])
            labels[row["label"]] += 1
    assert labels == COUNTS


def test_webdataset(
    run: Path, pixels: dict[tuple[str, str, float], np.ndarray], tmp_path: Path
) -> None:
    import webdataset

    folder = export(run, tmp_path / "out", "webdataset")
    labels = Counter()
    for split in SPLITS:
        shard = str(folder / f"{split}-00000.tar")
        loaded = webdataset.WebDataset(shard, shardshuffle=False).decode("pil")
        for image, number, row in loaded.to_tuple("png", "cls", "json"):
            assert CLASSES[number] == row["label"]
            key = (row["image_id"], row["edit"], row["strength"])
            np.testing.assert_array_equal(np.asarray(image), pixels[key])
            labels[row["label"]] += 1
    assert labels == COUNTS


def test_webdataset_of_jpegs(run: Path, tmp_path: Path) -> None:
    import webdataset

    folder = export(run, tmp_path / "out", "webdataset", "--encoding", "jpeg")
    loaded = webdataset.WebDataset(str(folder / "train-00000.tar"), shardshuffle=False)
    assert {image.mode for (image,) in loaded.decode("pil").to_tuple("jpg")} == {"RGB"}


def test_stylegan(
    run: Path, pixels: dict[tuple[str, str, float], np.ndarray], tmp_path: Path
) -> None:
    """Names, labels and pictures as StyleGAN's `ImageFolderDataset` wants them."""
    folder = export(run, tmp_path / "out", "stylegan-zip", "--include", "source")
    classes = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
    names = classes["dhr_batch"]["classes"]
    assert names == sorted(["source", *CLASSES])
    labels = Counter()
    for split in SPLITS:
        with zipfile.ZipFile(folder / f"{split}.zip") as file:
            listed = json.loads(file.read("dataset.json"))["labels"]
            images = [n for n in file.namelist() if n.endswith(".png")]
            assert [name for name, _ in listed] == images
            assert images[0] == "00000/img00000000.png"
            lines = file.read("metadata.jsonl").decode().splitlines()
            for (name, number), row in zip(listed, map(json.loads, lines), strict=True):
                assert row["file_name"] == name
                assert row["label"] == names[number]
                with Image.open(io.BytesIO(file.read(name))) as image:
                    assert image.size == (32, 32)
                    if row["kind"] == "edit":
                        key = (row["image_id"], row["edit"], row["strength"])
                        np.testing.assert_array_equal(np.asarray(image), pixels[key])
                labels[row["label"]] += 1
    assert labels == COUNTS | {"source": len(IDS)}


@pytest.mark.parametrize("format_", formats.FORMATS)
@pytest.mark.parametrize(
    ("split", "share", "encoding"), [("train", 0.4, "jpeg"), ("validation", 1, "png")]
)
def test_the_snippets_of_the_card_load_what_was_written(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format_: str,
    split: str,
    share: float,
    encoding: str,
) -> None:
    """Of several files as well, and where all pictures are for validation."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(formats, "FILE_BYTES", 20_000)
    words = ("--keep-faceless", "--encoding", encoding, "--val", str(share))
    folder = export(run, tmp_path / "out", format_, *words)
    photographs = sum(choice.side(image_id, share, 0) == split for image_id in IDS)
    monkeypatch.chdir(folder)
    codes = re.findall(r"```python\n(.*?)```", Path("README.md").read_text("utf-8"), re.DOTALL)
    assert len(codes) == (2 if format_ == "imagefolder" else 1)
    for code in codes:
        names: dict[str, Any] = {}
        exec(code, names)
        loaded = names["labels"] if format_ == "stylegan-zip" else names[split]
        assert sum(1 for _ in loaded) == photographs * len(EDITS) > 0


def test_pandas(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", "parquet")
    rows = pd.concat(pd.read_parquet(folder / split) for split in SPLITS)
    assert len(rows) == sum(COUNTS.values())
    assert Counter(CLASSES[number] for number in rows["label"]) == COUNTS
    assert rows["score_smile"].dtype == np.float64
    with Image.open(io.BytesIO(rows["image"].iloc[0]["bytes"])) as image:
        assert image.info["Software"] == "dhr-batch"
