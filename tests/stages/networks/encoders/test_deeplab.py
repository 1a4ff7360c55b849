"""SAM's predictor of invertibility against the published implementation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.encoders import deeplab


@pytest.fixture(scope="module")
def case(golden_case: Callable[[str], Any]) -> Any:
    return golden_case("sam_invertibility")


def parts(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The layout of the published file: a state dict for each part."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        part, _, name = key.partition(".")
        found.setdefault(part, {})[name] = value
    return found


@pytest.fixture(scope="module")
def checkpoint(case: Any) -> dict[str, dict[str, Tensor]]:
    return parts(case.state())


@torch.no_grad()
def test_error_maps_equal_published(case: Any, checkpoint: Any, tmp_path: Path) -> None:
    file = tmp_path / "invertibility_faces_sg2.pt"
    # Files that were saved from a network in a wrapper for several GPUs have this prefix.
    heads = {k: {f"module.{n}": v for n, v in checkpoint[k].items()} for k in deeplab.LEVELS}
    torch.save(checkpoint | heads, file)
    net = deeplab.invertibility(Context("cpu", "tiny", lambda name: file))
    image = case.input("image")
    case.check("base_32", F.avg_pool2d(net.base(image), 8))
    maps = net(image)
    assert tuple(maps) == deeplab.LEVELS
    for level, found in maps.items():
        case.check(f"level_{level}", F.avg_pool2d(found, 4))


def test_other_files_are_named_with_the_reason(checkpoint: Any, tmp_path: Path) -> None:
    file = tmp_path / "predictor.pt"
    torch.save({k: v for k, v in checkpoint.items() if k != "F6"}, file)
    with pytest.raises(ValueError, match=r"predictor.pt has no 'F6', only: F10, F4, F8, W\+"):
        deeplab.load(file)
    torch.save(checkpoint | {"F8": {**checkpoint["F8"], "m.3.bias": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match=r"does not fit Head: m.3.bias has shape \[2\], not \[1\]"):
        deeplab.load(file)
    torch.save({k.replace("last_conv", "head"): v for k, v in checkpoint["sd_base"].items()}, file)
    with pytest.raises(ValueError, match=r"has no 'sd_base', only: aspp"):
        deeplab.load(file)
