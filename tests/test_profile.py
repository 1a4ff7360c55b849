"""The profile of a refinement step: its parts are the work of the real step, no more, no less."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from dhr_batch.benchmarks import profile
from dhr_batch.benchmarks.operations import operations


def flops(work) -> int:
    with operations() as found:
        work()
    return sum(own.flops for own in found)


@pytest.mark.parametrize("groups", [1, 4])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_does(groups):
    x = torch.ones(2, 8, 6, 6, requires_grad=True)
    weight = torch.ones(12, 8 // groups, 3, 3, requires_grad=True)

    def forward() -> torch.Tensor:
        return torch.conv2d(x, weight, padding=1, groups=groups)

    once = 2 * 2 * 12 * 36 * (8 // groups) * 9
    assert flops(forward) == once
    assert flops(lambda: forward().sum().backward()) == 3 * once
    assert flops(lambda: torch.autograd.grad(forward().sum(), x)) == 2 * once


def test_what_a_gpu_would_be_given_is_counted_without_views():
    x = torch.ones(10, 10, requires_grad=True)
    with operations() as found:
        y = x.T.reshape(2, 5, 10).expand(3, 2, 5, 10) * 2
        torch.autograd.grad(y.sum(), x)
    product, total, *backward = [own.traffic for own in found]
    assert (product, total) == (400 + 1200, 1200 + 4)
    assert backward


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("smallest", [4, 128])
def test_parts_are_the_work_of_a_step_of_the_refinement(share, smallest, monkeypatch):
    """A further step of the refinement counts as many operations as the parts together."""
    config = profile.configured("tiny")
    config = config.model_copy(update={"refine": config.refine | {"smallest_layer": smallest}})
    monkeypatch.setattr(profile, "configured", lambda _: config)

    def refined(steps: int) -> int:
        stage = profile.refiner(config, steps=steps, weight_share=share)
        images, ws = profile.inputs(stage)
        return flops(lambda: stage.refine(images, ws, torch.ones(1, 1, 32, 32)))

    parts, step = profile.step_of("tiny", with_weights=share > 0)
    # The first step also finds the bases of the optimiser.
    step()
    parts.counting = True
    step()
    assert sum(parts.flops.values()) == refined(3) - refined(2)
    assert ("trunk backward" in parts.flops) == (share > 0 and smallest == 4)


def test_command(tmp_path):
    file = tmp_path / "profile.json"
    arguments = ["--generator", "tiny", "--steps", "1", "--json", str(file)]
    done = CliRunner().invoke(profile.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text())
    for kind in ("weight", "feature"):
        rows = [row for row in result["rows"] if row["step"] == kind]
        for key in ("gflop", "gb", "launches"):
            assert sum(row[key] for row in rows[:-1]) == pytest.approx(rows[-1][key])
            assert rows[-1][key] > 0
    gpus = {(g["gpu"], g["number"]): g for g in result["gpus"]}
    h100 = gpus["H100 SXM", "FP32"]
    assert h100["computed"]
    assert h100["floor_ms_per_image"] == pytest.approx(result["image"]["gflop"] / 66.9)
    assert "computed from published rates, not measured" in done.output
