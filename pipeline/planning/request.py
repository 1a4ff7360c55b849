"""What the user asks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["auto", "rich", "plain", "none"]


@dataclass(frozen=True)
class Request:
    """One call of `run`. settings: flags that are settings of a run, without those not given.

    files, sets: `-c` files and `--set` texts. out: run folder or URL of an object store; by
    default `runs/<dataset>-<generator>`. address: of a Ray cluster. extend: add new images to a
    started run. fresh: delete it and start over; confirmed: the user has said so. command: the
    words that the user typed, to be repeated in a message.
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
