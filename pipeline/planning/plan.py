"""The plan of a run: its images in shards, its settings, and what its rows depend on."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.models.weights import weights_of, weights_of_generator
from dhr_batch.pipeline.planning import code
from dhr_batch.pipeline.planning.config import RUN_ONLY, Config
from dhr_batch.pipeline.runs.records.stored_plan import Fingerprint, Made, RunSettings, StoredPlan
from dhr_batch.pipeline.runs.records.versions import newest_rules, newest_schema
from dhr_batch.stages import registry
from dhr_batch.stages.edit import direction_files
from dhr_batch.stages.edit.base import EditOptions
from dhr_batch.stages.faces import looks_like_a_face
from dhr_batch.version import __version__

log = logging.getLogger(__name__)

SCHEMA = 2
# Generators that share the W space of StyleGAN2-FFHQ.
_FFHQ = {
    "mobilestylegan-1024", "mobilestylegan-256", "stylegan2-ffhq-1024", "stylegan2-test-bed",
}  # fmt: skip
# The fields that a Record has before the first stage.
_GIVEN = frozenset({"image_id", "source", "split", "data"})


@dataclass(frozen=True, slots=True)
class Shard:
    """A group of images that are committed together.

    Attributes:
        index: The number of the shard, from 0.
        items: Its images.
    """

    index: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Plan:
    """The shards of a run and its resolved settings.

    Attributes:
        dataset: The dataset.
        config: The resolved settings.
        shards: All shards.
        sized: Whether the user has chosen `shard_size`. Otherwise it depends on the images.
        directions: The start of the sha256 of each edit direction.
        origin: The fingerprint of the run that this one begins from.
        left_out: The number of quarantined images of that run, which this one leaves out.
        truths: The item that holds the ground truth of each image.
        ignored: The number of what the listing of the dataset left out, by kind.
        compared: What was found out about images whose marks differ from those of an earlier
            start; "" if none do.
    """

    dataset: Dataset
    config: Config
    shards: tuple[Shard, ...]
    sized: bool = True
    directions: dict[str, str] = field(default_factory=dict)
    origin: Fingerprint | None = None
    left_out: int = 0
    truths: dict[str, Item] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    compared: str = ""

    @property
    def images(self) -> int:
        """The number of planned images."""
        return sum(len(shard.items) for shard in self.shards)

    def head(self) -> StoredPlan:
        """Return the content of `plan.json` without the images."""
        return StoredPlan(
            dataset=self.dataset.name,
            settings=RunSettings(self.config.model_dump()),
            fingerprint=fingerprint(self),
            versions=_versions(),
            schema=SCHEMA,
            schema_version=newest_schema(),
            rules=newest_rules(),
            ignored=self.ignored or None,
        )

    def stored(self) -> StoredPlan:
        """Return the content of `plan.json`."""
        return replace(
            self.head(),
            shards=Made(len(self.shards), lambda i: [x.image_id for x in self.shards[i].items]),
            contents=Made(len(self.shards), lambda i: [x.mark for x in self.shards[i].items]),
        )


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "ray", "pyarrow")}
    return {"python": platform.python_version(), **packages}


def make(config: Config, dataset: Dataset, items: Sequence[Item], sized: bool = True) -> Plan:
    """Make the plan of a run.

    Args:
        config: The resolved settings.
        dataset: The dataset.
        items: Its images, which are cut into shards in this order.
        sized: Whether the user has chosen `shard_size`.

    Raises:
        Refused: If a stage needs what no earlier stage gives, an edit direction cannot be used, or
            faces of an image could have the id of another image.
    """
    check_stages(config)
    warn_of_other_generators(config)
    if config.first_stage == registry.STAGES[0] and config.align.get("face") == "all":
        check_ids(items)
    shards = cut(items, config.shard_size or 1, 0)
    return Plan(
        config=config, dataset=dataset, shards=shards, sized=sized, directions=digests(config)
    )


def check_ids(items: Sequence[Item]) -> None:
    """Check that no image is called like a further face of another one.

    Raises:
        Refused: If one is.
    """
    found = {i.image_id: whole for i in items if (whole := looks_like_a_face(i.image_id))}
    if not found:
        return
    present = {item.image_id for item in items}.intersection(found.values())
    for image_id, whole in found.items():
        if whole in present:
            raise Refused(
                f"image {image_id!r}",
                f"a further face of {whole!r} could have the same id",
                "rename it, or take one face of each photograph: --face largest",
            )


def cut(items: Sequence[Item], size: int, first_index: int) -> tuple[Shard, ...]:
    """Cut items into shards of `size`, of which the last may be smaller.

    Args:
        items: The images.
        size: The number of images of a shard.
        first_index: The number of the first shard.
    """
    parts = (tuple(items[first : first + size]) for first in range(0, len(items), size))
    return tuple(Shard(index, part) for index, part in enumerate(parts, first_index))


def digests(config: Config) -> dict[str, str]:
    """Return the start of the sha256 of each direction that the edits use.

    An edit that needs a model that is missing is left out; workers cannot start without it.

    Raises:
        Refused: If a direction cannot be used.
    """
    if "edit" not in config.stages:
        return {}
    found = {}
    for edit in edits_of(config):
        try:
            found[edit.title] = edit.load(catalogue.path).sha256[:16]
        except direction_files.DirectionError as error:
            raise Refused("edit.edits", error.reason, error.way_out) from error
        except catalogue.ModelMissing:
            # A plan may be shown before its models are there.
            continue
    return found


def check_edits(edits: Iterable[EditOptions], what: str = "edit.edits") -> None:
    """Check the names of directions, without torch.

    Args:
        edits: The edits.
        what: Where they stand, for the message.

    Raises:
        Refused: If there is no such direction.
    """
    for edit in edits:
        try:
            edit.check()
        except direction_files.DirectionError as error:
            raise Refused(what, error.reason, error.way_out) from error


def warn_of_other_generators(config: Config) -> None:
    """Log a warning about each direction file that states that it was made on another generator."""
    if "edit" not in config.stages:
        return
    parts = (part for edit in edits_of(config) for part in getattr(edit, "combined", (edit,)))
    for name in dict.fromkeys(getattr(part, "direction", "") for part in parts):
        found = direction_files.made_on(name) if ".npz" in name.lower() else None
        if found is not None and not share_w(config.generator, *found):
            log.warning(
                "%s was made on the generator %s: what it changes is arbitrary if %s has another W "
                "space",
                name,
                found[0],
                registry.label(config.generator),
            )


def share_w(generator: str, other: str, weights: Mapping[str, str]) -> bool:
    """Whether a generator is known to have the W space of another one.

    Args:
        generator: The generator of a run.
        other: The name of the other one.
        weights: Its weights as `weights_of_generator` gives them; empty if they are unknown.
    """
    own = weights_of_generator(generator)
    if own and weights:
        files, others = (
            {file for checksum in checksums.values() for file in str(checksum).split("+")}
            for checksums in (own, weights)
        )
        same = not files.isdisjoint(others)
    else:
        same = registry.label(generator) == registry.label(other)
    return same or {generator, other} <= _FFHQ


def edits_of(config: Config) -> Sequence[EditOptions]:
    """Return the edits of settings; none if their stage `edit` has no such list."""
    options = registry.options("edit", config.edit["name"])
    return getattr(options(**config.edit), "edits", ())


def check_stages(config: Config) -> None:
    """Check that each stage gets what it needs from the stages before it.

    Raises:
        Refused: If a stage does not.
    """
    given = set(_GIVEN)
    for family in registry.STAGES:
        name = getattr(config, family)["name"]
        stage = registry.lookup(family, name)
        missing = stage.needs - given
        if missing:
            raise Refused(
                f"{family}.name={name}",
                f"it needs {', '.join(sorted(missing))}, which no earlier stage gives",
                f"choose another {family}: {', '.join(registry.names(family))}",
            )
        given |= stage.gives


def models_of(plan: Plan) -> dict[str, set[str]]:
    """Return the models that the generator and each chosen stage load, by `generator` or stage."""
    config = plan.config
    found = {"generator": set(registry.MODELS.get(("generator", config.generator), ()))}
    for family in config.stages:
        section = getattr(config, family)
        member = registry.lookup(family, section["name"])
        found[family] = member(member.Options(**section)).models(plan.dataset.aligned)
    if "edit" in config.stages and "refine" not in config.stages:
        found["edit"] |= render_models(config)
    return found


def render_models(config: Config) -> set[str]:
    """Return the models with which the refiner renders, besides those of the generator."""
    refiner = registry.lookup("refine", config.refine["name"])
    return set(refiner(refiner.Options(**config.refine)).render_models())


def fingerprint(plan: Plan) -> Fingerprint:
    """Return everything that the rows of a run depend on, except the images."""
    return Fingerprint(
        version=__version__,
        code=code.digest(plan.config),
        aligned=plan.dataset.aligned,
        split=plan.dataset.split,
        config={k: v for k, v in plan.config.model_dump().items() if k not in RUN_ONLY},
        models=weights_of(plan.config.generator, set().union(*models_of(plan).values())),
        directions=plan.directions,
        origin=plan.origin,
        # A later start that finds fewer would give the remaining images fewer metrics.
        truths=len(plan.truths) or None,
    )
