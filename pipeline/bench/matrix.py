"""What a benchmark compares: datasets x embedders x refiners x seeds, as runs with names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.strict import Strict
from dhr_batch.stages import registry

# The refiner of every benchmark: what an embedder gives by itself.
BASE = "none"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+]*")


class RefinerEntry(Strict):
    """A refiner under a name of its own. settings: of a run. embedders: by default all."""

    settings: dict[str, Any] = Field(default_factory=dict)
    embedders: tuple[str, ...] | None = None
    about: str = ""


class EmbedderEntry(Strict):
    """An embedder under a name of its own. settings: of a run."""

    settings: dict[str, Any] = Field(default_factory=dict)
    about: str = ""


class Matrix(Strict):
    """A benchmark. settings: of every run. edits: as in `edit.edits`. compare_to: what paired
    differences are against: a refiner, on the embedder of each method, or one method for all of
    them as `EMBEDDER/REFINER`. in_turn: the refiners of an embedding are computed shard by shard in
    turn, each in a process of its own, and clocked (see `bench_turns`).
    """

    about: str = ""
    datasets: tuple[str, ...] = Field(min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    embedders: dict[str, EmbedderEntry] = Field(min_length=1)
    refiners: dict[str, RefinerEntry] = Field(default_factory=dict)
    edits: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    compare_to: str = BASE
    in_turn: bool = False

    @model_validator(mode="after")
    def _names(self) -> Matrix:
        for kind, names in (("embedders", self.embedders), ("refiners", self.refiners)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{kind}: {name!r} cannot be part of a folder's name: use letters, digits, "
                        "_ . and +"
                    )
        if BASE in self.refiners:
            raise ValueError(f"refiners: {BASE!r} is part of every benchmark; leave it out")
        known = [BASE, *self.refiners]
        methods = [f"{e}/{r}" for e in self.embedders for r in known if self.has(e, r)]
        if self.compare_to not in (*known, *methods):
            raise ValueError(
                f"compare_to: {self.compare_to!r} is none of: {', '.join([*known, *methods])}"
            )
        for name, refiner in self.refiners.items():
            for embedder in refiner.embedders or ():
                if embedder not in self.embedders:
                    raise ValueError(
                        f"refiners.{name}.embedders: {embedder!r} is none of: "
                        f"{', '.join(self.embedders)}"
                    )
            early = set(refiner.settings) & {"align", "embed", "generator", "seed"}
            if early:
                raise ValueError(
                    f"refiners.{name}: {', '.join(sorted(early))} would change the embedding that "
                    "all refiners share; make it an embedder"
                )
        for name in ("dataset", "seed", "limit", "preset"):
            if name in self.settings:
                raise ValueError(f"settings: {name} is no setting of all runs; see the other keys")
        if len(set(self.seeds)) != len(self.seeds) or len(set(self.datasets)) != len(self.datasets):
            raise ValueError("a seed or dataset is given twice")
        return self

    def has(self, embedder: str, refiner: str) -> bool:
        """Whether a refiner is applied to what this embedder gives."""
        if refiner == BASE:
            return True
        chosen = self.refiners[refiner].embedders
        return chosen is None or embedder in chosen


@dataclass(frozen=True)
class Cell:
    """One run. settings: without the dataset. begins_at: the first stage that differs from `base`,
    the run of its embedder, whose earlier stages are taken over; empty for that run itself.
    """

    name: str
    dataset: str
    embedder: str
    refiner: str
    seed: int
    settings: Mapping[str, Any]
    base: str = ""
    begins_at: str = ""
    about: str = ""


def shipped_names() -> list[str]:
    """Names of the shipped benchmarks."""
    return configs.presets("benchmark")


def shipped_matrix(name: str) -> Matrix:
    """A shipped benchmark. Raises Refused, naming the valid ones."""
    return parse_matrix(configs.preset(name, "benchmark"), f"benchmark {name}")


def read_matrix(file: Path) -> Matrix:
    """A benchmark from a YAML file. Raises Refused."""
    return parse_matrix(configs.read_file(file), str(file))


def parse_matrix(content: Any, where: str) -> Matrix:
    """A benchmark from its content. Raises Refused, naming what is wrong and where."""
    try:
        return Matrix.model_validate(content)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            path = ".".join(str(part) for part in item["loc"])
            said = item["msg"].removeprefix("Value error, ")
            words = "unknown key" if item["type"] == "extra_forbidden" else said
            lines.append(f"{where}: {path + ': ' if path else ''}{words}")
        raise Refused("\n".join(lines)) from error


def expand(matrix: Matrix, names: Mapping[str, str]) -> list[Cell]:
    """The runs of a benchmark; that of an embedder comes before those that begin from it.

    names: what stands for each dataset in the names of its runs.
    """
    cells = []
    for dataset in matrix.datasets:
        for embedder, described in matrix.embedders.items():
            for seed in matrix.seeds:
                settings = configs.merge([matrix.settings, described.settings, {"seed": seed}])
                if matrix.edits is not None:
                    edit = {"name": "directions", "edits": matrix.edits}
                    settings = configs.merge([settings, {"edit": edit}])
                tail = f"-seed{seed}" if seed else ""
                stem = f"{names[dataset]}-{embedder}"
                base = f"{stem}-{BASE}{tail}"
                plain = configs.merge([settings, {"refine": {"name": "none"}}])
                cells.append(
                    Cell(base, dataset, embedder, BASE, seed, plain, about=described.about)
                )
                for name, refiner in matrix.refiners.items():
                    if not matrix.has(embedder, name):
                        continue
                    own = configs.merge([settings, refiner.settings])
                    begins = first_stage(refiner.settings)
                    about = "; ".join(filter(None, (described.about, refiner.about)))
                    run = f"{stem}-{name}{tail}"
                    cells.append(Cell(run, dataset, embedder, name, seed, own, base, begins, about))
    return cells


def reference(compare_to: str, embedder: str) -> tuple[str, str]:
    """Embedder and refiner that the methods of an embedder are compared to: see `Matrix`."""
    first, slash, second = compare_to.partition("/")
    return (first, second) if slash else (embedder, first)


def first_stage(settings: Mapping[str, Any]) -> str:
    """The first stage that a refiner's settings change, at the latest `refine`."""
    stages = registry.STAGES[: registry.STAGES.index("refine")]
    return next((stage for stage in stages if stage in settings), "refine")


def dataset_names(datasets: Sequence[Dataset], asked: Sequence[str]) -> dict[str, str]:
    """What was asked for -> the dataset's name, safe in a folder's name. Raises Refused for two
    of one name."""
    names: dict[str, str] = {}
    for text, dataset in zip(asked, datasets, strict=True):
        name = re.sub(r"[^A-Za-z0-9_.+]+", "_", dataset.name) or "dataset"
        if name in names.values():
            raise Refused(
                f"two datasets are both called {name!r}",
                way_out="describe one in a YAML file with another name",
            )
        names[text] = name
    return names
