"""Choose the storage class for a folder or URL."""

from __future__ import annotations

import os
from pathlib import Path

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.local import LocalStorage

SCHEMES = ("s3", "s3a", "gs", "az")


def connect(place: str | Path | Storage) -> Storage:
    """Return the storage for a folder or a URL such as `s3://bucket/prefix`.

    Nothing is read or written. A `Storage` is returned as it is.

    Raises:
        Refused: If the URL has an unknown scheme, or the path is a file or lies below one.
    """
    if isinstance(place, Storage):
        return place
    if "\0" in str(place):
        raise Refused(str(place), "no path or URL has the character NUL", "correct the name")
    scheme, separator, rest = str(place).partition("://")
    if not separator:
        return LocalStorage(Path(os.path.expanduser(place)))
    if scheme == "file":
        return LocalStorage(Path(rest))
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise Refused(
            str(place),
            "it is neither a folder nor the URL of an object store",
            f"give a URL that begins with {schemes}",
        )
    from dhr_batch.pipeline.storage.objects import ObjectStorage

    return ObjectStorage(str(place))
