"""Stages that compute almost nothing and fail for images with certain names.

Named by `embed.name=dhr_batch.tests.faults.stages:Faulty` and so on, so that Ray workers find them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dhr_batch.pipeline.datasets import listing
from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.worker import waits
from dhr_batch.stages.context import Context
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.record import Metric, Record
from dhr_batch.tests import no_op


class FaultOptions(no_op.NoOpOptions):
    """folder: where `unlucky` images count their crashes. memory: images that fit at once."""

    folder: str = ""
    memory: int = 1000


def number(image_id: str) -> int:
    return zlib.crc32(image_id.encode())


class Align(no_op.Align):
    """Makes an 8 px picture whose values depend on the name."""

    def process(self, records: Sequence[Record]) -> list[Record]:
        for record in records:
            if record.image_id.startswith("reader-"):
                misbehave(record.image_id.removeprefix("reader-"), "")
        return [
            replace(r, image=np.full((8, 8, 3), number(r.image_id) % 251, np.uint8))
            for r in records
        ]


class Impatient(Align):
    """Waits two seconds for the place of the images to answer, instead of two minutes.

    An image does not answer as long as a file with its name and `.away` lies beside it, like one in
    a file system that went away.
    """

    def setup(self, context: Context) -> None:
        waits._READ_SECONDS = 2.0
        read = listing.read_bytes

        def wait(item: Item, *limits: float) -> bytes:
            while Path(f"{item.location}.away").exists():
                time.sleep(0.1)
            return read(item, *limits)

        listing.read_bytes = wait


class Faulty(no_op.Embed):
    """Makes a code whose values depend on the name; the first part of the name is the fault."""

    Options = FaultOptions

    def process(self, records: Sequence[Record]) -> list[Record]:
        if len(records) > self.options.memory:
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {len(records)} GiB")
        for record in records:
            misbehave(record.image_id, self.options.folder)
            time.sleep(self.options.seconds)
        return [
            replace(r, latent=np.full((8, 512), number(r.image_id) / 2**32, np.float32))
            for r in records
        ]


def misbehave(image_id: str, folder: str) -> None:
    """Do to the process what the names `exit-3.png`, `loop-1.png` and so on say."""
    what = image_id.partition("-")[0]
    if what == "exit":
        os._exit(1)
    if what == "segv":
        ctypes.string_at(0)
    while what == "loop":
        time.sleep(0.01)
    if what == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if what == "oom":
        raise MemoryError("Unable to allocate 1 TiB")
    if what == "bug":
        raise TypeError("unsupported operand")
    if what == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/secret")
    if what == "noface":
        raise ImageError("no_face", f"{image_id}: no face was found")
    if what == "nan":
        raise ArithmeticError(f"diverged in {Path('/home/somebody/x.py')}")
    if what == "unlucky":
        crashes = len(os.listdir(folder))
        if crashes < 2:
            (Path(folder) / str(crashes)).touch()
            os._exit(1)


class Refine(no_op.Refine):
    """Makes a refined weight, which is NaN for images called `nandelta-1.png` and so on."""

    def process(self, records: Sequence[Record]) -> list[Record]:
        bad = [r.image_id.startswith("nandelta-") for r in records]
        return [
            replace(r, delta={"w": np.full(3, np.nan, np.float32)}) if is_bad else r
            for r, is_bad in zip(records, bad, strict=True)
        ]


class Edit(no_op.Edit):
    """Cannot be set up with a `folder`, as if this were a damaged file of weights."""

    Options = FaultOptions

    def setup(self, context: Context) -> None:
        if self.options.folder:
            raise ValueError(f"{self.options.folder} cannot be used")


class Measure(no_op.Measure):
    """Measures a number that depends on the name."""

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [
            replace(r, metrics=(Metric("inverted", "crc", float(number(r.image_id)), "crc32"),))
            for r in records
        ]


HERE = "dhr_batch.tests.faults.stages"
MINE = (Align, Faulty, Refine, Edit, Measure)
NAMES = no_op.NAMES | {cls.family: f"{HERE}:{cls.__name__}" for cls in MINE}
