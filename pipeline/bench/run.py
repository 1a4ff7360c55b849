"""The execution of a benchmark: its missing runs are computed as `dhr-batch run` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import outside
from dhr_batch.pipeline.bench import needs
from dhr_batch.pipeline.bench.matrix import Cell, Matrix, dataset_names, expand
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.models.catalogue import ModelMissing
from dhr_batch.pipeline.planning import prepare
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.planning.request import Mode, Request
from dhr_batch.pipeline.planning.resume import OtherRun
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.locations import is_url, join
from dhr_batch.pipeline.storage.ownership import BENCHMARK, Owned, require_apart
from dhr_batch.stages.device import Kind
from dhr_batch.stages.registry import STAGES

RUNS = "runs"


@dataclass(frozen=True)
class Machine:
    """Where runs are computed. For the attributes see `Request`."""

    gpus: int | None = None
    device: Kind | None = None
    address: str | None = None
    progress: Mode = "auto"

    @property
    def settings(self) -> dict[str, Any]:
        found = {"gpus": self.gpus, "device": self.device}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that has been checked and can be run.

    Attributes:
        matrix: The description of the benchmark.
        out: The folder or URL of the runs and tables.
        cells: The runs, in the order in which they are computed.
        names: The name of each dataset in the names of its runs.
        sizes: The number of planned images of each dataset.
    """

    matrix: Matrix
    out: str
    cells: Sequence[Cell]
    names: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """Return the folder or URL of a run."""
        return join(self.out, f"{RUNS}/{name}")


def plan(
    matrix: Matrix,
    out: str | Path,
    limit: int | None = None,
    machine: Machine = Machine(),
    random_weights: bool = False,
) -> Benchmark:
    """Check the settings, images and models of a benchmark before anything starts.

    Runs whose models are missing stay in the benchmark and name what they need (`Cell.needs`). The
    workers of a cluster have models of their own, so these are not checked.

    Args:
        matrix: The description of the benchmark.
        out: The folder or URL of the runs and tables.
        limit: The number of images of each dataset, if not all.
        machine: Where the runs are computed.
        random_weights: Whether to allow networks with random weights, for tests of the benchmark.

    Raises:
        Refused: If the benchmark cannot be run.
        ModelMissing: If a model is damaged, or every run needs a model that is missing.
    """
    if matrix.in_turn and machine.address:
        raise Refused(
            f"in_turn with --address {machine.address}",
            "runs that take turns are computed on this machine only",
            "leave out --address",
        )
    found = [named.find(name) for name in matrix.datasets]
    names = dataset_names(found, matrix.datasets)
    cells = expand(matrix, names)
    if limit is not None:
        cells = [_limited(cell, limit) for cell in cells]
    place = str(out) if is_url(str(out)) else str(Path(out).expanduser().absolute())
    owned = Owned(connect(place), BENCHMARK)
    require_apart(owned.storage, [dataset.location for dataset in found])
    owned.check()
    requests = {cell.name: _request(cell, matrix, machine) for cell in cells}
    for request in requests.values():
        # Mistakes in any run are reported at once. What follows imports torch.
        prepare.configured(request)
    sizes = {}
    checked: dict[str, Cell] = {}
    for cell in cells:
        # A run that begins from another one can be planned only after that one is finished. Here
        # it is planned as a whole run, to find mistakes in its settings.
        request = requests[cell.name]
        prepared = prepare.prepare(request)
        require_apart(owned.storage, prepare.inputs(prepared))
        if not random_weights:
            _refuse_random(cell, prepared)
        prepare.check_gpus(prepared, request)
        if not machine.address:
            cell = needs.with_needs(cell, prepared)
        if cell.base:
            cell = replace(
                cell, needs=dict(sorted({**checked[cell.base].needs, **cell.needs}.items()))
            )
        else:
            sizes[cell.dataset] = prepared.images
        checked[cell.name] = cell
    if all(cell.needs for cell in checked.values()):
        raise _none_can_run(checked.values())
    return Benchmark(matrix, place, [*checked.values()], names, sizes)


def _request(cell: Cell, matrix: Matrix, machine: Machine) -> Request:
    settings = {"dataset": cell.dataset, **cell.settings, **machine.settings}
    return Request(settings, address=machine.address, named=_named_code(matrix))


def _none_can_run(cells: Iterable[Cell]) -> ModelMissing:
    missing = {name: command for cell in cells for name, command in cell.needs.items()}
    return ModelMissing(
        "this benchmark",
        f"no run of it has all of its models: {', '.join(missing)} are missing",
        "get some of them with:\n  " + "\n  ".join(missing.values()),
        models=[*missing],
    )


def _limited(cell: Cell, limit: int) -> Cell:
    return cell if cell.base else replace(cell, settings={**cell.settings, "limit": limit})


def _refuse_random(cell: Cell, prepared: Plan) -> None:
    config = prepared.config
    sections = {stage: getattr(config, stage) for stage in STAGES}
    used = {f"{stage}.{key}": v for stage, own in sections.items() for key, v in own.items()}
    for key, value in ({"generator": config.generator} | used).items():
        if "tiny" in (value if isinstance(value, list | tuple) else [value]):
            raise Refused(
                cell.name,
                f"{key}=tiny has random weights, so its results are meaningless",
                "choose a trained network",
            )


@dataclass(frozen=True)
class BenchOutcome:
    """The outcome of a benchmark.

    Attributes:
        computed: The runs that were not finished before.
        failed: The reason why each failed run has no complete tables.
        exit_code: The largest exit code of the runs, as of `run`.
    """

    computed: Sequence[str]
    failed: Mapping[str, str]
    exit_code: int


def run(
    benchmark: Benchmark, machine: Machine, say: Callable[[str], None] = lambda text: None
) -> BenchOutcome:
    """Finish every run of a benchmark. If a run fails, the others are computed nevertheless.

    A run that is in use, or that does not fit on the disk, has failed. A run whose models are
    missing is left out.

    Args:
        benchmark: The benchmark.
        machine: Where the runs are computed.
        say: Called with messages about the progress.

    Raises:
        Refused: If the folder contains a run with other settings, images or weights.
        KeyboardInterrupt: If the user has asked to stop. Finished work is kept.
    """
    from dhr_batch.pipeline.bench import turns
    from dhr_batch.pipeline.engine import runner

    Owned(connect(benchmark.out), BENCHMARK).claim()
    failed: dict[str, str] = {}
    turned: set[str] = set()
    computed, code = [], runner.DONE
    cells = _in_order(benchmark)
    for number, cell in enumerate(cells, 1):
        if benchmark.matrix.in_turn:
            members = [c for c in cells if _turn(c) == _turn(cell)]
            # A single run of an embedder has none to take turns with.
            if cell is members[0] and (cell.base or len(members) > 1):
                able = [c for c in members if not c.needs and c.base not in failed]
                turned |= turns.take_turns([request_of(benchmark, c, machine) for c in able], say)
        if cell.needs:
            say(f"[{number}/{len(cells)}] {cell.name} {needs.text(cell.needs)}")
            continue
        if cell.base in failed:
            failed[cell.name] = f"{cell.base} has failed, from which it begins"
            continue
        say(f"[{number}/{len(cells)}] {cell.name}")
        request = request_of(benchmark, cell, machine)
        try:
            prepared = prepare.prepare(request)
            before = len(RunRecords(benchmark.place(cell.name)).committed())
            outcome = runner.run(prepared, request)
        except OtherRun as error:
            raise Refused(
                f"run {cell.name} of this benchmark",
                f"it was started with other settings or images:\n  {error.changed}",
                "choose another folder for the benchmark with --out, restore the settings and "
                f"images, or delete {request.out} to compute this run again",
            ) from error
        except (CommandError, OSError) as error:
            say(f"{cell.name} has failed: {error}")
            failed[cell.name] = str(error)
            continue
        if outcome.stopped or outcome.exit_code == runner.INTERRUPTED:
            raise KeyboardInterrupt
        if before < len(prepared.shards) or request.out in turned:
            computed.append(cell.name)
        code = max(code, outcome.exit_code)
    return BenchOutcome(computed, failed, runner.ERROR if failed else code)


def _turn(cell: Cell) -> tuple[Any, ...]:
    """Return what is the same for runs that take turns with each other."""
    return cell.dataset, cell.generator, cell.seed, bool(cell.base)


def _in_order(benchmark: Benchmark) -> Sequence[Cell]:
    """Return the runs in the order of execution: those that take turns follow one another."""
    if not benchmark.matrix.in_turn:
        return benchmark.cells
    groups = list(dict.fromkeys(_turn(cell)[:-1] for cell in benchmark.cells))
    return sorted(benchmark.cells, key=lambda c: (groups.index(_turn(c)[:-1]), bool(c.base)))


def _named_code(matrix: Matrix) -> set[str]:
    """Return the code outside of dhr-batch that the user's file names."""
    return outside.members(matrix.model_dump(exclude={"datasets"}))


def request_of(benchmark: Benchmark, cell: Cell, machine: Machine) -> Request:
    """Return the request of a run. A run with a base begins from the finished base."""
    settings = {**cell.settings, **machine.settings, "dataset": cell.dataset}
    if cell.base:
        settings |= {"dataset": benchmark.place(cell.base), "first_stage": cell.begins_at}
    return Request(
        settings=settings,
        out=benchmark.place(cell.name),
        address=machine.address,
        named=_named_code(benchmark.matrix),
        progress=machine.progress,
        # New images of the dataset are added to existing runs.
        extend=True,
    )
