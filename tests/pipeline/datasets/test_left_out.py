"""What a listing takes and what it leaves out, by its kind, in folders, archives and stores."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from dhr_batch.cli import main
from dhr_batch.pipeline.datasets import listing, named
from dhr_batch.pipeline.datasets.items import DatasetError
from dhr_batch.pipeline.report import provenance
from dhr_batch.pipeline.report.data import load
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.stages.decode import decode
from dhr_batch.stages.pixels.refusals import FORMATS
from dhr_batch.tests.pipeline.listed import scan, tar, unpack


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    locations._store.cache_clear()


def upload(url: str, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        connect(url).replace(name, data)
    return url


# ------------------------------------------------------------------------------------- formats


def test_extensions_are_those_of_the_formats_that_are_read() -> None:
    """Case formats_left_out."""
    registered = Image.registered_extensions()
    known = {suffix for suffix, kind in registered.items() if kind in {*FORMATS, "MPO"}}
    assert {*named.EXTENSIONS} == known


@pytest.mark.parametrize("suffix", named.EXTENSIONS)
def test_files_of_every_extension_are_listed_and_decoded(tmp_path: Path, suffix: str) -> None:
    """Case formats_left_out."""
    y, x = np.mgrid[:64, :64]
    pixels = np.stack([x * 3, y * 3, 200 - x - y], -1).astype(np.uint8)
    kind = Image.registered_extensions()[suffix]
    image = Image.fromarray(pixels)
    if suffix == ".pfm":
        image, pixels = image.convert("L").convert("F"), np.asarray(image.convert("L"))[..., None]
    image.save(tmp_path / f"one{suffix.upper()}", kind)
    (item,) = named.list_images(named.find(tmp_path))
    found, _ = decode(listing.read_bytes(item))
    lossy = kind in ("JPEG", "MPO", "WEBP", "GIF", "AVIF", "HEIF")
    assert np.abs(found.astype(int) - pixels).mean() <= (12 if lossy else 0)


def test_the_orientation_of_heif_is_not_applied_twice() -> None:
    """Case formats_left_out: libheif turns the pixels, and EXIF only repeats it."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "HEIF", exif=exif)
    found, notes = decode(stream.getvalue())
    assert (found.shape, notes) == (pixels.shape, ())
    assert np.abs(found.astype(int) - pixels).mean() < 3


# ----------------------------------------------------------------------------- what is left out

FOLDER = {
    "album/1.png": b"1",
    "album/2.heiC": b"2",
    "album/@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg": b"-",
    "album/@eaDir/3.jpg": b"-",
    "$RECYCLE.BIN/$RABC.png": b"-",
    "System Volume Information/a.png": b"-",
    "b/__MACOSX/b.jpg": b"-",
    "b/#Recycle/b.jpg": b"-",
    "b/found.000/b.jpg": b"-",
    "b/FOUND.012/b.jpg": b"-",
    "b/My.photoslibrary/resources/derivatives/1.jpeg": b"-",
    "b/.Trash-1000/files/c.jpg": b"-",
    "b/._c.jpg": b"-",
    "b/notes.txt": b"-",
    "b/7": b"-",
}
LEFT_OUT = {
    "folder @eaDir": 1,
    "folder $RECYCLE.BIN": 1,
    "folder System Volume Information": 1,
    "folder __MACOSX": 1,
    "folder #Recycle": 1,
    "folder found.000": 1,
    "folder FOUND.012": 1,
    "folder resources": 1,
    "hidden": 2,
    ".txt": 1,
    "no extension": 1,
}


@pytest.mark.parametrize("where", ["folder", "tar", "store"])
def test_folders_of_systems_are_left_out_and_counted(
    tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    """Case nas_thumbnails."""
    place: object = unpack(tmp_path / "photos", FOLDER)
    if where == "tar":
        place = tmp_path / "photos.tar"
        Path(place).write_bytes(tar({f"./{name}": data for name, data in FOLDER.items()}))
    elif where == "store":
        place = upload(request.getfixturevalue("bucket") + "/photos", FOLDER)
    assert scan(place) == (["album/1.png", "album/2.heiC"], LEFT_OUT)


@pytest.mark.parametrize(
    ("globs", "taken", "counted"),
    [
        (["album"], ["b/x_thumb.jpg", "b/y.jpg"], {"excluded by album": 1}),
        (["*_thumb.*"], ["album/1.png", "b/y.jpg"], {"excluded by *_thumb.*": 1}),
        (["b/*.jpg"], ["album/1.png"], {"excluded by b/*.jpg": 2}),
        (["*.png", "?"], [], {"excluded by *.png": 1, "excluded by ?": 1}),
        (["x_thumb"], ["album/1.png", "b/x_thumb.jpg", "b/y.jpg"], {}),
    ],
)
@pytest.mark.parametrize("where", ["folder", "tar"])
def test_excluded_files_and_folders(
    tmp_path: Path, where: str, globs: list[str], taken: list[str], counted: dict[str, int]
) -> None:
    files = {"album/1.png": b"1", "b/x_thumb.jpg": b"2", "b/y.jpg": b"3"}
    root = unpack(tmp_path / "photos", files)
    (tmp_path / "photos.tar").write_bytes(tar({**files}))
    place = root if where == "folder" else tmp_path / "photos.tar"
    described = tmp_path / "set.yaml"
    described.write_text(f"root: {place}\nexclude: {globs}\n")
    assert scan(described) == (taken, counted)


@pytest.mark.parametrize("where", ["folder", "tar"])
def test_extensions_of_each_file_are_counted_together(tmp_path: Path, where: str) -> None:
    files = {f"scan.{number:04}": b"-" for number in range(150)} | {"1.png": b"1"}
    place = unpack(tmp_path / "scans", files)
    (tmp_path / "scans.tar").write_bytes(tar({**files}))
    ids, ignored = scan(place if where == "folder" else tmp_path / "scans.tar")
    assert (ids, len(ignored), ignored["other extensions"]) == (["1.png"], 101, 50)


def test_subfolders_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    root = unpack(tmp_path / "photos", {"1.png": b"1", "a/2.png": b"2", "b/c/3.png": b"3"})
    assert scan(root, recursive=False) == (["1.png"], {"subfolder": 2})


# ---------------------------------------------------------------- parts that cannot be read


def fail_to_list(monkeypatch: pytest.MonkeyPatch, folder: str, error: OSError) -> None:
    """Let folders whose path ends like this raise an error when they are listed."""
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith(folder):
            raise error
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_an_unreadable_part_costs_only_itself_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpack(tmp_path / "photos", {"1.png": b"1", "closed/2.png": b"2", "sub/3.png": b"3"})
    (root / "loop").symlink_to("loop")
    (root / "own.png").symlink_to("own.png")
    (root / "sub" / "up").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    # The tests may run as root, who may read everything.
    fail_to_list(monkeypatch, "closed/", PermissionError(13, "Permission denied"))
    ids, ignored = scan(root)
    assert ids == ["1.png", "sub/3.png"]
    loops = "Too many levels of symbolic links"
    assert ignored == {
        "unreadable: closed/ (Permission denied)": 1,
        f"unreadable: loop ({loops})": 1,
        f"unreadable: own.png ({loops})": 1,
        "unreadable: pipe.png (no regular file)": 1,
        "unreadable: sub/up/ (it links to a folder that is listed already)": 1,
    }
    with pytest.raises(DatasetError, match=r"closed: it cannot be listed: .*Permission denied"):
        scan(f"{root}/closed/")


def test_not_all_of_many_unreadable_parts_are_named(tmp_path: Path) -> None:
    root = unpack(tmp_path / "photos", {"1.png": b"1"})
    for number in range(50):
        (root / f"{number}.jpg").symlink_to(f"{number}.jpg")
    ids, ignored = scan(root)
    assert (ids, len(ignored), ignored["unreadable"]) == (["1.png"], 21, 30)


def test_a_file_system_that_is_away_is_no_unreadable_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpack(tmp_path / "photos", {"1.png": b"1", "sub/3.png": b"3"})
    fail_to_list(monkeypatch, "sub/", OSError(116, "Stale file handle"))
    with pytest.raises(DatasetError, match="Stale file handle"):
        scan(root)


# ------------------------------------------------------------------- files that we have written

RUN = {"plan.json": b"{}", "_state/lease": b"", "_state/owner.json": b"{}", "images/x.parquet": b"",
       "report/contact_sheet.png": b"-"}  # fmt: skip


@pytest.mark.parametrize("where", ["folder", "tar", "store"])
def test_folders_that_dhr_batch_has_written_hold_no_photographs(
    tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    """Case out_inside_dataset: runs of earlier versions lie there, and exports."""
    files = {"0.png": b"0", "zoo/1.png": b"1"}
    files |= {f"runs/photos-tiny/{name}": data for name, data in RUN.items()}
    files |= {"edited/.dhr-batch.json": b"{}", "edited/train/smile/0.png": b"-"}
    place: object = unpack(tmp_path / "photos", files)
    if where == "tar":
        place = tmp_path / "photos.tar"
        Path(place).write_bytes(tar({**files}))
    elif where == "store":
        place = upload(request.getfixturevalue("bucket") + "/photos", files)
    ids, ignored = scan(place)
    assert ids == ["0.png", "zoo/1.png"]
    assert ignored == {"folder written by dhr-batch": 2}


def test_a_marked_folder_that_is_the_dataset_itself_is_read(tmp_path: Path) -> None:
    root = unpack(tmp_path / "made", {".dhr-batch.json": b"{}", "train/0.png": b"0"})
    assert scan(root) == (["train/0.png"], {"hidden": 1})


# ------------------------------------------------------------------------------------- Parquet


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"bytes": None, "path": f"{n}.png"} for n in range(2)], "only the names of files.*0.png"),
        ([None, {"bytes": None, "path": "http://a/b.jpg"}], "only the names of files.*http://a/b"),
        ([{"bytes": None, "path": None}] * 3, "'image' is empty in all rows"),
        ([None, None], "'image' is empty in all rows"),
    ],
)
def test_rows_that_only_name_files_are_told_at_once(
    tmp_path: Path, rows: list[Any], said: str, statistics: bool
) -> None:
    """Case parquet_path_only."""
    path = tmp_path / "paths.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind)})
    pq.write_table(table, path, write_statistics=statistics)
    with pytest.raises(DatasetError, match=rf"paths\.parquet: column .*{said}"):
        scan(path)
    one = pa.table({"image": pa.array([*rows, {"bytes": b"1", "path": "x"}], kind)})
    pq.write_table(one, path, write_statistics=statistics)
    assert len(scan(path)[0]) == len(rows) + 1


@pytest.mark.parametrize("columns", [{"label": [1, 2]}, {"url": ["http://a", "http://b"]}])
def test_tables_of_links_or_labels_are_told_at_once(
    tmp_path: Path, columns: dict[str, list[Any]]
) -> None:
    """Case parquet_path_only."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DatasetError, match=r"no column could hold the images.*not followed"):
        scan(path)
    pq.write_table(pa.table({"image": pa.array([None, None], pa.binary())}), path)
    with pytest.raises(DatasetError, match="empty in all rows"):
        scan(path)


# -------------------------------------------------------------------------------- what is said


def test_plan_run_and_check_say_what_is_left_out(small_run: Any, tmp_path: Path) -> None:
    """Case formats_left_out."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in small_run.photographs.iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    unpack(photos, {"notes.txt": b"-", "@eaDir/a.jpg": b"-", "7": b"-"})
    (tmp_path / "small.yaml").write_text(f"name: small\nroot: {photos}\naligned: true\n")
    out = small_run.copy(tmp_path / "run")
    words = ["--dataset", str(tmp_path / "small.yaml"), *small_run.words[2:], "--out", str(out)]

    def call(*command: str) -> str:
        done = CliRunner().invoke(main, [*command])
        assert done.exit_code in (0, 1), done.output
        return done.output

    said = "1 .txt, 1 folder @eaDir, 1 no extension"
    assert f"left out   {said}\n" in call("plan", *words)
    assert f"left out   {said}\n" in call("run", *words, "--no-report")
    assert f"left out: {said}\n" in call("datasets", "check", str(tmp_path / "small.yaml"))
    report = load(connect(out))
    stored = replace(report.plan, ignored={".txt": 1, "hidden": 2})
    section = provenance.settings(replace(report, plan=stored))
    assert section is not None
    assert ["left out of the dataset", "1 .txt, 2 hidden"] in section.tables[0].rows
