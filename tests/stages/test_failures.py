"""Which exception means what, and what a stage does about it."""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Sequence

import cv2
import pytest
import torch

from dhr_batch.stages import failures
from dhr_batch.stages.base import Stage, StageOptions
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.record import Record


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ImageError("no_face", "none"), "image"),
        (ValueError("bad value"), "image"),
        (ZeroDivisionError(), "image"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "image"),
        (RuntimeError("The size of tensor a (3) must match"), "image"),
        (MemoryError(), "capacity"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "capacity"),
        (RuntimeError("CUDA error: out of memory"), "capacity"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), "capacity"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "capacity"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), "poisoned"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "poisoned"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "poisoned"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "poisoned"),
        (failures.Poisoned("embed: ..."), "poisoned"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage"),
        (cv2.error("OpenCV: assertion failed"), "image"),
        (struct.error("unpack requires 4 bytes"), "image"),
        (zlib.error("Error -3 while decompressing"), "image"),
        (EOFError("no data left"), "image"),
        (AssertionError("order changed"), "bug"),
        (TypeError("unsupported operand"), "bug"),
    ],
)
def test_kinds(error: Exception, kind: str) -> None:
    assert failures.kind_of(error) == kind


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad\nC++ stack"), "bad"),
        (OSError(errno.ENOENT, "No such file", "/home/me/x"), "No such file"),
        (ValueError("cannot read '/home/me/run 1/x.npy': 3/4"), "cannot read 'x.npy': 3/4"),
        (
            ValueError("see https://pytorch.org/docs for a/b"),
            "see https://pytorch.org/docs for a/b",
        ),
        (KeyError(), "KeyError"),
    ],
)
def test_messages_name_no_folder_of_the_worker(error: Exception, text: str) -> None:
    assert failures.explain(error).replace("run 1/", "") == text


class Limited(Stage):
    """Holds `most` images at once; `alone` images do not even fit by themselves."""

    family, needs, gives = "embed", frozenset(), frozenset()
    Options = StageOptions

    def __init__(self, most: int, alone: str = "") -> None:
        super().__init__(None)
        self.most, self.alone, self.sizes = most, alone, []

    def process(self, records: Sequence[Record]) -> list[Record]:
        self.sizes.append(len(records))
        if len(records) > self.most or any(r.image_id == self.alone for r in records):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(records)


def batch(count: int) -> list[Record]:
    return [Record(str(i), str(i)) for i in range(count)]


def test_a_batch_too_large_is_halved_until_it_fits_and_none_is_lost() -> None:
    stage = Limited(most=1)
    done = stage.run(batch(8))
    assert [r.image_id for r in done] == [str(i) for i in range(8)]
    assert all(r.failure is None for r in done)
    assert stage.sizes == [8, 4, 2, *[1] * 8]


def test_a_size_that_failed_is_not_tried_again() -> None:
    stage = Limited(most=3)
    stage.run(batch(8))
    stage.run(batch(8))
    assert stage.sizes == [8, 4, *[2] * 8]


def test_an_image_that_does_not_fit_alone_is_quarantined_as_oom() -> None:
    stage = Limited(most=8, alone="1")
    done = stage.run(batch(4))
    assert [r.failure and r.failure.error_class for r in done] == [None, "oom", None, None]
    failure = done[1].failure
    assert failure is not None
    assert failure.message == "1: CUDA out of memory"
    assert "Traceback" in failure.details


class Raising(Limited):
    def __init__(self, error: Exception) -> None:
        super().__init__(8)
        self.error = error

    def process(self, records: Sequence[Record]) -> list[Record]:
        raise self.error


def test_a_lost_device_is_held_against_no_image() -> None:
    with pytest.raises(failures.Poisoned, match="embed: CUDA error: device-side assert"):
        Raising(torch.AcceleratorError("CUDA error: device-side assert triggered")).run(batch(2))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), TypeError("bug")])
def test_what_is_not_about_an_image_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        Raising(error).run(batch(2))
