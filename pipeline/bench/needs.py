"""What a benchmark cannot compute because models are missing, and how to get them.

A run needs the models of the generator and of all stages. The networks that only measure are an
exception: without one of them, the run leaves out its metrics and computes the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dhr_batch.pipeline.bench.matrix import Cell
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning.plan import Plan, models_of
from dhr_batch.stages import registry

# The settings of `measure` that list networks, and the main column of a network.
_COLUMNS = {
    "perceptual": "{}",
    "identity": "identity_{}_cosine",
    "features": "frechet_{}",
    "scores": "score_{}",
}
# The distance between sets that has a name of its own.
_FID = {"frechet_inception": "fid"}


def with_needs(cell: Cell, plan: Plan) -> Cell:
    """Return a run without the metrics whose models are missing, and with its other needs.

    Args:
        cell: The run.
        plan: Its plan as a whole run.

    Raises:
        ModelDamaged: If a model has other files than its description says.
    """
    lacks: dict[str, Mapping[str, str]] = {}
    kept: dict[str, list[str]] = {}
    for family, column in _COLUMNS.items():
        chosen: Sequence[str] = plan.config.measure.get(family, ())
        for name in chosen:
            found = catalogue.missing(registry.MODELS.get((family, name), ()))
            if found:
                key = column.format(name)
                lacks[_FID.get(key, key)] = found
                kept[family] = [n for n in kept.get(family, chosen) if n != name]
    measured: dict[str, Any] = {"name": plan.config.measure["name"], **kept}
    settings = configs.merge([cell.settings, {"measure": measured}]) if kept else cell.settings
    models = models_of(plan)
    models["measure"] -= {name for found in lacks.values() for name in found}
    needs = catalogue.missing(set().union(*models.values()))
    return replace(cell, settings=settings, needs=needs, lacks=lacks)


def text(found: Mapping[str, str]) -> str:
    """Return in one line how to get missing models.

    >>> text({"a": "dhr-batch models pull a", "b": "pip install b"})
    'needs a: dhr-batch models pull a; b: pip install b'
    """
    return "needs " + "; ".join(f"{name}: {command}" for name, command in found.items())


def summary(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield lines about what was not computed, and a command for each missing model."""
    rows = sum(bool(cell.needs) for cell in cells)
    columns = {key: None for cell in cells for key in cell.lacks}
    if rows:
        yield (
            f"{rows} of {len(cells)} runs need models that are missing. The same command computes "
            "them once the models are there."
        )
    if columns:
        yield (
            f"Left out, as models are missing: {', '.join(columns)}. Finished runs keep their "
            "metrics, so get these models first, or use another folder for the benchmark then."
        )
    for name, command in sorted(missing(cells).items()):
        yield f"  {name}: {command}"


def missing(cells: Iterable[Cell]) -> dict[str, str]:
    """Return how to get each model that runs or their metrics need, by its name."""
    found: dict[str, str] = {}
    for cell in cells:
        for part in (cell.needs, *cell.lacks.values()):
            found |= part
    return found
