"""Which images a later start takes for those that the run has read."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dhr_batch.cli import main
from dhr_batch.pipeline.datasets import listing, parquet
from dhr_batch.pipeline.datasets.items import Rules, difference
from dhr_batch.pipeline.engine.runner import keep_plan
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import contents, resume
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import staging
from dhr_batch.pipeline.runs.parts import Damaged
from dhr_batch.pipeline.runs.records.manifests import FileFacts, Manifest
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.pipeline.listed import unpack

FILES = {"a.jpg": b"first", "b.jpg": b"other", "c.jpg": b"third", "d.jpg": b"last!"}
# As long as the first.
OTHER = b"1234!"


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (5, "5@17", ""),
        ("5@17", "5@17", ""),
        ("5@17", "5@18", "another time"),
        ("5@17", "6@17", "5 -> 6 bytes"),
        (5, "6@17", "5 -> 6 bytes"),
        ("5:ab", "5:ab", ""),
        ("5:ab", "5:cd", "etag"),
        ("5:ab", "5@17", "copied"),
        ("5@17", "5:ab", "copied"),
        ("-1:ab", "-1:ab@17", ""),
        ("-1:ab@17", "-1:ab@18", "another time"),
        ("-1:ab@17", "-1:cd@17", "etag"),
        (5, 5, ""),
        ("5@17", "-1:ab@18", "copied"),
        (-1, "5@17", "-1 -> 5 bytes"),
        ("5@17", -1, "5 -> -1 bytes"),
    ],
)
def test_differences_of_marks(before: int | str, now: int | str, expected: str) -> None:
    assert difference(before, now) == expected


@pytest.mark.parametrize("seconds", [0, -1, -3600.5])
@pytest.mark.parametrize("suffix", ["jpg", "tar"])
def test_files_of_1970_and_before_have_a_time(tmp_path: Path, seconds: float, suffix: str) -> None:
    """Archives that are to be reproducible have such times, and clocks without a battery."""
    unpack(tmp_path, {"a.jpg": b"first"})
    place = tmp_path
    if suffix == "tar":
        place = tmp_path / "a.tar"
        with tarfile.open(place, "w") as archive:
            archive.add(tmp_path / "a.jpg", "a.jpg")
    path = tmp_path / f"a.{suffix}"

    def mark(time: float) -> str | int:
        os.utime(path, (time, time))
        return listing.scan(str(place), Rules(frozenset({".jpg"}))).items[0].mark

    before = mark(seconds)
    assert before == mark(seconds)
    for now in (mark(1_700_000_000), mark(seconds - 1)):
        assert difference(before, now) == difference(now, before) == "another time"


# ------------------------------------------------------------------------- by kind of dataset


def as_folder(root: Path, files: dict[str, bytes], _url: str) -> str:
    return str(unpack(root / "photos", files))


def as_tar(root: Path, files: dict[str, bytes], _url: str) -> str:
    with tarfile.open(root / "photos.tar", "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(root / "photos.tar")


def as_parquet(root: Path, files: dict[str, bytes], _url: str) -> str:
    rows = [{"bytes": data, "path": name} for name, data in files.items()]
    pq.write_table(pa.table({"image": rows}), root / "photos.parquet", compression="none")
    for cache in (parquet._kept, parquet._image_rows):
        cache.cache_clear()
    return str(root / "photos.parquet")


def as_store(_root: Path, files: dict[str, bytes], url: str) -> str:
    for name, data in files.items():
        connect(url).replace(f"photos/{name}", data)
    return f"{url}/photos"


KINDS = {"folder": as_folder, "tar": as_tar, "parquet": as_parquet, "store": as_store}
Write = Callable[[dict[str, bytes]], str]


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes the images of a dataset, all of them at another time than before."""
    url = request.getfixturevalue("bucket") if request.param == "store" else ""
    locations._store.cache_clear()
    hour = iter(range(1, 99))

    def write(files: dict[str, bytes]) -> str:
        place = KINDS[request.param](tmp_path, files, url)
        number = next(hour)
        for path in [Path(place), *Path(place).glob("*")] if not url else []:
            os.utime(path, (number * 3600, number * 3600))
        return place

    return write


def planned(place: str) -> Plan:
    settings = {"dataset": place, "preset": "tiny", "gpus": 0}
    return prepare(Request(settings=settings, sets=["shard_size=2"]))


def record(run: RunFolder, plan: Plan, shard: int, failed: tuple[str, ...] = ()) -> None:
    """Write what the tables of a shard tell about its images, and commit it."""
    rows: dict[str, list[dict[str, Any]]] = {"images": [], "quarantine": []}
    for item in plan.shards[shard].items:
        data = listing.read_bytes(item)
        row = {"image_id": item.image_id, "source_bytes": len(data)}
        row["source_sha256"] = contents.digest(data)
        rows["quarantine" if item.image_id in failed else "images"].append(row)
    attempt, files = f"{shard:05d}.1.x", {}
    for table, found in rows.items():
        stream = io.BytesIO()
        schema = [("image_id", pa.string()), ("source_bytes", pa.int64())]
        schema += [("source_sha256", pa.string())]
        pq.write_table(pa.Table.from_pylist(found, pa.schema(schema)), stream)
        run.storage.replace(f"{staging(attempt)}/{table}.parquet", stream.getvalue())
        files[table] = FileFacts(len(found), len(stream.getvalue()))
    run.commit(shard, Manifest(attempt, files, ok=2), 2)


@pytest.fixture
def run(tmp_path: Path, write: Write) -> Iterator[RunFolder]:
    """A run of four images that has finished its first shard of two; it is held."""
    run = RunFolder(tmp_path / "out")
    run.lock()
    plan = planned(write(FILES))
    run.write_plan(plan.stored())
    record(run, plan, 0, failed=("b.jpg",))
    yield run
    run.unlock()


def refused(run: RunFolder, plan: Plan) -> str:
    with pytest.raises(Refused) as caught:
        resume.continued(run, "out", plan)
    return str(caught.value)


def test_a_copy_with_other_times_is_the_same_dataset(run: RunFolder, write: Write) -> None:
    plan = resume.continued(run, "out", planned(write(FILES)))
    item = plan.shards[0].items[0]
    is_store = not item.time and "@" not in item.etag
    if is_store:
        assert plan.compared == ""
        return
    assert plan.compared == (
        "2 images whose size or time differs have the same content; "
        "2 images with another time have no rows yet"
    )
    # The plan has the new times from now on.
    keep_plan(run, plan)
    assert resume.continued(run, "out", planned(plan.dataset.location)).compared == ""


def test_another_image_of_the_same_size_is_another_image(run: RunFolder, write: Write) -> None:
    """Case identity_same_size."""
    said = refused(run, planned(write(FILES | {"a.jpg": OTHER})))
    assert "images: 1 with different content: a.jpg (" in said
    assert "b.jpg" not in said
    assert "quarantine retry" not in said


def test_exchanged_names_are_noticed(run: RunFolder, write: Write) -> None:
    """Case identity_same_size."""
    exchanged = FILES | {"a.jpg": FILES["b.jpg"], "b.jpg": FILES["a.jpg"]}
    said = refused(run, planned(write(exchanged)))
    assert "1 with different content: a.jpg" in said
    assert "1 in quarantine with different content: b.jpg" in said


def test_a_repaired_image_may_be_tried_again(run: RunFolder, write: Write) -> None:
    """Case identity_same_size."""
    place = write(FILES | {"b.jpg": OTHER})
    said = refused(run, planned(place))
    assert "images: 1 in quarantine with different content: b.jpg (" in said
    assert f"dhr-batch quarantine retry {run.storage.place}" in said
    reopen(run, {0: {"b.jpg"}})
    plan = resume.continued(run, "out", planned(place))
    keep_plan(run, plan)
    # Its neighbours are still those that the run has read, although the shard is computed again.
    assert "1 with different content: a.jpg" in refused(
        run, planned(write(FILES | {"a.jpg": OTHER}))
    )


def test_an_image_that_has_no_rows_yet_may_be_another_one_of_its_size(
    run: RunFolder, write: Write
) -> None:
    place = write(FILES | {"d.jpg": OTHER})
    plan = planned(place)
    if plan.shards[0].items[0].time:
        assert "no rows yet" in resume.continued(run, "out", plan).compared
    longer = planned(write(FILES | {"d.jpg": OTHER * 200}))
    # Of a Parquet file, the size of both rows is known.
    names = "2 with different content: c.jpg" if plan.shards[0].items[0].leaf else "1 with"
    assert f"images: {names}" in refused(run, longer)


def test_a_part_that_cannot_be_read_is_named(run: RunFolder, write: Write) -> None:
    run.storage.replace("images/part-00000.parquet", b"no table")
    plan = planned(write(FILES | {"a.jpg": OTHER}))
    with pytest.raises(Damaged, match=r"images/part-00000.parquet: it cannot be read.*verify"):
        resume.continued(run, "out", plan)


# --------------------------------------------------------------------------------- in commands


@pytest.fixture
def finished(small_run: Any, tmp_path: Path) -> Callable[..., Result]:
    """Calls commands for a copy of the small run and of its photographs, of the same times."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in small_run.photographs.iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
        os.utime(photos / path.name, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "small.yaml").write_text(f"name: small\nroot: {photos}\naligned: true\n")
    small_run.copy(tmp_path / "run")
    words = ["--dataset", str(tmp_path / "small.yaml"), *small_run.words[2:]]

    def call(command: str) -> Result:
        more = ["--no-report"] if command == "run" else []
        out = str(tmp_path / "run")
        return CliRunner().invoke(main, [command, *words, "--out", out, *more])

    return call


@pytest.mark.parametrize("command", ["plan", "run"])
def test_commands_name_a_replaced_photograph(
    finished: Callable[..., Result], tmp_path: Path, command: str
) -> None:
    """Case identity_same_size."""
    same = finished(command)
    assert same.exit_code == 0, same.output
    assert "compared" not in same.output
    path = tmp_path / "photos" / "b.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    done = finished(command)
    assert done.exit_code == 2, done.output
    assert "images: 1 with different content: b.png (another time)" in done.output


def test_commands_say_what_they_have_compared(
    finished: Callable[..., Result], tmp_path: Path
) -> None:
    """Case identity_same_size: all of the six are touched, also those in quarantine."""
    for path in (tmp_path / "photos").iterdir():
        path.touch()
    for command, says in (("plan", True), ("plan", True), ("run", True), ("plan", False)):
        done = finished(command)
        assert done.exit_code == 0, done.output
        assert ("compared   6 images whose size or time" in done.output) == says, (command, says)


def test_a_repaired_photograph_names_the_command(
    finished: Callable[..., Result], tmp_path: Path
) -> None:
    """Case identity_same_size."""
    (tmp_path / "photos" / "c.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes())
    done = finished("run")
    assert done.exit_code == 2
    assert "1 in quarantine with different content: c.png" in done.output
    retry = f"quarantine retry {tmp_path / 'run'}"
    assert f"dhr-batch {retry}" in done.output
    assert CliRunner().invoke(main, [*retry.split(), "--yes"]).exit_code == 0
    assert finished("plan").exit_code == 0
