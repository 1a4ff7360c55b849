"""The plan of a run as `plan.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from dhr_batch.pipeline.runs.records import JsonRecord
from dhr_batch.pipeline.runs.versions import RuleVersions
from dhr_batch.stages import registry

# What a changed file of an image would change: its size, with an etag behind it in an object store.
Mark = int | str


@dataclass(frozen=True)
class RunSettings:
    """The resolved settings of a run. values: all of them; those of older runs lack some."""

    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """Name, folder or URL; "" where the plan does not say."""
        return str(self.values.get("dataset", ""))

    @property
    def generator(self) -> str:
        """Name or file; "unknown" where the plan does not say."""
        return str(self.values.get("generator", "unknown"))

    @property
    def first_stage(self) -> str:
        return str(self.values.get("first_stage", registry.STAGES[0]))

    @property
    def begins_late(self) -> bool:
        """Whether the run takes what earlier stages left from another run, its dataset."""
        return self.first_stage != registry.STAGES[0]

    @property
    def seed(self) -> int | None:
        return self.values.get("seed")

    @property
    def gpus(self) -> int:
        return int(self.values["gpus"])

    @property
    def shard_size(self) -> int:
        return int(self.values["shard_size"])

    @property
    def store_deltas(self) -> str | None:
        """A level of the codec, or `none`; older runs say True or False."""
        level = self.values.get("store_deltas")
        return ("small" if level else "none") if isinstance(level, bool) else level

    def section(self, family: str) -> Mapping[str, Any]:
        """The options of a stage, its `name` among them."""
        return self.values.get(family, {})

    def member(self, family: str) -> str:
        """The name of the chosen member of a family of stages."""
        return str(self.section(family)["name"])


@dataclass(frozen=True)
class Fingerprint(JsonRecord):
    """What every row of a run depends on, apart from the images.

    version: of dhr-batch. code: digest of the source of the stages. config: settings that rows
    depend on. models, directions: start of the sha256 by name. origin: fingerprint of the run that
    this one begins from. truths: images whose ground truth is known there.
    """

    version: str = ""
    code: str = ""
    aligned: bool = False
    split: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    directions: Mapping[str, str] = field(default_factory=dict)
    origin: Fingerprint | None = None
    truths: int | None = None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        read = super().from_json(found)
        origin = found.get("origin")
        return replace(read, origin=Fingerprint.from_json(origin) if origin else None)

    def to_json(self) -> dict[str, Any]:
        origin = {} if self.origin is None else {"origin": self.origin.to_json()}
        return super().to_json() | origin


@dataclass(frozen=True)
class StoredPlan:
    """The content of `plan.json`. No paths but those in the settings: a dataset may move.

    schema: of the lists of images; 1 has no contents. shards: image ids by shard. contents: beside
    each id what a changed file would change; None where `quarantine retry` allows another content.
    versions: of the machine that planned the run; a later start may have others. schema_version,
    rules: see `versions`. missing: what a later start compares and the file lacks.
    """

    dataset: str = ""
    settings: RunSettings = field(default_factory=RunSettings)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    versions: Mapping[str, str] = field(default_factory=dict)
    shards: Sequence[list[str]] = ()
    contents: Sequence[list[Mark | None]] | None = None
    schema: int | None = None
    schema_version: int = 1
    rules: RuleVersions = field(default_factory=RuleVersions)
    missing: tuple[str, ...] = field(default=(), compare=False)

    @property
    def images(self) -> int:
        """How many images are planned."""
        return sum(map(len, self.shards))

    def shard_of(self) -> dict[str, int]:
        """Image id -> number of its shard."""
        return {image_id: shard for shard, ids in enumerate(self.shards) for image_id in ids}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """A plan of any known version. Raises ValueError for values of other types."""
        config, fingerprint = found.get("config", {}), found.get("fingerprint", {})
        if not isinstance(config, Mapping):
            raise ValueError("config is not a JSON object")
        needed = [(found, "schema"), (found, "shards"), (found, "config"), (config, "shard_size")]
        needed += [(found, "fingerprint"), (fingerprint, "config"), (fingerprint, "models")]
        if found.get("schema") != 1:
            needed.append((found, "contents"))
        return cls(
            dataset=found.get("dataset", ""),
            settings=RunSettings(config),
            fingerprint=Fingerprint.from_json(fingerprint),
            versions=found.get("versions", {}),
            shards=found.get("shards", ()),
            contents=found.get("contents"),
            schema=found.get("schema"),
            schema_version=found.get("schema_version", 1),
            rules=RuleVersions.from_json(found.get("rules", {})),
            missing=tuple(key for part, key in needed if key not in part),
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object; its lists of images are those of this plan, not copies."""
        content = {
            "schema": self.schema,
            "schema_version": self.schema_version,
            "rules": self.rules.to_json(),
            "dataset": self.dataset,
            "config": self.settings.values,
            "fingerprint": self.fingerprint.to_json(),
            "versions": self.versions,
            "shards": self.shards,
            "contents": self.contents,
        }
        return {key: value for key, value in content.items() if value is not None}
