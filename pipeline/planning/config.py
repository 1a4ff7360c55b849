"""Settings of a run: defaults, presets, files and command line merged into one checked `Config`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages import registry

Layer = Mapping[str, Any]

# Settings that may change between two starts of one run: they do not touch any row.
RUN_ONLY = frozenset({"dataset", "preset", "limit", "gpus", "workers", "workers_per_gpu"}) | {
    "max_quarantined",
    "lease_timeout",
    "image_timeout",
    "wait_timeout",
}


class Config(BaseModel):
    """Everything that decides what a run computes and on what.

    The six stage sections are dictionaries with the key `name`, which picks the member of the
    family, and the options of that member (see `resolve`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = Field(description="configured name or folder of photographs")
    first_stage: Literal["align", "embed", "segment", "refine", "edit", "measure"] = Field(
        "align", description="a later one takes what the earlier ones left from a run as dataset"
    )
    preset: str | None = Field(None, description="named set of settings")
    generator: str = Field(
        "auto", description="name, or converted .safetensors; auto: 256 px on CPUs, 1024 on GPUs"
    )
    seed: int = Field(0, ge=0, description="recorded; the default stages draw nothing")
    limit: int | None = Field(None, ge=1, description="only the first images of the dataset")
    shard_size: int | None = Field(
        None, ge=1, description="images per commit; by default an eighth of the images, 1 to 32"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="images computed together; by default 4 on a CPU, on a GPU as many as fit",
    )
    gpus: int | None = Field(
        None, ge=0, description="GPUs to use; 0: CPU; by default all there are"
    )
    workers: int | None = Field(None, ge=1, description="CPU workers; by default one per core")
    workers_per_gpu: int = Field(1, ge=1, description="workers that share a GPU")
    threads: int = Field(1, ge=1, description="torch threads of a worker")
    max_quarantined: float = Field(
        1.0, ge=0, le=1, description="share of failed images above which the exit code is 3"
    )
    lease_timeout: float = Field(
        60, gt=0, description="seconds after which a silent driver on an object store is replaced"
    )
    image_timeout: float | None = Field(
        1800.0,
        gt=0,
        description="seconds an image may take before it is quarantined; null: no end, and a disk "
        "that never answers is waited for without end as well",
    )
    wait_timeout: float = Field(
        1800.0, gt=0, description="seconds to wait for a first free GPU or CPU core"
    )
    store_deltas: Literal["none", "small", "fine"] = Field(
        "small", description="refined weights and features: 1.2 MB an image, 1.6 MB, or none"
    )
    align: dict[str, Any]
    embed: dict[str, Any]
    segment: dict[str, Any]
    refine: dict[str, Any]
    edit: dict[str, Any]
    measure: dict[str, Any]

    @field_validator("store_deltas", mode="before")
    @classmethod
    def _level(cls, value: Any) -> Any:
        return ("small" if value else "none") if isinstance(value, bool) else value

    @property
    def stages(self) -> tuple[str, ...]:
        """Families of the stages that a run consists of, in order."""
        return registry.STAGES[registry.STAGES.index(self.first_stage) :]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def presets(kind: str = "preset") -> list[str]:
    """Names of the presets, or of another kind of YAML files that are shipped."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped(kind))


def preset(name: str, kind: str = "preset") -> dict[str, Any]:
    """The content of a shipped YAML file. Raises Refused, naming the valid ones."""
    for file in _shipped(kind):
        if file.name == f"{name}.yaml":
            return _mapping(yaml.safe_load(file.read_text("utf-8")), f"{kind} {name}")
    raise Refused(f"unknown {kind} {name!r}", way_out=f"choose from: {', '.join(presets(kind))}")


def _shipped(kind: str) -> list[Traversable]:
    folder = resources.files("dhr_batch.configs") / f"{kind}s"
    return [file for file in folder.iterdir() if file.name.endswith(".yaml")]


def read_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML file. Raises Refused where it is no mapping of settings."""
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except yaml.YAMLError as error:
        raise Refused(str(path), f"it is not valid YAML: {error}") from error


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`a.b=c` texts as nested settings; values are YAML. Raises Refused for other texts."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise Refused(f"--set {text!r}", "it is not of the form key=value or section.key=value")
        place = settings
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise Refused(f"--set {text!r}", f"{key} was already given a value")
        try:
            place[keys[-1]] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Refused(f"--set {text!r}", f"the value is not valid YAML: {error}") from error
    return settings


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """Later layers win, key by key.

    A layer that changes the `name` of a stage section starts this section afresh, since options
    of one member mean nothing to another. `refine: none` is short for `refine: {name: none}`.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key in registry.STAGES:
                section = _section(key, value)
                before = merged.get(key, {})
                renamed = "name" in section and section["name"] != before.get("name")
                merged[key] = section if renamed else _deep(before, section)
            else:
                merged[key] = value
    return merged


def build(layers: Iterable[Layer]) -> Config:
    """Merge and check the settings that need no stage. Raises Refused."""
    merged = merge([preset("default"), *layers])
    try:
        return Config(**merged)
    except ValidationError as error:
        raise _explained(error, Config, "") from error


def resolve(config: Config, gpus: int, images: int) -> Config:
    """The settings with every default filled in, as they are stored with a run.

    gpus: how many the run uses; images: how many it has. Raises Refused for unknown names and
    options. Imports the stages, hence torch.
    """
    generator = config.generator
    if generator == "auto":
        generator = "mobilestylegan-1024" if gpus else "mobilestylegan-256"
    elif generator.endswith((registry.GENERATOR_FILE, ".pt", ".pkl", ".pth")):
        generator = str(_generator_file(Path(generator)))
    elif ":" not in generator and generator not in registry.names("generator"):
        _unknown_name("generator", generator)
    updates: dict[str, Any] = {
        "generator": generator,
        "gpus": gpus,
        "shard_size": config.shard_size or min(32, max(1, -(-images // 8))),
    }
    for family in registry.STAGES:
        section = getattr(config, family)
        options = options_class(family, section.get("name"))
        try:
            updates[family] = options(**section).model_dump(mode="json")
        except ValidationError as error:
            raise _explained(error, options, f"{family}.") from error
    return config.model_copy(update=updates)


def _generator_file(file: Path) -> Path:
    # Workers run in other folders.
    file = file.expanduser().absolute()
    converted = file.with_suffix(registry.GENERATOR_FILE)
    if file != converted:
        raise Refused(
            f"generator {file}",
            "it is a checkpoint",
            f"convert it with: dhr-batch models convert {file} and give generator={converted}",
        )
    if not file.is_file():
        raise Refused(
            f"generator {file}",
            "it is not there",
            "make it from a published StyleGAN2 checkpoint with: dhr-batch models convert "
            f"CHECKPOINT --out {file}",
        )
    return file


def options_class(family: str, name: Any) -> type[BaseModel]:
    """The options of a stage. Raises Refused for an unknown name."""
    if not isinstance(name, str) or (":" not in name and name not in registry.names(family)):
        _unknown_name(f"{family}.name", name, family)
    try:
        return registry.lookup(family, name).Options
    except registry.UnknownName as error:
        raise Refused(str(error)) from error


def _unknown_name(path: str, name: Any, family: str | None = None) -> NoReturn:
    valid = registry.names(family or path)
    close = difflib.get_close_matches(str(name), valid, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise Refused(f"unknown {path} {name!r}{hint}", way_out=f"choose from: {', '.join(valid)}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Refused(where, f"expected settings as `key: value`, found {value!r}")
    return value


def _section(key: str, value: Any) -> dict[str, Any]:
    return {"name": value} if isinstance(value, str) else _mapping(value, key)


def _deep(before: Layer, after: Layer) -> dict[str, Any]:
    merged = dict(before)
    for key, value in after.items():
        old = merged.get(key)
        merged[key] = (
            _deep(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def _explained(error: ValidationError, model: type[BaseModel], prefix: str) -> Refused:
    found = [_explain_one(item, model, prefix) for item in error.errors()]
    return found[0] if len(found) == 1 else Refused("\n".join(map(str, found)))


def _explain_one(item: Any, model: type[BaseModel], prefix: str) -> Refused:
    path = prefix + ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        given = f", got {item['input']!r}" if item["type"] != "missing" else ""
        return Refused(path, f"{item['msg'][:1].lower()}{item['msg'][1:]}{given}")
    fields: type[BaseModel] | Any = model
    for part in item["loc"][:-1]:
        field = getattr(fields, "model_fields", {}).get(part)
        fields = field.annotation if field is not None else None
    valid = list(getattr(fields, "model_fields", {}))
    close = difflib.get_close_matches(str(item["loc"][-1]), valid, 1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
    return Refused(f"unknown setting {path}", way_out=hint)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of flat settings that differ, each with its `key: old -> new` line."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return {key.removeprefix("config."): value for key, value in found.items()}
