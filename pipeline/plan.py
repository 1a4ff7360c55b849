"""What a run will do: its images in shards, its settings, and what must not change on resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dhr_batch
from dhr_batch.pipeline import models
from dhr_batch.pipeline.config import RUN_ONLY, Config, ConfigError
from dhr_batch.pipeline.datasets import Dataset, Item
from dhr_batch.stages import registry

SCHEMA = 1
# Fields of a Record that exist before the first stage.
_GIVEN = frozenset({"image_id", "source", "split", "data"})


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of commit: `index` counts from 0, items are in plan order."""

    index: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a run and the resolved settings that fill them."""

    dataset: Dataset
    config: Config
    shards: tuple[Shard, ...]

    @property
    def images(self) -> int:
        return sum(len(shard.items) for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """The content of `plan.json`: image ids by shard, settings and fingerprint. No paths."""
        return {
            "schema": SCHEMA,
            "dataset": self.dataset.name,
            "config": self.config.model_dump(),
            "fingerprint": fingerprint(self),
            "shards": [[item.image_id for item in shard.items] for shard in self.shards],
        }


def make(config: Config, dataset: Dataset, items: Sequence[Item]) -> Plan:
    """Cut the images into shards of `config.shard_size`, in the order given.

    Raises ConfigError for a chain of stages in which one needs what no earlier one gives.
    """
    check_stages(config)
    size = config.shard_size or 1
    parts = [tuple(items[first : first + size]) for first in range(0, len(items), size)]
    return Plan(dataset, config, tuple(Shard(index, part) for index, part in enumerate(parts)))


def check_stages(config: Config) -> None:
    """Each stage's needs must be given by the stages before it. Raises ConfigError."""
    given = set(_GIVEN)
    for family in registry.STAGES:
        name = getattr(config, family)["name"]
        stage = registry.lookup(family, name)
        missing = stage.needs - given
        if missing:
            raise ConfigError(
                f"{family}.name={name} needs {', '.join(sorted(missing))}, which no earlier stage "
                f"gives; choose another {family}: {', '.join(registry.names(family))}"
            )
        given |= stage.gives


def fingerprint(plan: Plan) -> dict[str, Any]:
    """What every row of a run depends on, apart from the images themselves."""
    settings = {k: v for k, v in plan.config.model_dump().items() if k not in RUN_ONLY}
    sums = {
        name: "+".join(member.sha256[:16] for _, member in sorted(model.files().items()))
        for name, model in sorted(models.models().items())
    }
    return {
        "version": dhr_batch.__version__,
        "aligned": plan.dataset.aligned,
        "config": settings,
        "models": {name: checksum for name, checksum in sums.items() if checksum},
    }


def changes(stored: dict[str, Any], plan: Plan) -> list[str]:
    """How a plan differs from the stored one of the same folder, as `key: old -> new` lines.

    Models that only one of them knows do not count: no row can depend on them.
    """
    now = plan.to_json()
    old_print, new_print = stored.get("fingerprint", {}), now["fingerprint"]
    known = old_print.get("models", {}).keys() & new_print["models"].keys()
    old, new = (
        _flat(p | {"models": {k: v for k, v in p.get("models", {}).items() if k in known}})
        for p in (old_print, new_print)
    )
    lines = [
        f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return lines + _changed_images(stored.get("shards", []), now["shards"])


def _changed_images(old: list[list[str]], new: list[list[str]]) -> list[str]:
    before = {image for shard in old for image in shard}
    after = {image for shard in new for image in shard}
    if before != after:
        return [f"images: {len(after - before)} added, {len(before - after)} gone"]
    return [] if old == new else ["images: in other shards or another order"]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return {key.removeprefix("config."): value for key, value in flat.items()}
