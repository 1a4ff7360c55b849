"""Files on local disks: checksums and atomic writes."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.networks.files.regular import opened


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file. Pipes and devices raise OSError."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shortened(name: str, most: int = 240) -> str:
    """Return a name of at most so many bytes. A longer one is cut and ends in its checksum.

    Args:
        name: A name of a file, or a part of it.
        most: The most bytes in UTF-8. File systems allow 255, and temporary files add some.
    """
    data = name.encode(errors="backslashreplace")
    if len(data) <= most:
        return name
    kept = data[: most - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(data).hexdigest()[:8]}"


def require_absent(*files: Path) -> None:
    """Check that files that a command is to write do not exist yet.

    Raises:
        Refused: If one does.
    """
    for file in files:
        if os.path.lexists(file):
            raise Refused(str(file), "it exists", "delete it, or choose another place with --out")


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Provide a temporary path beside `target`, and rename it to `target` after the block.

    If the block raises, the target is unchanged. The file is not flushed to the disk; files that
    must survive a power failure are written through a `Storage`.
    """
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
