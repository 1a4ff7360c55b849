"""Invert, refine and edit whole datasets of face photographs with GANs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dhr_batch.version import __version__ as __version__

if TYPE_CHECKING:
    from dhr_batch.pipeline.runs.results import open as open


def __getattr__(name: str) -> object:
    # Imported on first use, because the packages that read Parquet take long to import.
    if name == "open":
        from dhr_batch.pipeline.runs.results import open

        return open
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
