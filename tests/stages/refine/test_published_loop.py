"""`dhr-published` against its loop written down from its formulas, in double precision.

The golden fixture has six steps at 128 px. Here are all 100 steps at 256 px, and two at 1024 px, on
filled generators that are narrower than the published one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.refine import dhr
from dhr_batch.stages.refine.published import PublishedRefinement
from dhr_batch.tests import filled
from dhr_batch.tests.stages.refine.test_published import context_of

State = dict[str, Tensor]
# Steps whose losses are equal but for the rounding of double precision.
EXACT = 6
# The activations of AlexNet that LPIPS compares follow these layers of `features`.
ALEX = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))


def convolution(state: State, name: str, x: Tensor, w: Tensor, up: bool = False) -> Tensor:
    """A modulated convolution of one image, with demodulation unless it makes colours."""
    weight = state[f"{name}.conv.weight"][0]
    modulation = state[f"{name}.conv.modulation.weight"] / math.sqrt(512)
    style = modulation @ w + state[f"{name}.conv.modulation.bias"]
    weight = weight / math.sqrt(weight[0].numel()) * style[:, None, None]
    if not name.startswith("to_rgb"):
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if not up:
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return smoothed(x, (1, 1, 1, 1))


def smoothed(x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 4
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, pad), kernel, groups=x.shape[1])


def layer(state: State, number: int, x: Tensor, w: Tensor) -> Tensor:
    name, up = ("conv1", False) if number == 0 else (f"convs.{number - 1}", number % 2 == 1)
    x = convolution(state, name, x, w, up)
    x = x + state[f"{name}.noise.weight"] * state[f"noises.noise_{number}"]
    return math.sqrt(2) * F.leaky_relu(x + state[f"{name}.activate.bias"][:, None, None], 0.2)


def colours(state: State, name: str, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
    rgb = convolution(state, name, x, w) + state[f"{name}.bias"].reshape(1, 3, 1, 1)
    if skip is None:
        return rgb
    spread = skip.new_zeros(1, 3, 2 * skip.shape[2], 2 * skip.shape[3])
    spread[:, :, ::2, ::2] = skip
    return rgb + smoothed(spread, (2, 1, 2, 1))


def synthesis(
    state: State, ws: Tensor, size: int, feature: Tensor | None = None, soft: Any = None
) -> tuple[Tensor, Tensor]:
    """The picture of codes [L, 512] and the feature that enters the block after `size` px."""
    x = layer(state, 0, state["input.input"], ws[0])
    skip = colours(state, "to_rgb1", x, ws[1], None)
    found = x
    for block in range((len(ws) - 2) // 2):
        if x.shape[-1] == size:
            found = x
            x = x if feature is None else soft * x + (1 - soft) * feature
        x = layer(state, 2 * block + 1, x, ws[2 * block + 1])
        x = layer(state, 2 * block + 2, x, ws[2 * block + 2])
        skip = colours(state, f"to_rgbs.{block}", x, ws[2 * block + 3], skip)
    return skip, found


def lpips_maps(weights: State, a: Tensor, b: Tensor) -> list[Tensor]:
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=a.dtype).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=a.dtype).reshape(1, 3, 1, 1)
    x, maps = (torch.cat([a, b]) - shift) / scale, []
    for i, (index, stride, padding) in enumerate(ALEX):
        if i in (1, 2):
            x = F.max_pool2d(x, 3, 2)
        named = f"features.{index}"
        x = F.relu(
            F.conv2d(x, weights[f"{named}.weight"], weights[f"{named}.bias"], stride, padding)
        )
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        lin = weights[f"lin{i}.model.1.weight"].reshape(1, -1, 1, 1)
        maps.append((lin * (unit[:1] - unit[1:]).square()).sum(1, keepdim=True))
    return maps


def adam(values: list[Tensor], grads: Any, moments: dict[int, Any], rate: float, step: int) -> None:
    for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
        m, v = moments.get(i, (torch.zeros_like(grad), torch.zeros_like(grad)))
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad.square()
        moments[i] = (m, v)
        step_size = rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        value.data -= step_size


def published(
    state: State,
    lpips: State,
    image: Tensor,
    ws: Tensor,
    mask: Tensor,
    size: int,
    at: int,
    steps: int,
) -> tuple[list[list[float]], Tensor]:
    """The losses of each step, in-domain and out-of-domain, and the final picture."""
    theta = [v.requires_grad_() for k, v in state.items() if not k.startswith("noises.")]
    feature = synthesis(state, ws, size)[1].detach().requires_grad_()
    soft = F.adaptive_avg_pool2d(mask, size)
    losses, for_feature, for_theta = [], {}, {}

    def small(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.shape[-1] // at)

    for step in range(1, steps + 1):
        picture, _ = synthesis(state, ws, size, feature, soft)
        maps = lpips_maps(lpips, small(picture), small(image))
        pair = []
        for part, soft_part in ((mask, soft), (1 - mask, 1 - soft)):
            loss = ((picture - image).square() * part).sum() / part.sum()
            for found in maps:
                weight = F.interpolate(soft_part, found.shape[2:])
                loss = loss + (found * weight).sum() / weight.sum()
            pair.append(loss)
        inner, outer = pair
        losses.append([inner.item(), outer.item()])
        grads = torch.autograd.grad(outer, [feature], retain_graph=True)
        weight_grads = torch.autograd.grad(inner, theta) if step <= steps // 2 else None
        adam([feature], grads, for_feature, 9e-2, step)
        if weight_grads is not None:
            adam(theta, weight_grads, for_theta, 1.5e-3, step)
    with torch.no_grad():
        return losses, synthesis(state, ws, size, feature, soft)[0]


def narrow_state(resolution: int, width: int) -> State:
    """A filled generator in rosinality's layout without its mapping network."""
    file = Path(filled.HERE) / "golden" / "stylegan2_rosinality_256_dhr.json"
    rules = json.loads(file.read_text())["fill_rules"]
    shapes: dict[str, list[int]] = {"input.input": [1, width, 4, 4]}

    def add(name: str, out: int, kernel: int) -> None:
        shapes[f"{name}.conv.weight"] = [1, out, width, kernel, kernel]
        shapes[f"{name}.conv.modulation.weight"] = [width, 512]
        shapes[f"{name}.conv.modulation.bias"] = [width]
        if kernel == 3:
            shapes[f"{name}.noise.weight"] = [1]
            shapes[f"{name}.activate.bias"] = [out]
        else:
            shapes[f"{name}.bias"] = [1, 3, 1, 1]

    blocks = int(math.log2(resolution)) - 2
    for i, name in enumerate(["conv1", *(f"convs.{i}" for i in range(2 * blocks))]):
        add(name, width, 3)
        side = 4 * 2 ** ((i + 1) // 2)
        shapes[f"noises.noise_{i}"] = [1, 1, side, side]
    for name in ["to_rgb1", *(f"to_rgbs.{i}" for i in range(blocks))]:
        add(name, 3, 1)
    return {k: torch.tensor(filled.draw(k, s, rules)).double() for k, s in shapes.items()}


@pytest.mark.parametrize(
    ("resolution", "size", "width", "at", "steps"),
    [
        pytest.param(256, 64, 12, 64, 100, marks=pytest.mark.slow),
        (256, 64, 12, 64, 4),
        pytest.param(1024, 128, 6, 128, 2, marks=pytest.mark.slow),
    ],
)
def test_losses_equal_those_of_the_published_loop(
    monkeypatch: pytest.MonkeyPatch, resolution: int, size: int, width: int, at: int, steps: int
) -> None:
    state = narrow_state(resolution, width)
    facts = json.loads((filled.HERE / "golden" / "lpips_alex.json").read_text())
    lpips = {
        key.replace("alex.net.layers.", "features.")
        .replace("alex.lin.", "lin")
        .replace(".1.weight", ".model.1.weight" if "lin" in key else ".1.weight"): torch.tensor(
            filled.draw(key, shape, facts["fill_rules"])
        ).double()
        for key, shape in facts["state_dict"]
        if not key.endswith(("net.mean", "net.std"))
    }
    draw = torch.Generator().manual_seed(0)
    ws = torch.randn(1, 2 * int(math.log2(resolution)) - 2, 512, generator=draw).double()
    coarse = torch.randn(1, 3, 8, 8, generator=draw, dtype=torch.float64)
    image = F.interpolate(coarse, (resolution, resolution), mode="bicubic").clamp(-1, 1)
    mask = F.interpolate((coarse[:, :1] > -0.5).double(), (resolution, resolution))

    tensors = layouts.rosinality({k: v.float() for k, v in state.items()}, torch.zeros(512))
    for i in range(8):
        # Codes are given, so the mapping network is never used.
        tensors |= {f"mapping.{i}.weight": torch.zeros(512, 512)}
        tensors |= {f"mapping.{i}.bias": torch.zeros(512)}
    net = layouts.build(tensors).double()
    assert net.to_feature(ws).shape[-1] == size
    context = context_of(net)
    context._networks["perceptual", "p"] = Perceptual("lpips_alex", lpips).double()
    stage = PublishedRefinement(
        PublishedRefinement.Options(perceptual="p", perceptual_size=at, steps=steps)
    )
    stage.setup(context)
    losses: list[list[float]] = []
    call = dhr.MaskedLoss.__call__

    def recorded(self: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
        found = call(self, picture)
        losses.append([part.item() for part in found])
        return found

    monkeypatch.setattr(dhr.MaskedLoss, "__call__", recorded)
    result = stage.refine(image, ws, mask)
    wanted, picture = published(state, lpips, image, ws[0], mask, size, at, steps)
    # Each step of Adam multiplies what rounding has done: by hand, to 1e-6 in 16 steps and to 1e-3
    # in all of them.
    np.testing.assert_allclose(losses[:EXACT], wanted[:EXACT], rtol=1e-6)
    np.testing.assert_allclose(losses, wanted, rtol=0.02)
    assert wanted[-1][1] < wanted[0][1]
    if steps <= EXACT:
        torch.testing.assert_close(stage.render(ws, result, mask), picture, rtol=0, atol=1e-5)
