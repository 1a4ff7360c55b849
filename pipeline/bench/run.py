"""Running a benchmark: what is missing of its runs, through the ordinary `run` machinery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.bench.matrix import Cell, Matrix, dataset_names, expand
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.planning import prepare
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.planning.request import Mode, Request
from dhr_batch.pipeline.planning.resume import OtherRun
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.locations import is_url, join
from dhr_batch.pipeline.storage.ownership import BENCHMARK, Owned, require_apart
from dhr_batch.stages.registry import STAGES

RUNS = "runs"


@dataclass(frozen=True)
class Machine:
    """Where runs are computed: see `Request`."""

    gpus: int | None = None
    address: str | None = None
    progress: Mode = "auto"

    @property
    def settings(self) -> dict[str, Any]:
        return {} if self.gpus is None else {"gpus": self.gpus}


@dataclass(frozen=True)
class Benchmark:
    """A matrix, the place of its runs and its table, and the runs in the order of their making.

    sizes: images of each dataset, as planned within the limit.
    """

    matrix: Matrix
    out: str
    cells: Sequence[Cell]
    names: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """The folder or URL of a run."""
        return join(self.out, f"{RUNS}/{name}")


def plan(
    matrix: Matrix,
    out: str | Path,
    limit: int | None = None,
    machine: Machine = Machine(),
    random_weights: bool = False,
) -> Benchmark:
    """Expand a benchmark and check all of its settings, images and models before anything starts.

    limit: only the first images of each dataset. random_weights: allow generators and metrics
    without trained weights, for tests of the benchmark itself. Raises Refused and
    ModelMissing.
    """
    if matrix.in_turn and machine.address:
        raise Refused(
            "in_turn: runs that take turns are computed on this machine, so that a cluster cannot "
            "be joined: leave out --address"
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
    sizes = {}
    for cell in cells:
        # Runs that begin from another one are planned when that one is there; as a whole run, each
        # shows now what is wrong with its settings.
        settings = {"dataset": cell.dataset, **cell.settings, **machine.settings}
        request = Request(settings, address=machine.address)
        made = prepare.prepare(request)
        require_apart(owned.storage, prepare.inputs(made))
        if not random_weights:
            _refuse_random(cell, made)
        prepare.check_gpus(made, request)
        prepare.check_models(made, request)
        if not cell.base:
            sizes[cell.dataset] = made.images
    return Benchmark(matrix, place, cells, names, sizes)


def _limited(cell: Cell, limit: int) -> Cell:
    return cell if cell.base else replace(cell, settings={**cell.settings, "limit": limit})


def _refuse_random(cell: Cell, made: Plan) -> None:
    config = made.config
    sections = {stage: getattr(config, stage) for stage in STAGES}
    used = {f"{stage}.{key}": v for stage, own in sections.items() for key, v in own.items()}
    for key, value in ({"generator": config.generator} | used).items():
        if "tiny" in (value if isinstance(value, list | tuple) else [value]):
            raise Refused(
                cell.name,
                f"{key}=tiny has random weights, so that its figures mean nothing",
                "choose a trained network",
            )


@dataclass(frozen=True)
class BenchOutcome:
    """How a benchmark ended. failed: run -> why it has no complete tables. exit_code: as of `run`,
    the worst of its runs.
    """

    computed: Sequence[str]
    failed: Mapping[str, str]
    exit_code: int


def run(
    benchmark: Benchmark, machine: Machine, say: Callable[[str], None] = lambda text: None
) -> BenchOutcome:
    """Finish every run of a benchmark. A run that fails does not keep the others from being made.

    computed: runs that were not finished before. Raises Refused where the folder holds a run with
    other settings, images or weights, and KeyboardInterrupt; both leave a state to go on from. What
    is refused for another reason, such as a run in use or a full disk, has failed.
    """
    from dhr_batch.pipeline.bench import turns
    from dhr_batch.pipeline.engine import runner

    Owned(connect(benchmark.out), BENCHMARK).claim()
    failed: dict[str, str] = {}
    turned: set[str] = set()
    computed, code = [], runner.DONE
    for number, cell in enumerate(benchmark.cells, 1):
        if cell.base in failed:
            failed[cell.name] = f"{cell.base}, which it begins from, has failed"
            continue
        say(f"[{number}/{len(benchmark.cells)}] {cell.name}")
        request = request_of(benchmark, cell, machine)
        try:
            made = prepare.prepare(request)
            before = len(RunFolder(benchmark.place(cell.name)).committed())
            done = runner.run(made, request)
        except OtherRun as error:
            raise Refused(
                f"run {cell.name} of this benchmark",
                f"it was made with other settings or images:\n  {error.changed}",
                "choose another folder for the benchmark with --out, go on with what it was made "
                f"with, or delete {request.out} to make this run again",
            ) from error
        except (CommandError, OSError) as error:
            say(f"{cell.name} has failed: {error}")
            failed[cell.name] = str(error)
            continue
        if done.stopped or done.exit_code == runner.INTERRUPTED:
            raise KeyboardInterrupt
        if before < len(made.shards) or request.out in turned:
            computed.append(cell.name)
        code = max(code, done.exit_code)
        if benchmark.matrix.in_turn and not cell.base:
            followers = [c for c in benchmark.cells if c.base == cell.name]
            requests = [request_of(benchmark, c, machine) for c in followers]
            turned |= turns.take_turns(requests, say)
    return BenchOutcome(computed, failed, runner.ERROR if failed else code)


def request_of(benchmark: Benchmark, cell: Cell, machine: Machine) -> Request:
    """What `run` is asked for. A cell with a base begins from its finished run."""
    settings = {**cell.settings, **machine.settings, "dataset": cell.dataset}
    if cell.base:
        settings |= {"dataset": benchmark.place(cell.base), "first_stage": cell.begins_at}
    return Request(
        settings=settings,
        out=benchmark.place(cell.name),
        address=machine.address,
        progress=machine.progress,
        # Images that are new in the dataset are missing like a run that was not made.
        extend=True,
    )
