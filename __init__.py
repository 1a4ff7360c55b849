"""Invert, refine and edit whole datasets of face photographs with GANs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dhr_batch.version import __version__ as __version__

if TYPE_CHECKING:
    from dhr_batch.pipeline.editing.chain import unload as unload
    from dhr_batch.pipeline.editing.library import edit as edit
    from dhr_batch.pipeline.editing.library import run as run
    from dhr_batch.pipeline.runs.results import open as open

_MODULES = {
    "edit": "dhr_batch.pipeline.editing.library",
    "open": "dhr_batch.pipeline.runs.results",
    "run": "dhr_batch.pipeline.editing.library",
    "unload": "dhr_batch.pipeline.editing.chain",
}


def __getattr__(name: str) -> object:
    # Imported on first use, because the packages that read Parquet take long to import.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({"__version__", *_MODULES})
