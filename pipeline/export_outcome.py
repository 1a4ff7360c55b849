"""What an export has written, and what it has left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dhr_batch.pipeline.export_choice import VALIDATION
from dhr_batch.pipeline.export_rows import NO_FACE


@dataclass
class Outcome:
    """What was exported. counts: split -> label -> pictures. dropped: reason -> pictures.

    images: of the run, with rows; used: split -> those of which there is a picture; planned: in the
    run's plan. validation: its share of the photographs, as asked for.
    """

    out: str
    validation: float = 0.0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    images: int = 0
    used: dict[str, int] = field(default_factory=dict)
    planned: int = 0

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
