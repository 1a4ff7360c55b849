"""The CPU seconds of stages per image, from which `plan` estimates the time of a run.

python -m dhr_batch.benchmarks.costs [--generator NAME ...]

Prints what `configs/costs.yaml` contains. One portrait passes each stage on one thread, with two
numbers of steps or edited pictures, so that each stage has a fixed part and one for each of them.
Beside it, `planning.costs.calibrate` says how fast the machine is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import click
import yaml

from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import costs
from dhr_batch.pipeline.planning.estimate import GeneratorFacts
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.record import Record

GENERATORS = ("mobilestylegan-256", "mobilestylegan-1024")
# The members that are measured, the default last. `steps` of each, and of coarse inversions.
MEMBERS = {
    "align": ("ffhq",),
    "embed": ("w", "w+"),
    "segment": ("dhr",),
    "refine": ("none", "pti", "weights", "feature", "dhr"),
    "edit": ("directions",),
    "measure": ("standard",),
}
_FEW, _MORE = 2, 6
_EDITS = ([1], [-2, -1, 1, 2, 3])


def settings(family: str, more: bool) -> dict[str, Any]:
    """Return the settings of a stage with few or more of what it repeats."""
    if family == "edit":
        return {"edits": [{"direction": "smile", "strengths": _EDITS[more]}]}
    if family == "segment":
        return {"source": "coarse", "coarse_steps": _MORE} if more else {}
    return {"steps": _MORE if more else _FEW, "stop": 0}


def seconds(
    context: Context, family: str, default: Mapping[str, Any], record: Record, more: bool
) -> tuple[float, Record]:
    """Return the CPU seconds of a stage on a record, and what it returned.

    Args:
        context: The resources of the stage.
        family: Its family.
        default: Its settings otherwise.
        record: The record.
        more: See `settings`.
    """
    member = registry.lookup(family, default["name"])
    known = member.Options.model_fields
    own = {k: v for k, v in settings(family, more).items() if k in known}
    stage = member(member.Options(**{**default, **own}))
    stage.setup(context)
    spent = []
    for _ in range(2):
        began = time.process_time()
        (done,) = stage.run([record])
        spent.append(time.process_time() - began)
        assert done.failure is None, done.failure
    return min(spent), done


def measured(generator: str) -> dict[str, Any]:
    """Return the costs with a generator, and its facts."""
    plan = prepare(
        Request(sets=("limit=1", f"generator={generator}"), settings={"dataset": "portraits"})
    )
    context = Context("cpu", generator, catalogue.path, refine=plan.config.refine)
    stages: dict[str, dict[str, list[float]]] = {}
    records = [read_record(plan.shards[0].items[0], "")] * 2
    for family, names in MEMBERS.items():
        for name in names:
            usual = getattr(plan.config, family)
            default = usual if usual["name"] == name else {"name": name}
            (few, first), (more, second) = (
                seconds(context, family, default, records[n], bool(n)) for n in range(2)
            )
            edited = len(first.edits), len(second.edits)
            counts = edited if family in ("edit", "measure") else (_FEW, _MORE)
            counts = (0, _MORE) if family == "segment" else counts
            each = max(0.0, (more - few) / (counts[1] - counts[0]))
            stages.setdefault(family, {})[name] = [few - counts[0] * each, each]
        records = [first, second]
    return {"facts": vars(GeneratorFacts.of(context.network("generator", generator)))} | {
        "stages": stages
    }


@click.command(cls=Command, help=__doc__)
@click.option("--generator", "generators", multiple=True, default=GENERATORS, show_default=True)
def main(generators: tuple[str, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    tests, found = [], {}
    for generator in generators:
        costs.calibrate.cache_clear()
        tests.append(costs.calibrate())
        found[generator] = measured(generator)
    content = {"test_seconds": statistics.mean(tests), "generators": found}
    click.echo(yaml.safe_dump(_rounded(content), sort_keys=False, default_flow_style=None))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_rounded(own) for own in value]
    return float(f"{max(0.0, value):.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
