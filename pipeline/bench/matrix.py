"""The matrix of a benchmark: datasets, generators, embedders, refiners and seeds, as named runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning.layers import read_file
from dhr_batch.pipeline.strict import Strict, refused
from dhr_batch.stages import registry

# The refiner that is part of every benchmark: the result of the embedder is not refined.
BASE = "none"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+]*")
# Settings that change the embedding.
_EARLY = {"align", "embed", "generator", "preset", "seed"}
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+]+")


class EmbedderEntry(Strict):
    """A named embedder.

    Attributes:
        settings: Settings of its runs.
        by_generator: Further settings on some generators, by their labels; None for a generator
            that it is not applied to.
        about: A description.
    """

    settings: dict[str, Any] = Field(default_factory=dict)
    by_generator: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    about: str = ""

    def settings_on(self, generator: str) -> dict[str, Any]:
        """Return the settings of its runs on a generator, given by its label."""
        return configs.merge([self.settings, self.by_generator.get(generator) or {}])


class RefinerEntry(EmbedderEntry):
    """A named refiner.

    Attributes:
        embedders: The embedders that it is applied to; None for all.
    """

    embedders: tuple[str, ...] | None = None


class Matrix(Strict):
    """A benchmark.

    Attributes:
        about: A description.
        datasets: The datasets, as for `run --dataset`.
        generators: The generators, each with tables of its own; empty for the one of `settings`.
        settings: Settings of all runs.
        embedders: The embedders by name.
        refiners: The refiners by name.
        edits: The edits, as in the setting `edit.edits`.
        seeds: The seeds. Each method has one run per seed.
        compare_to: The reference of paired differences: a refiner, which is combined with the
            embedder of each method, or one method for all as `EMBEDDER/REFINER`.
        in_turn: Whether runs process each shard in turn, in processes of their own, so that their
            times can be compared: first the embedders if there are several, then all refiners; see
            `turns`.
        columns: The columns of a first table, in which published figures stand below the methods.
    """

    about: str = ""
    datasets: tuple[str, ...] = Field(min_length=1)
    generators: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    embedders: dict[str, EmbedderEntry] = Field(min_length=1)
    refiners: dict[str, RefinerEntry] = Field(default_factory=dict)
    edits: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    compare_to: str = BASE
    in_turn: bool = False
    columns: tuple[str, ...] = ()

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
        refiners = [BASE, *self.refiners]
        labels = tuple(map(registry.label, self.generators))
        methods = [
            f"{e}/{r}"
            for e in self.embedders
            for r in refiners
            if any(self.has(e, r, label) for label in labels or ("",))
        ]
        if self.compare_to not in (*refiners, *methods):
            raise ValueError(
                f"compare_to: {self.compare_to!r} is unknown; choose from: "
                f"{', '.join([*refiners, *methods])}"
            )
        for name, refiner in self.refiners.items():
            for embedder in refiner.embedders or ():
                if embedder not in self.embedders:
                    raise ValueError(
                        f"refiners.{name}.embedders: {embedder!r} is unknown; choose from: "
                        f"{', '.join(self.embedders)}"
                    )
            given = [refiner.settings, *filter(None, refiner.by_generator.values())]
            early = {key for keys in given for key in keys} & _EARLY
            if early:
                raise ValueError(
                    f"refiners.{name}: {', '.join(sorted(early))} would change the embedding that "
                    "all refiners share; define an embedder instead"
                )
        for name in ("dataset", "seed", "limit", "preset"):
            if name in self.settings:
                raise ValueError(
                    f"settings: {name} cannot be set for all runs; use the other keys instead"
                )
        if any(len(set(given)) != len(given) for given in (self.seeds, self.datasets, labels)):
            raise ValueError("seeds, datasets, generators: one is given twice; remove it")
        return self

    def has(self, embedder: str, refiner: str, generator: str = "") -> bool:
        """Whether a refiner is applied to the results of an embedder.

        Args:
            embedder: The name of the embedder.
            refiner: The name of the refiner.
            generator: The label of the generator if the benchmark lists generators.
        """
        if self.embedders[embedder].by_generator.get(generator, {}) is None:
            return False
        if refiner == BASE:
            return True
        entry = self.refiners[refiner]
        applied = entry.by_generator.get(generator, {}) is not None
        return applied and (entry.embedders is None or embedder in entry.embedders)


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        name: The name of the run and of its folder.
        dataset: The dataset.
        embedder: The name of the embedder.
        refiner: The name of the refiner.
        seed: The seed.
        settings: The settings without the dataset.
        generator: The label of the generator if the benchmark lists generators, else "".
        base: The name of the run of the same embedder without a refiner, from which this run
            begins; "" for that run itself.
        begins_at: The first stage that differs from the base; "" without a base.
        about: A description.
        needs: How to get each missing model without which this run cannot be computed, by the
            model's name.
        lacks: The same for each metric that this run leaves out, by the key of its column.
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
    generator: str = ""
    needs: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def shipped_names() -> list[str]:
    """Return the names of the shipped benchmarks."""
    return configs.presets("benchmark")


def shipped_matrix(name: str) -> Matrix:
    """Read a shipped benchmark.

    Raises:
        Refused: If there is no benchmark of this name.
    """
    return parse_matrix(configs.preset(name, "benchmark"), f"benchmark {name}")


def read_matrix(file: Path) -> Matrix:
    """Read a benchmark from a YAML file.

    Raises:
        Refused: If the file is not a valid benchmark.
    """
    return parse_matrix(read_file(file), str(file))


def parse_matrix(content: Any, where: str) -> Matrix:
    """Check the content of a benchmark.

    Args:
        content: The content of a YAML file.
        where: The name of the file, for messages.

    Raises:
        Refused: If the content is not a valid benchmark.
    """
    try:
        return Matrix.model_validate(content)
    except ValidationError as error:
        raise refused(error, Matrix, where) from error


def expand(matrix: Matrix, names: Mapping[str, str]) -> list[Cell]:
    """Return the runs of a benchmark. A run comes before those that begin from it.

    Args:
        matrix: The benchmark.
        names: The name of each dataset in the names of its runs.
    """
    cells = []
    generators: Sequence[str | None] = matrix.generators or (None,)
    axes = product(matrix.datasets, generators, matrix.embedders.items(), matrix.seeds)
    for dataset, generator, (embedder, described), seed in axes:
        label = registry.label(generator or "")
        if not matrix.has(embedder, BASE, label):
            continue
        chosen = {} if generator is None else {"generator": generator}
        layers = [matrix.settings, chosen, described.settings_on(label), {"seed": seed}]
        if matrix.edits is not None:
            layers.append({"edit": {"name": "directions", "edits": matrix.edits}})
        settings = configs.merge(layers)
        stem = "-".join(filter(None, (names[dataset], _UNSAFE.sub("_", label), embedder)))
        tail = f"-seed{seed}" if seed else ""
        plain = configs.merge([settings, {"refine": {"name": "none"}}])
        base = Cell(
            f"{stem}-{BASE}{tail}",
            dataset,
            embedder,
            BASE,
            seed,
            plain,
            about=described.about,
            generator=label,
        )
        cells.append(base)
        for name, refiner in matrix.refiners.items():
            if matrix.has(embedder, name, label):
                own = refiner.settings_on(label)
                follower = replace(
                    base,
                    name=f"{stem}-{name}{tail}",
                    refiner=name,
                    settings=configs.merge([settings, own]),
                    base=base.name,
                    begins_at=first_stage(own),
                    about="; ".join(filter(None, (described.about, refiner.about))),
                )
                cells.append(follower)
    return cells


def reference(compare_to: str, embedder: str) -> tuple[str, str]:
    """Return the embedder and the refiner of the reference of an embedder's methods.

    Args:
        compare_to: The reference; see `Matrix`.
        embedder: The name of the embedder.
    """
    first, slash, second = compare_to.partition("/")
    return (first, second) if slash else (embedder, first)


def first_stage(settings: Mapping[str, Any]) -> str:
    """Return the first stage that the settings of a refiner change, at the latest `refine`."""
    stages = registry.STAGES[: registry.STAGES.index("refine")]
    return next((stage for stage in stages if stage in settings), "refine")


def dataset_names(datasets: Sequence[Dataset], texts: Sequence[str]) -> dict[str, str]:
    """Return the name of each dataset, with characters that are safe in the name of a folder.

    Args:
        datasets: The datasets.
        texts: The texts that name them in the benchmark, which are the keys of the result.

    Raises:
        Refused: If two datasets have the same name.
    """
    names: dict[str, str] = {}
    for text, dataset in zip(texts, datasets, strict=True):
        name = _UNSAFE.sub("_", dataset.name) or "dataset"
        if name in names.values():
            raise Refused(
                f"dataset {text}",
                f"another dataset of the benchmark is also called {name!r}",
                "describe one of them in a YAML file with another name",
            )
        names[text] = name
    return names
