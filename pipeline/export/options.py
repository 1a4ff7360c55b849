"""What an export has written, and what it has left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dhr_batch.pipeline.export.choice import VALIDATION
from dhr_batch.pipeline.export.marks import Encoding
from dhr_batch.pipeline.export.pictures import NO_FACE, Filters, Picture


@dataclass
class Outcome:
    """What was exported. counts: split -> label -> pictures. dropped: reason -> pictures.

    images: of the run, with rows; used: split -> those of which there is a picture; planned: in the
    run's plan. validation: its share of the photographs, as asked for. left: files in the folder
    that no export wrote.
    """

    out: str
    validation: float = 0.0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    images: int = 0
    used: dict[str, int] = field(default_factory=dict)
    planned: int = 0
    left: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        return sum(counts.total() for counts in self.counts.values())

    @property
    def photographs(self) -> int:
        return sum(self.used.values())

    @property
    def note(self) -> str:
        """What is not as asked for; "" where nothing is."""
        if not self.validation or VALIDATION in self.counts:
            return ""
        return "no photograph falls into validation: raise --val or change --seed"

    def to_json(self) -> dict[str, Any]:
        images = {"planned": self.planned, "with_rows": self.images, "used": self.photographs}
        return {
            "out": self.out,
            "pictures": self.pictures,
            "images": images,
            "note": self.note,
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "left": self.left,
            "dropped": dict(self.dropped.most_common()),
        }


def why_nothing(dropped: Counter[str]) -> str:
    """The reasons, and the options that change them."""
    why = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    if NO_FACE in dropped:
        why += "; --keep-faceless keeps pictures without a face"
    if any(reason.startswith("photograph ") for reason in dropped):
        why += "; say where the photographs are with --dataset"
    return why or "the run has no edited pictures"


Splits = dict[Picture, str]


@dataclass(frozen=True)
class Options:
    """What is exported, and how.

    format: a key of `export_files.FORMATS`. include: kinds besides `edit`. balance: as
    `export_choice.parse_balance` reads it. validation: its share of the photographs. person: a
    regular expression for the part of an id that names the person. dataset: where the photographs
    are now, for paste_back. fresh: an earlier export of this run may be replaced.
    """

    format: str
    include: tuple[str, ...] = ()
    filters: Filters = field(default_factory=Filters)
    balance: str | None = None
    validation: float = 0.0
    person: str | None = None
    seed: int = 0
    paste_back: bool = False
    dataset: str | None = None
    encoding: Encoding = "png"
    fresh: bool = False
