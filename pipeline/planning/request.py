"""The arguments of the command `run`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["auto", "rich", "plain", "none"]


@dataclass(frozen=True)
class Request:
    """The arguments of one call of `run`.

    Attributes:
        settings: Settings that were given as flags.
        files: The YAML files of `-c`.
        sets: The assignments of `--set`.
        out: The folder of the run, or its URL in an object store. The default is
            `runs/<dataset>-<generator>`.
        address: The address of a Ray cluster.
        force: Whether to start even if the disk seems too small.
        extend: Whether to add new images to a started run.
        fresh: Whether to delete the run and start over.
        confirmed: Whether the user has confirmed the deletion.
        report: Whether to write a report at the end.
        progress: How to display the progress.
        verbose: Whether to print more messages.
        quiet: Whether to print fewer messages.
        command: The words of the command line, which messages may repeat.
        allow_code: Whether the dataset, or the run that the new one begins from, may name code
            outside of dhr-batch.
        named: Names of such code that the user gave elsewhere, as in the file of a benchmark.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()
    sets: Sequence[str] = ()
    out: str | Path | None = None
    address: str | None = None
    force: bool = False
    extend: bool = False
    fresh: bool = False
    confirmed: bool = False
    report: bool = True
    progress: Mode = "auto"
    verbose: bool = False
    quiet: bool = False
    command: Sequence[str] = ()
    allow_code: bool = False
    named: Collection[str] = ()
