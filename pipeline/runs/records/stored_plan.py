"""The plan of a run as stored in `plan.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, overload

from pydantic import BaseModel

from dhr_batch.pipeline.datasets.items import Mark
from dhr_batch.pipeline.runs.records.json_record import JsonRecord, checked
from dhr_batch.pipeline.runs.records.versions import RuleVersions
from dhr_batch.pipeline.tables import codec
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages import registry
from dhr_batch.stages.device import Precision

T = TypeVar("T")


class Made(Sequence[list[T]]):
    """A sequence with one list per shard, which is made each time it is read.

    A million marks would take much memory.

    Args:
        length: The number of shards.
        make: Returns the list of a shard.
    """

    def __init__(self, length: int, make: Callable[[int], list[T]]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> list[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[T]]: ...
    def __getitem__(self, index: int | slice) -> list[Any]:
        chosen = range(self._length)[index]
        return self._make(chosen) if isinstance(chosen, int) else list(map(self._make, chosen))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _written(lists: Sequence[list[T]] | None) -> Sequence[list[T]] | None:
    return list(lists) if isinstance(lists, Made) else lists


@dataclass(frozen=True)
class RunSettings:
    """The resolved settings of a run.

    Attributes:
        values: All settings by name. Runs of older versions lack some of them.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The name, folder or URL of the dataset; "" if the plan lacks it."""
        return str(self.values.get("dataset", ""))

    @property
    def generator(self) -> str:
        """The name or file of the generator; "unknown" if the plan lacks it."""
        return str(self.values.get("generator", "unknown"))

    @property
    def first_stage(self) -> str:
        """The stage at which the run begins."""
        return str(self.values.get("first_stage", registry.STAGES[0]))

    @property
    def begins_late(self) -> bool:
        """Whether the run begins from another run, which then is its dataset."""
        return self.first_stage != registry.STAGES[0]

    @property
    def seed(self) -> int | None:
        """The seed; None if the plan lacks it."""
        return self.values.get("seed")

    @property
    def precision(self) -> Precision:
        """The precision. Runs of versions without this setting are rendered as with `fp32`."""
        return self.values.get("precision", "fp32")

    @property
    def gpus(self) -> int:
        """The number of GPUs."""
        return int(self.values["gpus"])

    @property
    def shard_size(self) -> int:
        """The number of images of a shard."""
        return int(self.values["shard_size"])

    @property
    def store_deltas(self) -> str | None:
        """The level of the codec, or `none`. Runs of older versions store True or False."""
        level = self.values.get("store_deltas")
        return ("small" if level else "none") if isinstance(level, bool) else level

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables of which each shard has a file."""
        info = RunInfo(
            rows=0,
            embedder="",
            deltas=codec.LEVELS.get(self.store_deltas or "none"),
            store_features=bool(self.section("measure").get("features")),
        )
        return info.tables

    def section(self, family: str) -> Mapping[str, Any]:
        """Return the options of a stage, including its `name`."""
        return self.values.get(family, {})

    def member(self, family: str) -> str:
        """Return the name of the chosen member of a family of stages."""
        return str(self.section(family)["name"])


@dataclass(frozen=True)
class Fingerprint(JsonRecord):
    """Everything that the rows of a run depend on, except the images.

    Attributes:
        version: The version of dhr-batch.
        code: A digest of the source of the stages.
        aligned: Whether the photographs are aligned already.
        split: The split of the dataset.
        config: The settings that rows depend on.
        models: The start of the sha256 of each model.
        directions: The start of the sha256 of each edit direction.
        origin: The fingerprint of the run that this one begins from.
        truths: The number of images of that run whose ground truth is known.
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

    def to_json(self) -> dict[str, Any]:
        origin = {} if self.origin is None else {"origin": self.origin.to_json()}
        return super().to_json() | origin


class _Section(BaseModel):
    name: str


class _Settings(BaseModel):
    """The types of those settings that all commands read."""

    dataset: str = ""
    generator: str = ""
    first_stage: str = ""
    seed: int | None = None
    gpus: int | None = None
    shard_size: int | None = None
    precision: str = ""
    align: _Section | None = None
    embed: _Section | None = None
    segment: _Section | None = None
    refine: _Section | None = None
    edit: _Section | None = None
    measure: _Section | None = None


class _Head(BaseModel):
    """The types of a plan, without its long lists."""

    dataset: str = ""
    config: _Settings = _Settings()
    versions: dict[str, str] = {}
    ignored: dict[str, int] = {}
    schema_version: int = 1
    run: str = ""


@dataclass(frozen=True)
class StoredPlan:
    """The content of `plan.json`.

    Only the settings contain paths, as a dataset may be moved.

    Attributes:
        dataset: The name of the dataset.
        settings: The resolved settings.
        fingerprint: Everything else that rows depend on.
        versions: Versions of Python and packages at the first start. Later starts may use others.
        shards: The image ids of each shard.
        contents: The mark of each image, in the same lists as `shards`. The mark is None if
            `quarantine retry` has allowed another content of the image.
        schema: The version of the lists of images. Version 1 has no `contents`.
        run: The identity of the run, which its manifests repeat; empty in runs of earlier versions.
        schema_version: The version of the whole file (see the module `versions`).
        rules: The versions of the rules for rendering.
        ignored: The number of what the listing of the dataset left out, by kind.
        missing: Keys that the file lacks, although a later start needs them.
    """

    dataset: str = ""
    settings: RunSettings = field(default_factory=RunSettings)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    versions: Mapping[str, str] = field(default_factory=dict)
    shards: Sequence[list[str]] = ()
    contents: Sequence[list[Mark | None]] | None = None
    schema: int | None = None
    run: str = field(default="", compare=False)
    schema_version: int = 1
    rules: RuleVersions = field(default_factory=RuleVersions)
    ignored: Mapping[str, int] | None = None
    missing: tuple[str, ...] = field(default=(), compare=False)

    @property
    def images(self) -> int:
        """The number of planned images."""
        return sum(map(len, self.shards))

    def shard_of(self) -> dict[str, int]:
        """Return the number of the shard of each image."""
        return {image_id: shard for shard, ids in enumerate(self.shards) for image_id in ids}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read a plan of any known version.

        Raises:
            ValueError: If a value has the wrong type.
        """
        config, fingerprint = found.get("config", {}), found.get("fingerprint", {})
        read = Fingerprint.from_json(fingerprint)
        checked(_Head, {key: value for key, value in found.items() if value is not None})
        checked(_Settings, read.config)
        needed = [(found, "schema"), (found, "shards"), (found, "config"), (config, "shard_size")]
        needed += [(found, "fingerprint"), (fingerprint, "config"), (fingerprint, "models")]
        if found.get("schema") != 1:
            needed.append((found, "contents"))
        return cls(
            dataset=found.get("dataset", ""),
            settings=RunSettings(config),
            fingerprint=read,
            versions=found.get("versions", {}),
            shards=found.get("shards", ()),
            contents=found.get("contents"),
            schema=found.get("schema"),
            run=found.get("run", ""),
            schema_version=found.get("schema_version", 1),
            rules=RuleVersions.from_json(found.get("rules", {})),
            ignored=found.get("ignored"),
            missing=tuple(key for part, key in needed if key not in part),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object, which shares the lists of images with this plan."""
        content = {
            "schema": self.schema,
            "schema_version": self.schema_version,
            "run": self.run or None,
            "rules": self.rules.to_json(),
            "dataset": self.dataset,
            "config": self.settings.values,
            "fingerprint": self.fingerprint.to_json(),
            "versions": self.versions,
            "ignored": self.ignored,
            "shards": _written(self.shards),
            "contents": _written(self.contents),
        }
        return {key: value for key, value in content.items() if value is not None}
