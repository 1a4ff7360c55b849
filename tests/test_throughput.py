"""The images per hour of GPUs: what is counted of an operation, and what limits a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dhr_batch.benchmarks import throughput
from dhr_batch.benchmarks.operations import Operation
from dhr_batch.benchmarks.throughput import LAUNCH


def test_operations_are_counted_without_being_computed() -> None:
    def work() -> None:
        x = torch.zeros(1, 3, 1024, 1024)
        # A view, then one number that is read for all of them.
        y = x.view(3, -1).add(torch.zeros(1).expand(3, 2**20))
        F.conv2d(y.view(1, 3, 1024, 1024), torch.zeros(4, 3, 3, 3), padding=1)

    found = throughput.counted(work)
    picture = 4 * 3 * 2**20
    assert Operation(0, 2 * picture + 4) in found
    weights = 4 * 4 * 3 * 9
    assert found[-1] == Operation(2 * 4 * 3 * 9 * 2**20, picture + weights + picture * 4 // 3)


def test_an_operation_takes_as_long_as_what_limits_it() -> None:
    assert throughput.seconds(Operation(int(66.9e9), 1), "H100 SXM", 8) == pytest.approx(1e-3)
    assert throughput.seconds(Operation(1, int(3.35e9)), "H100 SXM", 8) == pytest.approx(1e-3)
    assert throughput.seconds(Operation(1, 1), "H100 SXM", 8) == pytest.approx(LAUNCH / 8)


def test_the_slowest_of_device_cores_and_thread_limits_a_run() -> None:
    assert throughput.limit(2.0, host=1.2, share=0.4, cores=8) == (0.5, "device")
    assert throughput.limit(0.1, host=1.6, share=0.1, cores=8) == (5.0, "cores")
    assert throughput.limit(0.1, host=1.25, share=0.4, cores=8) == (2.0, "thread")
    (eight, *_), rows = throughput.CORES, throughput.evaluate({256: 0.5}, {256: 0.8}, 0.4)
    assert [row["cores"] for row in rows] == list(throughput.CORES)
    assert rows[0]["cores"] == eight
    assert rows[0]["images_per_hour"] == {"1": 7200.0, "8": 57600.0, "64": 460800.0}


def test_the_document_quotes_the_model(root: Path) -> None:
    text = (root / "docs" / "scaling.md").read_text("utf-8")
    for row in throughput.evaluate({256: 0.097, 1024: 0.228}, {256: 1.0, 1024: 2.0}, 0.3):
        hourly = " | ".join(f"{value:,.0f}" for value in row["images_per_hour"].values())
        assert f"| {row['size']} | {row['cores']} | {row['limit']} | {hourly} |" in text
