"""Files of someone else, which no command may overwrite or delete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner, Result

from dhr_batch.cli import main

MINE = b"mine, and not of this program"


def dhr(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def files(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones as well."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def put(folder: Path, content: Mapping[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
