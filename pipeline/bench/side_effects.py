"""Side effects of edits in a benchmark, at the effect that all methods achieve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from dhr_batch.pipeline.stats.equal_effect import EqualEffect, Match
from dhr_batch.pipeline.stats.side_effects import others
from dhr_batch.stages.measure.face_scores import SCORE, effect_unit, judge_score

Values = dict[str, dict[str, float]]


def columns(
    edit: str, full: EqualEffect, sources: Mapping[str, Mapping[str, float]]
) -> Iterator[tuple[str, str, Values]]:
    """Yield the key, the heading and the values by method and image of each column.

    The effect by another judge comes first, if there is one. Then come the sizes of the changes of
    other scores. Changes are against the source.

    Args:
        edit: Name of the edit.
        full: The comparison of the methods. Its curves contain the scores.
        sources: The scores of the sources by metric and image id.
    """
    judge = judge_score(edit)
    for score in filter(sources.get, (judge, *others(edit, sources))):
        name, judged = score.removeprefix(SCORE), score == judge
        found = full.costs(score, _change(sources[score], judged))
        heading = f"effect by {name}" if judged else f"change of {name}"
        key = f"{edit}@{'judged' if judged else 'side'}_{name}"
        yield key, heading.replace("_", " ") + effect_unit(score), found


def _change(before: Mapping[str, float], signed: bool) -> Callable[[Match, float], float]:
    """Return a function that gives the change of a score, along the effect or its size."""

    def change(match: Match, value: float) -> float:
        found = value - before.get(match.image_id, math.nan)
        return math.copysign(1, match.effect) * found if signed else abs(found)

    return change
