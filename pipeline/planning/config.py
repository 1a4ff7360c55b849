"""The settings of a run: defaults, presets, files and flags, merged into one checked `Config`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError, field_validator

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages import registry, yaml_files
from dhr_batch.stages.device import Kind, Precision

if TYPE_CHECKING:
    from dhr_batch.stages.base import StageOptions

Layer = Mapping[str, Any]
# Wrong settings that are listed at once.
_MOST_EXPLAINED = 20

# Settings that may change between two starts of a run, as no row depends on them.
RUN_ONLY = frozenset(
    {"dataset", "preset", "limit", "gpus", "device", "workers", "workers_per_gpu", "cpus_per_gpu"}
) | {
    "max_quarantined",
    "lease_timeout",
    "image_timeout",
    "wait_timeout",
}


class Config(BaseModel):
    """All settings of a run.

    The sections of the six stages are dictionaries. The key `name` selects the member of the family
    of stages, and the other keys are the options of this member (see `resolve`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = Field(description="configured name or folder of photographs")
    first_stage: Literal["align", "embed", "segment", "refine", "edit", "measure"] = Field(
        "align", description="the first stage; a later one begins from a run, given as the dataset"
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
    gpus: int | None = Field(None, ge=0, description="GPUs to use; 0: use the CPU; by default all")
    device: Kind | None = Field(
        None,
        description="cuda, mps (Apple), xpu (Intel) or cpu; by default cuda if there are GPUs",
    )
    workers: int | None = Field(None, ge=1, description="CPU workers; by default one per core")
    workers_per_gpu: int = Field(1, ge=1, description="workers that share a GPU")
    cpus_per_gpu: int | None = Field(
        None,
        ge=1,
        description="cores reserved beside a GPU; by default its share of those that are free",
    )
    threads: int = Field(1, ge=1, description="torch threads of a worker")
    precision: Precision = Field(
        "fp32",
        description="of convolutions and matrix products: fp32, tf32 (NVIDIA GPUs), or bf16 in "
        "embed and refine",
    )
    max_quarantined: float = Field(
        1.0, ge=0, le=1, description="share of failed images above which the exit code is 3"
    )
    lease_timeout: float = Field(
        60,
        gt=0,
        description="seconds until a driver without a sign of life is replaced (object stores)",
    )
    image_timeout: float | None = Field(
        1800.0,
        gt=0,
        description="seconds an image may take before it is quarantined (on a GPU in embed, "
        "segment, refine with edit, and measure each); null: no limit, even if a disk never "
        "answers",
    )
    wait_timeout: float = Field(
        1800.0, gt=0, description="seconds to wait until a GPU or CPU core is free"
    )
    store_deltas: Literal["none", "small", "fine"] = Field(
        "small", description="precision of stored weights and features: 1.5 or 1.9 MB per image"
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
        """The families of the stages of the run, in order."""
        return registry.STAGES[registry.STAGES.index(self.first_stage) :]

    def to_yaml(self) -> str:
        """Return the settings as YAML."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def presets(kind: str = "preset") -> list[str]:
    """Return the names of the presets, or of another kind of YAML files in `configs`."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped(kind))


def preset(name: str, kind: str = "preset") -> dict[str, Any]:
    """Return the content of a preset, or of another kind of YAML file in `configs`.

    Raises:
        Refused: If the name is unknown. The message lists the valid names.
    """
    for file in _shipped(kind):
        if file.name == f"{name}.yaml":
            return _mapping(yaml_files.read(file), f"{kind} {name}")
    raise Refused(f"unknown {kind} {name!r}", way_out=f"choose from: {', '.join(presets(kind))}")


def _shipped(kind: str) -> list[Traversable]:
    folder = resources.files("dhr_batch.configs") / f"{kind}s"
    return [file for file in folder.iterdir() if file.name.endswith(".yaml")]


def read_file(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file.

    Raises:
        Refused: If the file does not contain a mapping of settings.
    """
    try:
        return _mapping(yaml_files.read(path), str(path))
    except yaml_files.InvalidYaml as error:
        raise Refused(str(path), error.reason, error.way_out) from error


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Parse texts of the form `section.key=value`, whose values are YAML, to nested settings.

    Raises:
        Refused: If a text has another form.

    >>> assignments(["refine.name=pti", "seed=1"])
    {'refine': {'name': 'pti'}, 'seed': 1}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise Refused(
                f"--set {text!r}",
                "it is not of the form key=value or section.key=value",
                "write for example embed.steps=20",
            )
        section = settings
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise Refused(
                    f"--set {text!r}",
                    f"{key} was already given a value",
                    "leave out one of the two",
                )
        try:
            section[keys[-1]] = yaml_files.parse(value)
        except yaml_files.InvalidYaml as error:
            raise Refused(
                f"--set {yaml_files.shown(text)}",
                error.reason.replace("it", "the value", 1),
                "put text with special characters in quotes, as in 'key=\"[text\"'",
            ) from error
    return settings


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """Merge layers of settings. Each layer overrides the keys of the layers before it.

    If a layer changes the `name` of a stage, the options of the layers before it are dropped, as
    they belong to another member. `refine: none` is short for `refine: {name: none}`.

    >>> merge([{"refine": {"name": "dhr", "steps": 10}}, {"refine": "none", "seed": 1}])
    {'refine': {'name': 'none'}, 'seed': 1}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key in registry.STAGES:
                section = _section(key, value)
                before = merged.get(key, {})
                renamed = "name" in section and section["name"] != before.get("name")
                merged[key] = section if renamed else _deep_merge(before, section)
            else:
                merged[key] = value
    return merged


def build(layers: Iterable[Layer]) -> Config:
    """Merge layers of settings, and check all of them but the options of stages.

    Raises:
        Refused: If a setting is unknown or invalid.
    """
    merged = merge([preset("default"), *layers])
    try:
        return Config(**merged)
    except ValidationError as error:
        raise _explained(error, Config, "") from error


def resolve(config: Config, gpus: int, images: int) -> Config:
    """Fill in all defaults, including those of the stages. A run stores the result.

    This imports the stages, and with them torch.

    Args:
        config: The settings.
        gpus: The number of GPUs that the run uses.
        images: The number of images.

    Raises:
        Refused: If a name or option is unknown or invalid.
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
        "device": config.device or ("cuda" if gpus else "cpu"),
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
    # Workers have other current folders, so the path must be absolute.
    file = Path(os.path.expanduser(file)).absolute()
    converted = file.with_suffix(registry.GENERATOR_FILE)
    if file != converted:
        raise Refused(
            f"generator {file}",
            "it is not a converted checkpoint",
            f"convert it with: dhr-batch models convert {file}, and give generator={converted}",
        )
    if not file.is_file():
        raise Refused(
            f"generator {file}",
            "it does not exist",
            "make it from a published StyleGAN2 checkpoint with: dhr-batch models convert "
            f"CHECKPOINT --out {file}",
        )
    return file


def options_class(family: str, name: Any) -> type[StageOptions]:
    """Return the class of the options of a stage.

    Raises:
        Refused: If the name is unknown.
    """
    if not isinstance(name, str) or (":" not in name and name not in registry.names(family)):
        _unknown_name(f"{family}.name", name, family)
    try:
        return registry.lookup(family, name).Options
    except registry.UnknownName as error:
        raise Refused(error.reason, way_out=error.way_out) from error


def _unknown_name(path: str, name: Any, family: str | None = None) -> NoReturn:
    valid = registry.names(family or path)
    close = difflib.get_close_matches(str(name), valid, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    what = f"unknown {path} {yaml_files.shown(name)}{hint}"
    raise Refused(what, way_out=f"choose from: {', '.join(valid)}")


def _mapping(value: Any, where: str, example: str = "seed: 1") -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Refused(
            where,
            f"expected settings as `key: value`, found {yaml_files.shown(value)}",
            f"write for example `{example}`",
        )
    return value


def _section(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    return _mapping(value, key, f"name: {registry.names(key)[0]}")


def _deep_merge(before: Layer, after: Layer) -> dict[str, Any]:
    merged = dict(before)
    for key, value in after.items():
        old = merged.get(key)
        merged[key] = (
            _deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def _explained(error: ValidationError, model: type[BaseModel], prefix: str) -> Refused:
    found = [_explain_one(item, model, prefix) for item in error.errors()[:_MOST_EXPLAINED]]
    if more := error.error_count() - len(found):
        found.append(Refused(f"and {more} more"))
    return (
        found[0] if len(found) == 1 else Refused("settings", "".join(f"\n  {one}" for one in found))
    )


def _explain_one(item: Any, model: type[BaseModel], prefix: str) -> Refused:
    path = (prefix + ".".join(str(part) for part in item["loc"])).rstrip(".")
    if item["type"] != "extra_forbidden":
        why = f"{item['msg'][:1].lower()}{item['msg'][1:]}"
        if item["type"] == "missing":
            return Refused(path, why, "give it a value")
        # A check of the stage itself, whose error says what is wrong with the value.
        if isinstance(error := item.get("ctx", {}).get("error"), registry.InvalidInput):
            return Refused(path, error.reason, error.way_out)
        why = why.removeprefix("value error, ")
        way_out = "give a valid value, or leave the setting out to use its default"
        return Refused(path, f"{why}, got {yaml_files.shown(item['input'])}", way_out)
    options: Any = model
    for part in item["loc"][:-1]:
        options = _type_of(part, options)
    valid = list(getattr(options, "model_fields", {}))
    close = difflib.get_close_matches(str(item["loc"][-1]), valid, 1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
    return Refused(f"unknown setting {path}", way_out=hint)


def _type_of(part: str | int, whole: Any) -> Any:
    """Return the type of a field, of an item, or of the member of a union with a tag."""
    if field := getattr(whole, "model_fields", {}).get(part):
        return field.annotation
    if get_origin(whole) is Annotated:
        return _type_of(part, get_args(whole)[0])
    kinds = get_args(whole)
    return next((k for k in kinds if isinstance(part, int) or Tag(part) in get_args(k)), None)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys whose values differ between flat settings, each with a line for the user.

    >>> list(differences({"seed": 0}, {"seed": 1}))
    [('seed', 'seed: 0 -> 1')]
    """
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names. The prefix `config.` is left out.

    >>> flat({"refine": {"name": "dhr", "steps": 10}})
    {'refine.name': 'dhr', 'refine.steps': 10}
    """
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        settings |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return {key.removeprefix("config."): value for key, value in settings.items()}
