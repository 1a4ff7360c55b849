"""Precision belongs to the process, and bfloat16 to the thread that asks for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dhr_batch.stages import device
from dhr_batch.stages.networks.features import Backbone

# Names by which torch's flags of the whole process are changed.
FLAGS = ("allow_tf32", "cudnn.flags", "fp32_precision", "float32_matmul_precision")
PACKAGES = ("stages", "pipeline", "fitting", "benchmarks")


def flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    cudnn, matmul = flags()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul


def test_convolutions_and_matrix_products_have_the_same_precision() -> None:
    device.set_precision("tf32")
    assert flags() == (True, True)
    for full in ("fp32", "bf16"):
        device.set_precision(full)  # type: ignore[arg-type]
        assert flags() == (False, False)


def test_only_one_module_changes_flags_of_the_process(root: Path) -> None:
    files = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    assert len(files) > 100
    found = [file.name for file in files if any(flag in file.read_text("utf-8") for flag in FLAGS)]
    assert found == ["device.py"]


class Waiting:
    """A network that a test stops in the middle, and that notes what its thread computes with."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.seen: list[object] = []

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        self.entered.set()
        assert self.leave.wait(60)
        self.seen += [flags(), (torch.eye(2) @ torch.eye(2)).dtype]
        return x.mean((2, 3))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_threads_of_a_process_do_not_disturb_each_others_precision(
    precision: device.Precision,
) -> None:
    """One thread measures while another one optimises. They begin and end in turn."""
    device.set_precision(precision)
    whole, expected = flags(), torch.bfloat16 if precision == "bf16" else torch.float32
    first, second = Waiting(), Waiting()
    picture = np.zeros((8, 8, 3), np.uint8)

    def extract(network: Waiting) -> threading.Thread:
        measure = Backbone(network, "cpu")  # type: ignore[arg-type]
        thread = threading.Thread(target=measure.extract, args=(picture,), daemon=True)
        thread.start()
        assert network.entered.wait(60)
        return thread

    threads = [extract(first)]
    with device.mixed_precision("cpu", precision):
        threads.append(extract(second))
        assert (torch.eye(2) @ torch.eye(2)).dtype == expected
        assert flags() == whole
        first.leave.set()
        threads[0].join()
        assert (torch.eye(2) @ torch.eye(2)).dtype == expected
        assert flags() == whole
    assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
    second.leave.set()
    threads[1].join()
    assert first.seen == second.seen == [whole, torch.float32]
    assert flags() == whole


def test_parameters_that_a_step_changes_are_cast_again() -> None:
    value = torch.ones(2, 2, requires_grad=True)
    with device.mixed_precision("cpu", "bf16"):
        before = value @ torch.eye(2)
        with torch.no_grad():
            value.mul_(3)
        after = value @ torch.eye(2)
        with device.full_precision(value):
            assert (value @ torch.eye(2)).dtype == torch.float32
    assert before.dtype == after.dtype == torch.bfloat16
    assert (before[0, 0].item(), after[0, 0].item()) == (1, 3)
