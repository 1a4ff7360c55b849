"""The options of an export, and its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from dhr_batch.pipeline.export.choice import TRAIN, VALIDATION
from dhr_batch.pipeline.export.filters import NO_FACE, Filters
from dhr_batch.pipeline.export.marks import Encoding
from dhr_batch.pipeline.export.pictures import Picture


@dataclass
class ExportOutcome:
    """The result of an export.

    Attributes:
        out: The folder.
        validation: The requested share of photographs for validation.
        counts: Number of pictures by split and label.
        dropped: Number of pictures that were left out, by reason.
        images: Number of images of the run that have rows.
        used: Number of images with at least one picture, by split.
        planned: Number of images in the plan of the run.
        left: Files in the folder that were not written by an export.
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
        """Number of exported pictures."""
        return sum(counts.total() for counts in self.counts.values())

    @property
    def photographs(self) -> int:
        """Number of images of which at least one picture was exported."""
        return sum(self.used.values())

    @property
    def note(self) -> str:
        """A remark if the result differs from the options; otherwise empty."""
        return ": ".join(empty_split(self.validation, self.counts))

    def to_json(self) -> dict[str, Any]:
        """Return the result as `export --json` prints it."""
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


def empty_split(share: float, filled: Collection[str]) -> tuple[str, ...]:
    """Say which split has no pictures, and what to do about it. Returns nothing if none is empty.

    Args:
        share: The requested share of photographs for validation.
        filled: The splits that have pictures.
    """
    if share > 0 and VALIDATION not in filled:
        return "no photograph falls into validation", "raise --val or change --seed"
    if share < 1 and TRAIN not in filled:
        return "all photographs fall into validation", "lower --val or change --seed"
    return ()


def why_nothing(dropped: Counter[str]) -> tuple[str, str]:
    """Return the reasons why all pictures were left out, and the options that avoid that."""
    if not dropped:
        return "the run has no edited pictures", "choose other pictures with --include"
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    remedies = []
    if NO_FACE in dropped:
        remedies.append("--keep-faceless keeps pictures without a face")
    if any(reason.startswith("photograph ") for reason in dropped):
        remedies.append("say where the photographs are with --dataset")
    return reasons, "; ".join(remedies) or "change the limits"


Splits = dict[Picture, str]


@dataclass(frozen=True)
class Options:
    """The options of an export.

    Attributes:
        format: A key of `formats.FORMATS`.
        include: Kinds of pictures besides `edit`.
        filters: Which pictures pass.
        balance: A label to balance by, for `choice.parse_balance`.
        validation: Share of photographs for the validation split.
        strict: Whether a split without pictures is an error.
        person: A regular expression for the part of an id that names the person.
        seed: Seed of the split and of balancing.
        paste_back: Whether edits are blended into the uncropped photographs.
        dataset: The dataset with the photographs for `paste_back`, if it has been moved.
        encoding: The format of the pictures.
        fresh: Whether an earlier export of this run may be replaced.
    """

    format: str
    include: tuple[str, ...] = ()
    filters: Filters = field(default_factory=Filters)
    balance: str | None = None
    validation: float = 0.0
    strict: bool = False
    person: str | None = None
    seed: int = 0
    paste_back: bool = False
    dataset: str | None = None
    encoding: Encoding = "png"
    fresh: bool = False
