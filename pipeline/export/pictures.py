"""A picture of a run that is exported, and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dhr_batch.pipeline.picture_names import digest, flat_name
from dhr_batch.stages.measure.face_scores import SCORE

# Prefix of the labels that say how far a score is from that of the photograph.
CHANGE = "change_"


@dataclass(slots=True, eq=False)
class Picture:
    """A picture and its labels.

    Attributes:
        image_id: The aligned image.
        source: The id of the photograph.
        kind: A key of `KINDS`.
        edit: Name of the edit; empty for other kinds.
        strength: Strength of the edit; 0 for other kinds.
        effect: Change of the edit's score against the photograph, for example of `score_smile`.
            None if it was not measured, and for `refined`.
        identity: Cosine similarity of the face descriptors of the picture and the aligned
            photograph; None if it was not measured.
        scores: The measured scores of the picture.
        before: Those of the photograph, which pictures of one photograph share.
        label: The class: `smile+2`, `refined`, `source` and so on. `gather` sets it.
    """

    image_id: str
    source: str
    kind: str
    edit: str
    strength: float
    effect: float | None
    identity: float | None
    scores: dict[str, float]
    before: Mapping[str, float] = field(default_factory=dict)
    label: str = ""

    @property
    def digest(self) -> str:
        """A checksum that is unique in the run and does not depend on other pictures."""
        return digest(f"{self.image_id}\n{self.kind}\n{self.edit}\n{self.strength:g}")

    @property
    def key(self) -> str:
        """A file name without extension and dots."""
        return flat_name(self.image_id, self.label, self.digest[:16])

    def measured(self) -> dict[str, float]:
        """Return the scores, and as `change_NAME` their differences to those of the photograph.

        Changes of scores that an edit is not for are its side effects.
        """
        changes = {
            CHANGE + name.removeprefix(SCORE): value - self.before[name]
            for name, value in self.scores.items()
            if name in self.before
        }
        return self.scores | changes

    def labels(self) -> dict[str, Any]:
        """Return the exported labels except `label` and those of `measured`."""
        names = ("image_id", "kind", "edit", "strength", "effect", "identity")
        return {name: getattr(self, name) for name in names}
