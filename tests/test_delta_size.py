"""The benchmark of stored deltas, on the tiny generator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from dhr_batch.benchmarks import delta_size
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.record import Record


@pytest.fixture(scope="module")
def context() -> Context:
    # The motion between pictures of random weights is arbitrary, so nothing follows it: what is
    # tested is what rounding alone costs.
    return Context("cpu", "tiny", models=lambda name: Path(), edit={"follow": "none"})


@pytest.fixture(scope="module")
def record(context: Context) -> Record:
    """A refinement that is exact: its picture is the source, but for noise of 4 grey levels."""
    generator = context.network("generator", "tiny")
    draw = torch.Generator().manual_seed(0)
    ws = generator.broadcast(generator.map(torch.randn(1, 512, generator=draw), 0.7))[0]
    name = "layers.1.conv2.weight"
    offset = 0.1 * torch.randn(generator.weight(name).shape, generator=draw)
    made = Record(
        "a.png",
        "a.png",
        latent=ws.numpy().copy(),
        mask=np.zeros((32, 32), bool),
        delta={name: offset.numpy()},
        feature=generator.to_feature(ws[None])[0].numpy(),
    )
    refined = Rerender(context)(made).refined
    assert refined is not None
    noise = np.random.default_rng(0).normal(0, 4, refined.shape)
    source = np.clip(np.rint(refined + noise), 0, 255).astype(np.uint8)
    return Record(**{f: getattr(made, f) for f in Record.__slots__} | {"image": source})


def test_finer_steps_take_more_bytes_and_lose_less(context: Context, record: Record) -> None:
    generator = context.network("generator", "tiny")
    info = RunInfo(rows=8, embedder="w+", magnitudes=generator.magnitudes())
    rows = list(delta_size.compare(record, context, info))
    assert [row["level"] for row in rows] == ["coarser", "small", "fine"]
    coarser, small, fine = rows
    assert coarser["bytes"] < small["bytes"] < fine["bytes"]
    assert coarser["psnr_to_exact"] + 3 < small["psnr_to_exact"] < fine["psnr_to_exact"] - 6
    for smile in ("smile -2", "smile +2"):
        assert coarser[smile] > small[smile] > fine[smile] > 0
    assert abs(fine["refined"]) < coarser["refined"]


def test_losses_are_decibels(context: Context, record: Record) -> None:
    """An edit whose error is as large as the distance to the source would lose half: 3.01 dB."""
    assert delta_size.decibels(255.0**2) == 0
    rows = [
        {"level": level, "bytes": b, "refined": r, "smile -2": 0.0, "smile +2": 0.0}
        for level in delta_size.COMPARED
        for b, r in ((10, 0.1), (30, 0.3))
    ]
    line = delta_size.summary(rows, "tiny")[0]
    assert (line["bytes"], line["most_bytes"], line["images"]) == (20, 30, 2)
    assert line["refined"] == pytest.approx(0.2)
    assert line["refined worst"] == pytest.approx(0.3)


def test_bytes_are_those_of_the_column_chunks(tmp_path: Path) -> None:
    table = pa.table({"data": pa.array([b"x" * 1000, b"y" * 500], pa.large_binary())})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", write_statistics=False)
    count = delta_size.column_bytes(tmp_path / "t.parquet")
    assert 1500 < count < 1700
    assert count < (tmp_path / "t.parquet").stat().st_size


@pytest.mark.slow
def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    tiny = {
        "embed": "{name: w+, steps: 1, perceptual: tiny}",
        "segment": "{name: dhr, parser: none, perceptual: tiny}",
        "refine": "{name: dhr, steps: 2, perceptual: tiny}",
        "measure": "{name: standard, perceptual: [tiny], identity: none, landmarks: none}",
    }
    words = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    file = tmp_path / "figures.json"
    words += ["--generator", "tiny", "--images", "1", "--json", str(file)]
    result = CliRunner().invoke(delta_size.main, words)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    small = next(row for row in found["rows"] if row["level"] == "small")
    assert found["bytes_per_image"] == small["bytes"] > 0
    assert found["psnr_loss_db"] == small["refined"]
    assert [row["generator"] for row in found["rows"][-2:]] == ["StyleGAN2 1024 (computed)"] * 2
    assert "refined" not in found["rows"][-1]
