"""The settings of a run: defaults, presets, files and flags, merged into one checked `Config`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.layers import Layer, deep_merge, mapping
from dhr_batch.pipeline.strict import refused
from dhr_batch.stages import registry, yaml_files
from dhr_batch.stages.device import Kind, Precision

if TYPE_CHECKING:
    from dhr_batch.stages.base import StageOptions


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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(
        description="photographs to process: the name of a dataset (`dhr-batch datasets list`), a "
        "folder, a .tar or .parquet file, a URL, or a YAML description"
    )
    first_stage: Literal["align", "embed", "segment", "refine", "edit", "measure"] = Field(
        "align",
        description="first stage to run; with a later one, the results of the stages before it are "
        "read from a finished run, which is given as the dataset",
    )
    preset: str | None = Field(
        None,
        description="named set of settings, which overrides the defaults and is overridden by all "
        "that is given beside it",
    )
    generator: str = Field(
        "auto",
        description="network that renders faces: a name, or a .safetensors file that `dhr-batch "
        "models convert` wrote; auto: mobilestylegan-256 on CPUs, mobilestylegan-1024 on GPUs",
    )
    seed: int = Field(0, ge=0, description="seed of random draws; the default methods draw nothing")
    limit: int | None = Field(
        None, ge=1, description="process only this many images, the first ones; null: all"
    )
    shard_size: int | None = Field(
        None,
        ge=1,
        description="images that are finished and stored together; what is interrupted is computed "
        "again as a whole; null: an eighth of the images, 1 to 32",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="images that are computed at the same time; null: 4 on a CPU, on a GPU as many "
        "as its memory holds",
    )
    gpus: int | None = Field(
        None, ge=0, description="number of GPUs to use; 0: use the CPU; null: all"
    )
    device: Kind | None = Field(
        None,
        description="NVIDIA GPUs (cuda), Apple GPUs (mps), Intel GPUs (xpu) or the CPU (cpu); "
        "null: cuda if there is such a GPU, else cpu",
    )
    workers: int | None = Field(
        None, ge=1, description="number of worker processes on CPUs; null: one per core"
    )
    workers_per_gpu: int = Field(1, ge=1, description="number of worker processes that share a GPU")
    cpus_per_gpu: int | None = Field(
        None,
        ge=1,
        description="CPU cores that are reserved for each GPU; null: its share of the free ones",
    )
    threads: int = Field(
        1, ge=1, description="number of threads with which a worker computes on the CPU"
    )
    precision: Precision = Field(
        "fp32",
        description="precision of convolutions and matrix products: fp32; tf32, which is faster on "
        "NVIDIA GPUs; or bf16, in the stages embed and refine",
    )
    max_quarantined: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the images that may fail; if more do, the run is finished all the "
        "same and the exit code is 3",
    )
    lease_timeout: float = Field(
        60,
        gt=0,
        description="seconds after which another process may take over a run in an object store "
        "whose process gives no sign of life",
    )
    image_timeout: float | None = Field(
        1800.0,
        gt=0,
        description="seconds that an image may take before it counts as failed (on a GPU: in "
        "embed, in segment, in refine and edit, and in measure each); null: no limit, not even for "
        "a disk that never answers",
    )
    wait_timeout: float = Field(
        1800.0, gt=0, description="seconds to wait for a free GPU or CPU core before giving up"
    )
    store_deltas: Literal["none", "small", "fine"] = Field(
        "small",
        description="how precisely the refinement of each image is stored, for later edits: about "
        "1.5 MB per image (small), 1.9 MB (fine), or not at all (none)",
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
            return mapping(yaml_files.read(file), f"{kind} {name}")
    raise Refused(f"unknown {kind} {name!r}", way_out=f"choose from: {', '.join(presets(kind))}")


def chosen_preset(given: Layer) -> list[Layer]:
    """Return the layer of the preset that settings choose, or nothing if they choose none.

    Raises:
        Refused: If the preset is unknown.
    """
    return [preset(given["preset"])] if given.get("preset") else []


def _shipped(kind: str) -> list[Traversable]:
    folder = resources.files("dhr_batch.configs") / f"{kind}s"
    return [file for file in folder.iterdir() if file.name.endswith(".yaml")]


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
                merged[key] = section if renamed else deep_merge(before, section)
            else:
                merged[key] = value
    return merged


def build(layers: Iterable[Layer]) -> Config:
    """Merge layers of settings, check all of them, and fill in the defaults of the stages.

    torch is not imported for shipped stages.

    Raises:
        Refused: If a setting is unknown or invalid.
    """
    merged = merge([preset("default"), *layers])
    try:
        config = Config(**merged)
    except ValidationError as error:
        raise refused(error, Config) from error
    generator(config.generator)
    stages = {family: _checked(family, getattr(config, family)) for family in registry.STAGES}
    return config.model_copy(update=stages)


def resolve(config: Config, gpus: int, images: int) -> Config:
    """Fill in what depends on the machine and the images. A run stores the result.

    Args:
        config: The settings, as `build` returns them.
        gpus: The number of GPUs that the run uses.
        images: The number of images.

    Raises:
        Refused: If the file of the generator is missing.
    """
    return config.model_copy(
        update={
            "generator": generator(config.generator, gpus),
            "gpus": gpus,
            "device": config.device or ("cuda" if gpus else "cpu"),
            "shard_size": config.shard_size or min(32, max(1, -(-images // 8))),
        }
    )


def _checked(family: str, section: Layer) -> dict[str, Any]:
    """Return all settings of a stage, after a check of their keys, values and names of networks."""
    options = options_class(family, section.get("name"))
    try:
        settings = options(**section).model_dump(mode="json")
    except ValidationError as error:
        raise refused(error, options, prefix=f"{family}.") from error
    for key, field in options.model_fields.items():
        # A text with the name of a family of networks names a member of it.
        if key in registry.TABLE and field.annotation is str:
            _check_name(key, settings[key], f"{family}.{key}")
    return settings


def generator(name: str, gpus: int = 0) -> str:
    """Return the name of a generator, or the absolute path of its file.

    Args:
        name: A name, the path of a file, or `auto`.
        gpus: The number of GPUs, on which `auto` depends.

    Raises:
        Refused: There is no such generator, or the file is missing or not a converted one.
    """
    if name == "auto":
        return "mobilestylegan-1024" if gpus else "mobilestylegan-256"
    if name.endswith((registry.GENERATOR_FILE, ".pt", ".pkl", ".pth")):
        return str(_generator_file(Path(name)))
    _check_name("generator", name, "generator")
    return name


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
    if not isinstance(name, str):
        valid = ", ".join(registry.names(family))
        what = f"unknown {family}.name {yaml_files.shown(name)}"
        raise Refused(what, way_out=f"choose from: {valid}")
    _check_name(family, name, f"{family}.name")
    try:
        return registry.options(family, name)
    except registry.UnknownName as error:
        raise Refused(error.reason, way_out=error.way_out) from error


def _check_name(family: str, name: str, setting: str) -> None:
    try:
        registry.check_name(family, name, setting)
    except registry.UnknownName as error:
        raise Refused(error.reason, way_out=error.way_out) from error


def _section(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    return mapping(value, key, f"name: {registry.names(key)[0]}")
