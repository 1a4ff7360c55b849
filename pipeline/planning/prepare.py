"""From what the user typed to a plan: datasets, presets, files, flags and GPUs."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import devices, origin, photographs, plan
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.pipeline.storage import locations, ownership
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.stages import registry


def prepare(request: Request) -> plan.Plan:
    """Merge the settings, find the images and cut them into shards. Starts and writes nothing.

    Raises Refused, StorageError and ModelMissing (an embedded dataset
    that was not pulled).
    """
    files = [configs.read_file(path) for path in request.files]
    given = [*files, configs.assignments(request.sets), request.settings]
    asked = configs.merge(given)
    if not asked.get("dataset"):
        names = ", ".join(named.datasets())
        raise Refused("no dataset", way_out=f"give --dataset with a folder or one of: {names}")
    dataset, begun, layers = origin.start(asked)
    config = configs.build([*layers, *given])
    listed = named.list_images(dataset) if begun is None else begun.items(config)
    items = listed[: config.limit]
    gpus = config.gpus
    if gpus is None:
        gpus = 0 if request.address else devices.physical_gpus()
    resolved = configs.resolve(config, gpus, len(items))
    made = plan.make(resolved, dataset, items, sized=config.shard_size is not None)
    if begun is None:
        return made
    begun.check(resolved)
    return replace(
        made,
        origin=begun.fingerprint,
        left_out=begun.left_out,
        truths=photographs.truths(Run(begun.storage, begun.plan)),
    )


def check_gpus(made: plan.Plan, request: Request) -> None:
    """Refuse GPUs that this machine does not have. A cluster is asked when it is joined."""
    asked = made.config.gpus or 0
    there = devices.physical_gpus() if asked and not request.address else asked
    if asked > there:
        raise devices.missing_gpus(asked, there)


def check_models(made: plan.Plan, request: Request) -> None:
    """Verify the models that the chosen stages load, before anything is started or deleted.

    A cluster's workers check theirs: its nodes may have files that this machine lacks.
    Raises ModelMissing, whose message names the way to get the model.
    """
    if request.address:
        return
    config = made.config
    names = set(registry.MODELS.get(("generator", config.generator), ()))
    for family in config.stages:
        section = getattr(config, family)
        member = registry.lookup(family, section["name"])
        names |= member(member.Options(**section)).models(made.dataset.aligned)
    for name in sorted(names):
        catalogue.path(name)


def place(made: plan.Plan, request: Request) -> Storage:
    """Where the run lies. Raises Refused where that can be no run."""
    first, name = made.config.first_stage, made.dataset.name
    begun = first != registry.STAGES[0]
    how = f"from-{first}" if begun else registry.label(made.config.generator)
    default = f"runs/{name}-{how}"
    out = connect(request.out or default)
    if begun:
        source = connect(made.dataset.location).address.rstrip("/")
        if out.address.rstrip("/") == source:
            raise Refused(
                out.place, "it is the run to begin from", "choose another folder with --out"
            )
        if locations.lies_in(out.address, source):
            raise Refused(
                out.place,
                f"it lies in the run to begin from, {source}",
                "choose a folder outside of it with --out",
            )
    try:
        ownership.require_apart(out, inputs(made))
    except Refused as error:
        if request.out is None:
            raise Refused(_elsewhere(made, request, default)) from error
        raise
    return out


def inputs(made: plan.Plan) -> Iterator[str]:
    """The places that a run reads, each of which its output must not be mixed with.

    Links in a folder of photographs may lead to others.
    """
    yield made.dataset.location
    if made.origin:
        source = RunFolder(made.dataset.location)
        yield from origin.inputs(source.storage, source.plan() or StoredPlan())
        return
    items = (item for shard in made.shards for item in shard.items if item.at < 0)
    folders = {item.place + item.name.rpartition("/")[0] for item in items}
    yield from sorted(folder for folder in folders if not locations.is_url(folder))


def _elsewhere(made: plan.Plan, request: Request, default: str) -> str:
    """What to say where the default place lies in the dataset: the command with a better one."""
    dataset = Path(made.dataset.location).resolve()
    for folder in (dataset.parent, Path.home(), Path(tempfile.gettempdir())):
        with suppress(Refused):
            out = connect(folder / default)
            ownership.require_apart(out, inputs(made))
            ownership.Owned(out, ownership.RUN).check()
            if os.access(folder, os.W_OK):
                break
    words = [*(request.command or ("dhr-batch", "run")), "--out", os.path.relpath(out.address)]
    return (
        f"{default}, where this run would go by default, lies in the dataset {dataset}, and what "
        "it writes would be taken for photographs. Start it with a place outside:\n  "
        f"{shlex.join(words)}"
    )


def describe(made: plan.Plan, out: str) -> str:
    """The plan in a few lines, for people."""
    config = made.config
    device = f"{config.gpus} GPU{'s' if config.gpus != 1 else ''}" if config.gpus else "CPU"
    workers = devices.worker_count(config, len(made.shards))
    lines = [
        f"dataset    {made.dataset.name}: {made.images} images, {len(made.shards)} shards of up to "
        f"{config.shard_size}"
        + (f"; {made.left_out} in quarantine there are left out" if made.left_out else ""),
        f"stages     {' -> '.join(_stage(config, name) for name in config.stages)}",
        f"generator  {registry.label(config.generator)}"
        + (", random weights" if config.generator == "tiny" else ""),
        f"device     {device}, {workers} worker{'s' if workers != 1 else ''}",
        f"output     {out}",
    ]
    return "\n".join(lines)


def _stage(config: configs.Config, family: str) -> str:
    return f"{family} ({getattr(config, family)['name']})"
