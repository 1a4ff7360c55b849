"""Names, folders and ids of datasets."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.datasets.items import DatasetError, left_out
from dhr_batch.pipeline.models import catalogue


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("DHR_BATCH_HOME", str(folder))
    monkeypatch.delenv("DHR_BATCH_DATA", raising=False)
    return folder


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"text")
    return root


def ids(root: Path) -> list[str]:
    return [item.image_id for item in named.list_images(named.find(root))]


def test_folder_is_listed_by_id_without_hidden_and_other_files(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "photos",
        "b/2.JPG",
        "b/10.png",
        "a.webp",
        "a/z.tiff",
        "notes.txt",
        "README",
        ".hidden.png",
        ".cache/x.png",
    )
    assert ids(root) == ["a.webp", "a/z.tiff", "b/10.png", "b/2.JPG"]
    dataset = named.find(root)
    assert left_out(named.scan(dataset).ignored) == "1 .txt, 2 hidden, 1 no extension"
    assert (dataset.name, dataset.aligned) == ("photos", False)
    assert all(Path(item.location).is_file() for item in named.list_images(dataset))


def test_ids_are_nfc_and_paths_stay_as_they_are(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Zoë.png")
    root = fill(tmp_path / "photos", decomposed)
    (item,) = named.list_images(named.find(root))
    assert item.image_id == unicodedata.normalize("NFC", "Zoë.png")
    assert Path(item.location).is_file()


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "Zoë.png") for form in ("NFC", "NFD")]
    root = fill(tmp_path / "photos", *names)
    if len(list(root.iterdir())) == 1:
        pytest.skip("this file system normalises names")
    with pytest.raises(DatasetError, match="rename one of them"):
        ids(root)


def test_name_that_is_not_utf8_gets_an_id_that_can_be_stored(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "a.png")
    try:
        fill(root, os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert ids(root)[1].encode("utf-8") == b"caf\\udce9.png"


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "sub/a.png")
    outside = fill(tmp_path / "outside", "b.png")
    (root / "loop").symlink_to(root)
    (root / "linked").symlink_to(outside)
    assert ids(root) == ["linked/b.png", "sub/a.png"]


def test_empty_folder_says_what_it_has(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "a.cr2", "b.cr2")
    with pytest.raises(DatasetError, match=r"no images in .*2 \.cr2"):
        ids(root)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("celebhq", "did you mean 'celebahq'.*portraits"),
        ("/no/such/folder", "/no/such/folder: it does not exist"),
        (__file__, "is a file"),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(named.DatasetError, match=said):
        named.find(name)


def test_celebahq_without_its_images_says_what_to_do() -> None:
    dataset = named.find("celebahq")
    assert (dataset.aligned, dataset.split, dataset.images) == (True, "test", 2824)
    assert dataset.config == {"max_quarantined": 0.01}
    with pytest.raises(DatasetError, match=r"g_partition.*DHR_BATCH_DATA.*datasets\.d"):
        named.list_images(dataset)


def test_celebahq_is_found_by_environment_and_its_count_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path / "data" / "celebahq", "0.jpg")
    monkeypatch.setenv("DHR_BATCH_DATA", str(tmp_path / "data"))
    assert len(named.list_images(named.find("celebahq"))) == 1
    assert "expected 2824" in caplog.text


def test_a_root_of_the_users_keeps_the_other_settings(home: Path, tmp_path: Path) -> None:
    root = fill(tmp_path / "elsewhere", "0.jpg")
    fill(home, "datasets.d/celebahq.yaml").joinpath("datasets.d/celebahq.yaml").write_text(
        f"root: {root}\n"
    )
    dataset = named.find("celebahq")
    assert (dataset.location, dataset.aligned) == (str(root), True)


def test_description_by_path(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a.png")
    (tmp_path / "mine.yaml").write_text("root: photos\naligned: true\n")
    dataset = named.find(tmp_path / "mine.yaml")
    assert (dataset.name, dataset.aligned) == ("mine", True)
    assert len(named.list_images(dataset)) == 1
    (tmp_path / "mine.yaml").write_text("rooot: photos\n")
    with pytest.raises(DatasetError, match="rooot"):
        named.find(tmp_path / "mine.yaml")


def test_portraits_that_were_not_pulled_name_the_command() -> None:
    with pytest.raises(catalogue.ModelMissing, match="dhr-batch models pull portraits"):
        named.list_images(named.find("portraits"))


def test_portraits(
    models: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dhr_batch.pipeline.models import catalogue

    with monkeypatch.context() as patch:
        patch.delenv("DHR_BATCH_HOME")
        pulled = models("portraits")
    monkeypatch.setattr(catalogue, "path", lambda name: pulled)
    items = named.list_images(named.find("portraits"))
    assert [item.image_id for item in items] == [
        "astronaut.png",
        "biden.jpg",
        "obama.jpg",
        "obama2.jpg",
        "obama3.jpg",
    ]
    assert all(home in Path(item.location).parents for item in items)


def test_list_command() -> None:
    result = CliRunner().invoke(main, ["datasets", "list", "--json"])
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.output)}
    assert set(rows) == {"celebahq", "ffhq", "portraits", "synthetic"}
    assert rows["celebahq"]["state"] == "missing"
    assert CliRunner().invoke(main, ["datasets", "list"]).exit_code == 0
