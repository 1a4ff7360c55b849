"""The CPU seconds of the host per image, beside the work of the device.

python -m dhr_batch.benchmarks.host_seconds [--images N] [--json FILE]

A GPU waits for what the processor does for each image: decoding, superpixels, face parsing,
landmarks, metrics and the encoding of tables. The stages `align`, `segment` and `measure` and the
writer of the tables process photographs on the CPU, and every torch operation counts as work of the
device, because its tensors lie there in a run with a GPU. The rest is the host's. Embedding,
refinement and renders of edits are the device's; renders of random codes take their place.

Two workloads are measured: one that is fixed, so that versions of the program can be compared, and
the default of this version.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

from dhr_batch.benchmarks import machine
from dhr_batch.benchmarks.delta_size import OFFSET
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.planning.plan import Plan, Shard
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.tables import rows
from dhr_batch.pipeline.worker import attempt
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages import motion
from dhr_batch.stages.edit.scene import at_side
from dhr_batch.stages.measure import contours
from dhr_batch.stages.measure.metrics import shrink
from dhr_batch.stages.options.segment import FACE_CLASS, PART_CLASSES
from dhr_batch.stages.record import EditedImage, Record, required

Row = dict[str, Any]

GENERATORS = {256: "mobilestylegan-256", 1024: "mobilestylegan-1024"}
# Settings that decide which metrics and pictures the host makes: the default of the first version
# that was measured. How they are made follows this version: masks at its size, for example.
FIXED: dict[str, Any] = {
    "segment": {"parser": "landmarks", "segments": 200},
    "edit": {
        "edits": [
            {"direction": "smile", "strengths": [-2, -1, 1, 2]},
            {"direction": "yaw", "strengths": [-1, 1]},
        ],
        "rows": "all",
        "follow": "none",
    },
    "measure": {"perceptual": ["st_lpips_alex"], "identity": ["dlib"], "scores": ["landmarks"]},
    "store_deltas": "small",
}
# The rows of the table. Each names the functions whose time it counts, without the time of
# functions of other rows that they call.
PIECES = {
    "decode, shrink, crop": ["dhr_batch.stages.align.FFHQAlign.process"],
    "face detection": [
        "dhr_batch.stages.networks.faces.detect.Detector.detect",
        "dhr_batch.stages.networks.faces.detect.Detector.refine",
    ],
    "superpixels": ["dhr_batch.stages.segment.superpixels"],
    "face parser": [
        "dhr_batch.stages.networks.parsers.landmarks.LandmarkParser.parse",
        "dhr_batch.stages.networks.parsers.person.Person.__call__",
    ],
    "domain mask": ["dhr_batch.stages.segment.DomainSpecific.process"],
    "rounding of refinements": ["dhr_batch.pipeline.tables.rows.as_stored"],
    "motion of edits": [
        "dhr_batch.stages.motion.motion",
        "dhr_batch.stages.measure.contours.contour_metrics",
    ],
    "landmarks": [
        "dhr_batch.stages.networks.faces.dlib_face.Landmarks68.locate",
        "dhr_batch.stages.networks.faces.dlib_face.Landmarks68.sees",
        "dhr_batch.stages.networks.faces.dlib_face.Landmarks68.find",
    ],
    "identity": ["dhr_batch.stages.networks.faces.identity.Network.describe"],
    "SSIM": [
        "dhr_batch.stages.measure.metrics.Reference.ssim_map",
        "dhr_batch.stages.measure.metrics.ssim",
    ],
    "MS-SSIM": [
        "dhr_batch.stages.measure.metrics.Reference.ms_ssim_maps",
        "dhr_batch.stages.measure.metrics.ms_ssim",
    ],
    "other metrics": ["dhr_batch.stages.measure.standard.Standard.process"],
    "picture encoding": ["dhr_batch.pipeline.tables.rows.png"],
    "codec, Parquet, checksums": [
        "dhr_batch.pipeline.worker.attempt.Attempt.add",
        "dhr_batch.pipeline.worker.attempt.Attempt.receipt",
    ],
}
DEVICE = "device"


class Clock:
    """CPU seconds of this process by piece. Inside a piece, those of the outer one stand still."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, piece: str) -> Iterator[None]:
        """Count the time of a `with` block as that of a piece."""
        self._tick()
        self._stack.append(piece)
        try:
            yield
        finally:
            self._tick()
            self._stack.pop()

    def _tick(self) -> None:
        now = time.process_time()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


@contextmanager
def counted(clock: Clock) -> Iterator[None]:
    """Count the functions of `PIECES`, and torch operations in them as those of the device."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from dhr_batch.stages.measure import metrics

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            with clock(DEVICE):
                return func(*args, **kwargs or {})

    def timed(piece: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with clock(piece):
                return function(*arguments, **options)

        return call

    with ExitStack() as stack:
        for piece, names in PIECES.items():
            for name in names:
                patch = mock.patch(name)
                function, _ = patch.get_original()
                stack.enter_context(mock.patch(name, timed(piece, function)))
        # As many operations as on a GPU.
        on_gpu = functools.partial(metrics.pictures_at_once, "cuda")
        stack.enter_context(
            mock.patch.object(metrics, "pictures_at_once", lambda device, pixels: on_gpu(pixels))
        )
        stack.enter_context(Operations())
        yield


def planned(size: int, images: int, settings: dict[str, Any]) -> Plan:
    """Return the plan of a run on the portraits with some settings."""
    asked = {"dataset": "portraits", "generator": GENERATORS[size], "limit": images, "gpus": 0}
    return prepare(Request(settings=asked | settings))


def built(plan: Plan) -> Worker:
    """Return the worker of a plan, set up."""
    made = Worker(Settings(plan.config, plan.dataset.aligned, plan.dataset.split, "cpu", ""))
    made.setup()
    return made


def rendered(made: Worker, count: int) -> list[np.ndarray]:
    """Return renders of random codes, uint8 [R, R, 3]."""
    import torch

    from dhr_batch.stages.tensors import tensor_to_images

    net = made.stages[0].context.network("generator", made.settings.config.generator)
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(count, len(net.w_mean), generator=draw)
    with torch.no_grad():
        codes = net.broadcast(net.map(z, 0.7))
        return [tensor_to_images(net.synthesize(code[None]))[0] for code in codes]


def refinement(made: Worker) -> dict[str, Any]:
    """Return the fields of a record that a refinement fills, as large as real ones."""
    from dhr_batch.stages.refine.dhr import HybridRefinement, smallest, tuned_weights

    net = made.stages[0].context.network("generator", made.settings.config.generator)
    draw = np.random.default_rng(0)
    options = HybridRefinement.Options.model_validate(made.settings.config.refine)
    delta = {}
    for name in tuned_weights(net, smallest(options, net)):
        weight = net.weight(name)
        scale = OFFSET * float(weight.square().mean().sqrt())
        delta[name] = draw.standard_normal(weight.shape, np.float32) * scale
    feature = draw.standard_normal(net.feature_shape, np.float32) * made.info.magnitudes["feature"]
    return {"delta": delta, "feature": feature}


def filled(record: Record, pictures: list[np.ndarray], more: dict[str, Any], made: Any) -> Record:
    """Return an aligned record with what embedding, refinement and edits would give."""
    net = made.stages[0].context.network("generator", made.settings.config.generator)
    code = net.broadcast(net.w_mean[None])[0].numpy()
    strengths = [
        (edit["direction"], strength)
        for edit in made.settings.config.edit["edits"]
        for strength in edit["strengths"]
    ]
    edits = tuple(
        EditedImage(name, strength, "0" * 64, code, image)
        for (name, strength), image in zip(strengths, pictures[2:], strict=True)
    )
    return replace(
        record, latent=code, inverted=pictures[0], refined=pictures[1], edits=edits, **more
    )


def face_mask(record: Record) -> np.ndarray:
    """Return the face as in-domain mask, because the renders show others, bool [R, R]."""
    classes = (FACE_CLASS, *PART_CLASSES)
    return np.isin(required(record.labels), classes)


def follow(record: Record) -> None:
    """Find the motion of each edit between the pictures, and measure its contours."""
    refined, person = required(record.refined), at_side(required(record.labels) > 0)
    before = shrink(refined, motion.SIDE)
    for edit in record.edits:
        moved = motion.motion(before, shrink(edit.image, motion.SIDE), person)
        contours.contour_metrics(edit.image, refined, record.image, moved)


def measured(plan: Plan) -> dict[str, float]:
    """Return the CPU seconds per image of each piece, the device among them."""
    made, clock = built(plan), Clock()
    shard = Shard(0, tuple(item for shard in plan.shards for item in shard.items))
    count = 2 + sum(len(edit["strengths"]) for edit in plan.config.edit["edits"])
    pictures, more = rendered(made, count), refinement(made)
    stages = {stage.family: stage for stage in made.stages}
    records = [read_record(item, plan.dataset.split) for item in shard.items]

    def work(records: list[Record], folder: str) -> None:
        tables = attempt.Attempt(
            shard, Path(folder), made.info, lambda event: None, time.monotonic()
        )
        for record in records:
            (record,) = stages["align"].run([record])
            (record,) = stages["segment"].run([filled(record, pictures, more, made)])
            record = rows.as_stored(replace(record, mask=face_mask(record)), made.info)
            if plan.config.edit["follow"] != "none":
                follow(record)
            (record,) = stages["measure"].run([record])
            assert record.failure is None, record.failure
            tables.add([record])
        tables.receipt("0", {}, [])

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as unused:
        # The first image fills caches.
        work(records[:1], unused)
        with counted(clock):
            work(records, folder)
    return {piece: clock.seconds[piece] / len(records) for piece in (*PIECES, DEVICE)}


def measure(images: int) -> dict[str, Any]:
    """Measure both workloads at both sizes."""
    found: list[Row] = []
    head = {}
    for size in GENERATORS:
        fixed, default = planned(size, images, FIXED), planned(size, images, {})
        work = {"fixed": measured(fixed), "default": measured(default)}
        pieces = work["fixed"]
        head[f"cpu_seconds_{size}"] = sum(pieces.values()) - pieces[DEVICE]
        for workload, pieces in work.items():
            found += [
                {"workload": workload, "size": size, "piece": piece, "seconds": value}
                for piece, value in pieces.items()
            ]
    return head | {"machine": machine.describe(), "images": images, "rows": found}


def text(result: dict[str, Any]) -> str:
    """Return a table of the pieces, with a column for each workload and size."""
    cells = {(r["workload"], r["size"], r["piece"]): r["seconds"] for r in result["rows"]}
    columns = list(dict.fromkeys((r["workload"], r["size"]) for r in result["rows"]))
    names = [f"{workload} {size}" for workload, size in columns]
    lines = ["CPU s per image".ljust(28) + "".join(f"{name:>14}" for name in names)]
    for piece in PIECES:
        values = "".join(f"{cells[*column, piece]:14.3f}" for column in columns)
        lines.append(f"{piece:28}{values}")
    sums = [sum(cells[*column, piece] for piece in PIECES) for column in columns]
    lines.append(f"{'all of the host':28}" + "".join(f"{value:14.3f}" for value in sums))
    values = "".join(f"{cells[*column, DEVICE]:14.3f}" for column in columns)
    lines.append(f"{'torch, if on this CPU':28}{values}")
    about = result["machine"]
    lines.append(f"{result['images']} images; {about['device']}; torch {about['torch']}")
    return "\n".join(lines)


@click.command(cls=Command, help=__doc__)
@click.option(
    "--images",
    default=3,
    show_default=True,
    type=click.IntRange(1, 5),
    help="Number of portraits.",
)
@machine.json_option
def main(images: int, file: Path | None) -> None:
    result = measure(images)
    click.echo(text(result))
    machine.write_json(result, file)


if __name__ == "__main__":
    main()
