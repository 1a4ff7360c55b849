"""HFGI's networks against the published code, filled with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.encoders import hfgi
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts

Case = Callable[[str], Any]


@pytest.fixture(scope="module")
def case(golden_case: Case) -> Any:
    return golden_case("hfgi")


@pytest.fixture(scope="module")
def checkpoint(case: Any) -> dict[str, Any]:
    return {"state_dict": case.state(), "latent_avg": torch.zeros(18, 512), "opts": {}}


@pytest.fixture(scope="module")
def generator(golden_case: Case, case: Any) -> Any:
    """StyleGAN2 at 1024 px, filled as in the fixture."""
    rules = case.facts["generator_fill_rules"]
    published = golden_case("stylegan2_rosinality_1024")
    published.facts["fill_rules"] = rules
    return layouts.build(layouts.rosinality(published.state(), torch.zeros(512)))


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "hfgi.pt")
    return folder / "hfgi.pt"


@torch.no_grad()
def test_conditions_and_conditioned_picture_equal_published(
    case: Any, checkpoint: dict[str, Any], generator: Any, tmp_path: Path
) -> None:
    for key, first in case.facts["fill_check"].items():
        assert checkpoint["state_dict"][key].flatten()[:3].tolist() == first
    align, consult = hfgi.load(saved(checkpoint, tmp_path))
    x, ws = case.input("x"), case.input("wplus")
    render = hfgi.resized(generator.synthesize(ws).clamp(-1, 1))
    case.check("render_256_64", F.avg_pool2d(render, 4))
    aligned = align(torch.cat([x - render, render], 1))
    case.check("aligned_64", F.avg_pool2d(aligned, 4))
    case.check("aligned_crop", aligned[..., 96:128, 96:128])
    scale, shift = consult(aligned)
    for name, maps in {"scale": scale, "shift": shift}.items():
        case.check(f"{name}_first16_16", F.avg_pool2d(maps[:, :16], 4))
        case.check(f"{name}_mean", maps.mean((2, 3)))

    def condition(h: Tensor) -> Tensor:
        return h * (1 + scale) + shift

    image = generator.synthesize(ws, taps={(64, "up"): condition})
    case.check("image_64", F.avg_pool2d(image, 16))
    case.check("image_crop", image[..., 500:516, 500:516])
