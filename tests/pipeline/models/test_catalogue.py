"""The registry never uses a wrong or partial file, and says how to get what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue, downloads
from dhr_batch.pipeline.models.spec import PyPI
from dhr_batch.pipeline.models.weights import own_weights
from dhr_batch.tests.pipeline.pulled import (
    describe,
    sha,
    url,
)


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


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pull"], 2, "give either names or --all"),
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
