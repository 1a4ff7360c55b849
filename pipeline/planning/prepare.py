"""Turn the arguments of `run` into a plan: dataset, preset, files, flags and GPUs."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dhr_batch.pipeline import outside
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.datasets.items import Item, Listing, left_out
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import needed
from dhr_batch.pipeline.models.catalogue import ModelMissing
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import devices, layers, origin, photographs
from dhr_batch.pipeline.planning.plan import Plan, check_edits, edits_of, make, models_of
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.printable import printable, without_secrets
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.pipeline.storage import locations, ownership
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.units import counted
from dhr_batch.stages import device, registry


def prepare(request: Request) -> Plan:
    """Merge the settings, find the images and cut them into shards. Nothing is started or written.

    Raises:
        Refused: If the settings or the dataset cannot be used.
        StorageError: If the storage does not answer.
        ModelMissing: If the dataset is one that must be downloaded first.
    """
    config, dataset, earlier = configured(request)
    remote = bool(request.address)
    if earlier is not None:
        listed = Listing(earlier.items(config), Counter())
    else:
        listed = _listed(dataset, config, remote)
    items = listed.items[: config.limit]
    plan = planned(config, dataset, items, devices.number(config, remote))
    plan = replace(plan, ignored=listed.ignored)
    if earlier is None:
        return plan
    earlier.check(plan.config)
    return replace(
        plan,
        origin=earlier.fingerprint,
        left_out=earlier.left_out,
        truths=photographs.truths(Run(earlier.folder, earlier.plan)),
    )


def configured(
    request: Request,
) -> tuple[configs.Config, named.Dataset, origin.Origin | None]:
    """Merge and check all settings. If they name no code of others, torch is not imported.

    Returns:
        The settings, the dataset, and the earlier run that the new one begins from, if it does.

    Raises:
        Refused: If the settings cannot be used, or there is no such dataset.
        StorageError: If the storage does not answer.
    """
    given = given_by(request)
    if not given.settings.get("dataset"):
        names = ", ".join(named.datasets())
        raise Refused("no dataset", way_out=f"give --dataset with a folder or one of: {names}")
    dataset, earlier, first = origin.start(given.settings, given.code, request.allow_code)
    return checked([*first, *given.layers]), dataset, earlier


def checked(chosen: Iterable[layers.Layer]) -> configs.Config:
    """Merge and check layers of settings, also their edits.

    Raises:
        Refused: If the settings cannot be used.
    """
    config = configs.build(chosen)
    check_edits(edits_of(config))
    return config


def planned(
    config: configs.Config, dataset: named.Dataset, items: Sequence[Item], gpus: int
) -> Plan:
    """Fill in what depends on the machine and the images, and cut them into shards.

    Raises:
        Refused: If the settings cannot be used with them.
    """
    resolved = configs.resolve(config, gpus, len(items))
    # From here on the place of the photographs is shown and stored. They are read by `items`.
    resolved = resolved.model_copy(update={"dataset": without_secrets(resolved.dataset)})
    return make(resolved, dataset, items, sized=config.shard_size is not None)


class Given(NamedTuple):
    """The settings that a user gave.

    Attributes:
        layers: Those of each place, see `given_layers`.
        settings: The merged layers.
        code: The names of code outside of dhr-batch that the user gave.
    """

    layers: list[layers.Layer]
    settings: dict[str, Any]
    code: set[str]


def given_by(request: Request) -> Given:
    """Return the settings of the user.

    Raises:
        Refused: If a file or text contains no settings.
    """
    chosen = given_layers(request)
    settings = configs.merge(chosen)
    # The name of the dataset names no code, whatever it looks like.
    own = {key: value for key, value in settings.items() if key != "dataset"}
    return Given(chosen, settings, {*request.named, *outside.members(own)})


def given_layers(request: Request) -> list[layers.Layer]:
    """Return the settings of the user: from files, `--set` and options, the last of which wins.

    Raises:
        Refused: If a file or text contains no settings.
    """
    files = [layers.read_file(path) for path in request.files]
    return [*files, layers.assignments(request.sets), request.settings]


def _listed(dataset: named.Dataset, config: configs.Config, remote: bool) -> Listing:
    try:
        return named.listed(dataset)
    except ModelMissing as error:
        # The photographs are downloaded like models: one question is to be about all of them.
        names = set(error.models)
        if not remote:
            plan = planned(config, dataset, (), devices.number(config, remote))
            names.update(*models_of(plan).values())
        needed.require(names)
        raise


def check_gpus(plan: Plan, request: Request) -> None:
    """Check that this machine has the GPUs of a plan. Those of a cluster are checked on joining it.

    Raises:
        Refused: If it has fewer.
    """
    wanted, kind = plan.config.gpus or 0, devices.torch_device(plan.config)
    if not wanted or request.address:
        return
    if kind in ("mps", "xpu"):
        device.check(kind)
        available = device.count(kind)
    else:
        available = devices.physical_gpus()
    if available < wanted:
        raise devices.missing_gpus(wanted, available)


def check_models(plan: Plan, request: Request) -> None:
    """Verify the models that the chosen stages load, before anything is started or deleted.

    The workers of a cluster check their own models, as they may have files that this machine lacks.

    Raises:
        ModelMissing: If models are missing. The message says how to get them.
    """
    if request.address:
        return
    needed.require(set().union(*models_of(plan).values()))


def place(plan: Plan, request: Request) -> Storage:
    """Return the place of the run.

    Raises:
        Refused: If it lies in an input of the run, or an input lies in it.
    """
    first, name = plan.config.first_stage, plan.dataset.name
    begins_late = first != registry.STAGES[0]
    suffix = f"from-{first}" if begins_late else registry.label(plan.config.generator)
    default = f"runs/{name}-{suffix}"
    out = connect(request.out or default)
    if begins_late:
        source = connect(plan.dataset.location).address.rstrip("/")
        if out.address.rstrip("/") == source:
            raise Refused(
                out.place,
                "it is the run that the new run begins from",
                "choose another folder with --out",
            )
        if locations.lies_in(out.address, source):
            raise Refused(
                out.place,
                f"it lies in {source}, the run that the new run begins from",
                "choose a folder outside of it with --out",
            )
    try:
        ownership.require_apart(out, inputs(plan))
    except Refused as error:
        if request.out is None:
            raise _inside_dataset(plan, request, default) from error
        raise
    return out


def inputs(plan: Plan) -> Iterator[str]:
    """Yield the places that a run reads, with which its output must not be mixed.

    These include other folders to which links in a folder of photographs lead.
    """
    yield plan.dataset.location
    if plan.origin:
        source = RunRecords(plan.dataset.location)
        yield from origin.inputs(source.storage, source.plan() or StoredPlan())
        return
    items = (item for shard in plan.shards for item in shard.items if item.at < 0)
    folders = {item.place + item.name.rpartition("/")[0] for item in items}
    yield from sorted(folder for folder in folders if not locations.is_url(folder))


def _inside_dataset(plan: Plan, request: Request, default: str) -> Refused:
    """Return the error for a default place in the dataset. It names a command that works."""
    dataset = Path(plan.dataset.location).resolve()
    for folder in (dataset.parent, Path.home(), Path(tempfile.gettempdir())):
        with suppress(Refused):
            out = connect(folder / default)
            ownership.require_apart(out, inputs(plan))
            ownership.Owned(out, ownership.RUN).check()
            if os.access(folder, os.W_OK):
                break
    words = [*(request.command or ("dhr-batch", "run")), "--out", os.path.relpath(out.address)]
    return Refused(
        f"{default}, the default place of this run",
        f"it lies in the dataset {dataset}, where the files that are written would be taken for "
        "photographs",
        f"start the run with a place outside of it:\n  {shlex.join(words)}",
    )


def describe(plan: Plan, out: str) -> str:
    """Return a summary of the plan in a few lines.

    Args:
        plan: The plan.
        out: The place of the run.
    """
    config = plan.config
    shown = counted(config.gpus, "GPU") if config.gpus else "CPU"
    if config.device in ("mps", "xpu"):
        shown += f" ({config.device})"
    workers = devices.worker_count(config, len(plan.shards))
    lines = [
        f"dataset    {plan.dataset.name}: {counted(plan.images, 'image')}, "
        f"{counted(len(plan.shards), 'shard')} of up to {config.shard_size}"
        + (f"; {plan.left_out} more are in quarantine and left out" if plan.left_out else ""),
        *notes(plan),
        f"stages     {' -> '.join(_stage(config, name) for name in config.stages)}",
        f"generator  {registry.label(config.generator)}"
        + (", random weights" if config.generator == "tiny" else ""),
        f"device     {shown}, {counted(workers, 'worker')}",
        f"output     {out}",
    ]
    return "\n".join(map(printable, lines))


def notes(plan: Plan) -> list[str]:
    """Return lines on what the listing left out, and on images that were compared."""
    found = {"left out   ": left_out(plan.ignored), "compared   ": plan.compared}
    return [name + text for name, text in found.items() if text]


def _stage(config: configs.Config, family: str) -> str:
    return f"{family} ({getattr(config, family)['name']})"
