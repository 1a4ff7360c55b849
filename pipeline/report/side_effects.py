"""The table of side effects of edits in a report."""

from __future__ import annotations

from dhr_batch.pipeline.report.data import RunData
from dhr_batch.pipeline.report.metrics import title
from dhr_batch.pipeline.report.page import Cell, Column, Shown, Table, shown
from dhr_batch.pipeline.stats import side_effects
from dhr_batch.pipeline.stats.bootstrap import Estimate
from dhr_batch.pipeline.units import number
from dhr_batch.stages.measure.face_scores import SCORE, effect_score, effect_unit, judge_score

_NAME = (
    f"Side effects at the effect that {side_effects.REACHED:.0%} of the images reach: change of "
    "other scores against the source, and in brackets the mean size of the change"
)
# What stands in place of the effect by another judge.
OWN_TEACHER = "own teacher"


def table(data: RunData) -> Table:
    """Return the side effects of every edit in each direction, with one column for each score."""
    long = data.metrics[~data.metrics["image_id"].isin(data.excluded())]
    kinds = set(map(str, long["metric"].unique()))
    costs = sorted(m for m in kinds if m.startswith("identity_") and m.endswith("_distance"))
    found = side_effects.side_effects(long, costs)
    scores = [s for s in side_effects.before(long) if any(s in row.changes for row in found)]
    rows: list[list[Cell]] = []
    for row in found:
        unit = effect_unit(effect_score(row.edit, kinds))
        judge = judge_score(row.edit)
        judged = Shown(None, OWN_TEACHER)
        if row.judged is not None:
            seen = f"{judge.removeprefix(SCORE)} {number(row.judged.value)}{effect_unit(judge)}"
            judged = Shown(row.judged.value, seen)
        rows.append(
            [
                row.edit,
                Shown(row.effect, number(row.effect) + unit),
                row.strength.n,
                shown(row.strength),
                judged,
                *(shown(row.costs.get(name)) for name in costs),
                *(_change(row.changes.get(s), row.sizes.get(s)) for s in scores),
            ]
        )
    heads = [Column("edit"), *(Column(n, number=True) for n in ("effect", "images", "strength"))]
    heads.append(Column("effect by another judge", number=True))
    titles = [*map(title, costs), *(title(s) + effect_unit(s) for s in scores)]
    return Table(_NAME, [*heads, *(Column(t, number=True) for t in titles)], rows)


def _change(change: Estimate | None, size: Estimate | None) -> Shown:
    if change is None or size is None:
        return Shown(None, number(None))
    return Shown(change.value, f"{number(change.value)} ({number(size.value)})")
