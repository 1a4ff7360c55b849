"""How strong an edit is at an identity distance that two methods share.

A refinement may look better at editing only because its edits, at the same strength, keep less of
the person. So strengths are chosen per method such that both keep as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from dhr_batch.pipeline.stats.equal_effect import at, crossing
from dhr_batch.stages.base import Metric, edit_stage

STRENGTHS = (0.0, 1.0, 2.0)


@dataclass(frozen=True)
class Curve:
    """One image, one sign of an edit: what grows with its strength, from 0 on.

    distances: identity distance to the source. effects: change of the score against the picture
    without the edit, unsigned.
    """

    distances: tuple[float, ...]
    effects: tuple[float, ...]

    def rising(self) -> list[float]:
        """Running maximum of the distances: an edit never counts as giving identity back."""
        return list(accumulate(self.distances, max))

    def effect_at(self, distance: float) -> float:
        """Effect of the strongest edit within `distance`, linear between the strengths.

        0 where the picture without the edit is already further away.
        """
        known = self.rising()
        if distance < known[0]:
            return 0.0
        return at(self.effects, crossing(known, min(distance, known[-1]), last=True))


def compare(one: Curve, other: Curve) -> tuple[float, float]:
    """Effects of both at the smaller of their distances at full strength."""
    shared = min(one.rising()[-1], other.rising()[-1])
    return one.effect_at(shared), other.effect_at(shared)


def curves(metrics: Iterable[Metric], edit: str = "smile") -> dict[int, Curve]:
    """Sign (-1, 1) -> curve, from the rows of `measure`; a sign with a missing row is left out."""
    values = {(row.stage, row.metric): row.value for row in metrics}
    found = {}
    for sign in (-1, 1):
        stages = [edit_stage(edit, sign * s) if s else "refined" for s in STRENGTHS]
        distances = [values.get((stage, "identity_dlib_distance")) for stage in stages]
        scores = [values.get((stage, f"score_{edit}")) for stage in stages]
        if None not in distances and None not in scores:
            effects = tuple(abs(score - scores[0]) for score in scores)  # type: ignore[operator]
            found[sign] = Curve(tuple(distances), effects)  # type: ignore[arg-type]
    return found


def mean_effects(
    one: Mapping[int, Curve], other: Mapping[int, Curve]
) -> tuple[float, float] | tuple[None, None]:
    """`compare`, averaged over the signs that both have; None where there is none."""
    pairs = [compare(one[sign], other[sign]) for sign in one.keys() & other.keys()]
    if not pairs:
        return None, None
    return sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs)
