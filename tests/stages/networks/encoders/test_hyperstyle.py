"""HyperStyle's hypernetwork and its published files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.encoders.hyperstyle import (
    CodePredictor,
    FactorLayers,
    OtherGenerator,
    convolutions,
    load_codes,
    load_factors,
)
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2, config_f
from dhr_batch.tests.stages import narrow

WIDTHS = (16, 16, 16, 16, 8)


@pytest.fixture(scope="module")
def case(golden_case: Callable[[str], Any]) -> Any:
    return golden_case("hyperstyle_hypernet")


def shapes_of(generator: StyleGAN2, layers: list[int]) -> dict[int, tuple[int, int]]:
    names = convolutions(generator)
    return {k: tuple(generator.weight(f"{names[k]}.weight").shape[:2]) for k in layers}


def filled(net: torch.nn.Module, case: Any) -> torch.nn.Module:
    state = {key: case.tensor(key, value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    return net.eval()


@pytest.fixture(scope="module")
def factors(case: Any) -> dict[int, Tensor]:
    """The factors of one pass by the network of the published size, filled part by part."""
    with torch.device("meta"):
        shapes = shapes_of(StyleGAN2(config_f(1024)), case.arrays["layers"].tolist())
        square = [layer for layer, shape in shapes.items() if shape == (512, 512)]
        net = CodePredictor({layer: layer in square for layer in shapes})
    pictures = torch.cat([case.input("x"), case.input("y")], 1)
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        codes = dict(zip(shapes, filled(net, case)(pictures).split(1, 1), strict=True))
        for layers in [square, *([layer] for layer in shapes if layer not in square)]:
            own = {layer: shapes[layer] for layer in layers}
            # Shared layers that the part does not use have a single channel, to save memory.
            with torch.device("meta"):
                part = FactorLayers(own, square, channels=512 if layers is square else 1)
            together = torch.cat([codes[layer] for layer in layers], 1)
            found |= filled(part, case)(together, torch.ones(1, 1))
    return found


def test_names_and_shapes_are_the_published_ones(case: Any) -> None:
    published = {key: tuple(shape) for key, shape in case.facts["state_dict"]}
    with torch.device("meta"):
        shapes = shapes_of(StyleGAN2(config_f(1024)), case.arrays["layers"].tolist())
        square = [layer for layer, shape in shapes.items() if shape == (512, 512)]
        codes = CodePredictor({layer: layer in square for layer in shapes})
        own = codes.state_dict() | FactorLayers(shapes, square).state_dict()
    named = {key: tuple(value.shape) for key, value in own.items()}
    assert named == {key: shape for key, shape in published.items() if ".hypernet." not in key}
    assert list(shapes) == [5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21, 23, 24]
    assert square == [5, 6, 8, 9, 11, 12]


def test_factors_equal_published(case: Any, factors: dict[int, Tensor]) -> None:
    for key, first in case.facts["fill_check"].items():
        shape = dict(case.facts["state_dict"])[key]
        assert case.tensor(key, shape).flatten()[:3].tolist() == first
    each = [s.expand(*s.shape[:3], 3, 3) for s in factors.values()]
    case.check("delta_mean", torch.stack([s.mean() for s in each]))
    case.check("delta_std", torch.stack([s.std(correction=0) for s in each]))
    case.check("delta_first8", torch.stack([s.flatten()[:8] for s in each]))
    case.check("delta_slice", torch.stack([s[0, 3, :16, 1, 2] for s in each]))
    case.check("delta_abs_sum", torch.stack([s.abs().sum(dtype=torch.float64) for s in each]))


@torch.no_grad()
def test_render_with_factors_equals_published(
    case: Any, factors: dict[int, Tensor], golden_case: Callable[[str], Any]
) -> None:
    generator = layouts.build(
        layouts.rosinality(golden_case("stylegan2_rosinality_1024").state(), torch.zeros(512))
    )
    ws, names = generator.broadcast(case.input("w")), convolutions(generator)
    weights = {layer: f"{names[layer]}.weight" for layer in factors}
    delta = {weights[k]: generator.weight(weights[k]) * s for k, s in factors.items()}
    image = generator.synthesize(ws, delta)
    case.check("image_64", F.avg_pool2d(image, 16))
    case.check("image_crop", image[0, :, 500:516, 500:516])


# ------------------------------------------------------------------- files


@pytest.fixture
def generator() -> StyleGAN2:
    return StyleGAN2(WIDTHS, mapping_layers=1)


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    return narrow.hyperstyle(WIDTHS)


def saved(checkpoint: dict[str, Any], folder: Path) -> Path:
    torch.save(checkpoint, folder / "hyperstyle.pt")
    return folder / "hyperstyle.pt"


def test_a_published_file_is_loaded(checkpoint, generator, tmp_path):
    file = saved(checkpoint, tmp_path)
    factors = load_factors(file, generator)
    assert factors.layers == (0, 2, 3, 5, 6, 8, 9, 11, 12)
    codes = load_codes(file, factors.layers)
    assert not factors.training
    assert not codes.training
    loaded = codes.state_dict() | factors.state_dict()
    state = checkpoint["state_dict"]
    own = {k for k in state if k.startswith("hypernet.") and ".hypernet." not in k}
    assert {f"hypernet.{k}" for k in loaded} == own
    assert all(torch.equal(value, state[f"hypernet.{k}"]) for k, value in loaded.items())


@pytest.mark.parametrize("prefix", ["module.hypernet.", "hypernet.module."])
def test_names_of_data_parallel_and_arguments_of_a_script_are_accepted(
    prefix, checkpoint, generator, tmp_path
):
    state = {k.replace("hypernet.", prefix, 1): v for k, v in checkpoint["state_dict"].items()}
    other = {"state_dict": state, "opts": Namespace(input_nc=6), "args": Namespace(lr=1e-4)}
    factors = load_factors(saved(checkpoint | other, tmp_path), generator)
    published = checkpoint["state_dict"]["hypernet.shared_weight_hypernet.w1"]
    assert torch.equal(factors.shared_weight_hypernet.w1, published)


def test_a_smaller_generator_takes_the_layers_that_it_has(checkpoint, tmp_path):
    file = saved(checkpoint, tmp_path)
    factors = load_factors(file, StyleGAN2(WIDTHS[:4], mapping_layers=1))
    assert factors.layers == (0, 2, 3, 5, 6, 8, 9)
    codes = load_codes(file, factors.layers)
    assert codes(torch.zeros(2, 6, 256, 256)).shape == (2, 7, 32)


def test_factors_of_summed_codes_are_the_sum_of_factors(checkpoint, generator, tmp_path):
    factors = load_factors(saved(checkpoint, tmp_path), generator).double()
    codes = torch.randn(5, 2, 9, 32, dtype=torch.float64)
    one = torch.ones(2, 1, dtype=torch.float64)
    each = [factors(code, one) for code in codes]
    for layer, summed in factors(codes.sum(0), 5 * one).items():
        torch.testing.assert_close(summed, sum(one[layer] for one in each), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(summed, factors(codes.sum(0), one)[layer])


@pytest.mark.parametrize("widths", [(12, 12, 12, 12, 8), (16, 16, 16, 16, 12)])
def test_a_generator_of_other_widths_is_refused(widths, checkpoint, tmp_path):
    with pytest.raises(OtherGenerator, match=r"hyperstyle.pt has .* factors for layer (0|11), but"):
        load_factors(saved(checkpoint, tmp_path), StyleGAN2(widths, mapping_layers=1))


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: checkpoint["state_dict"].pop(f"hypernet.{name}")


def put(name: str, *shape: int) -> Callable[[dict[str, Any]], Any]:
    new = {f"hypernet.{name}": torch.ones(shape)}
    return lambda checkpoint: checkpoint["state_dict"].update(new)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda c: c.pop("state_dict"), r"has no 'state_dict', only: latent_avg, opts"),
        (
            lambda c: c.update(state_dict={"encoder.a": torch.ones(1), "decoder.b": torch.ones(1)}),
            r"has no weights hypernet.\*, only: decoder.\*, encoder.\*",
        ),
        (drop("body.3.bn1.bias"), r"does not fit CodePredictor: body.3.bn1.bias is missing"),
        (put("body.16.conv1.weight", 3), r"CodePredictor: body.16.conv1.weight is unknown"),
        (put("relu.weight", 3), r"CodePredictor: relu.weight has shape \[3\], not \[4\]"),
        (drop("shared_weight_hypernet.b2"), r"has no 'shared_weight_hypernet.b2', only:"),
        (drop("refinement_blocks.11.output.1.bias"), r"no 'refinement_blocks.11.output.1.bias'"),
        (
            put("refinement_blocks.12.output.1.weight", 64, 31, 1, 1),
            r"FactorLayers: refinement_blocks.12.output.1.weight has shape \[64, 31, 1, 1\]",
        ),
        (
            put("refinement_blocks.5.hypernet.b1", 144),
            r"refinement_blocks.5.hypernet.b1 is not equal to shared_weight_hypernet.b1",
        ),
        (put("refinement_blocks.4.output.0.weight", 3), r"changes image layers \(\[4\]\)"),
    ],
)
def test_another_file_is_refused_by_its_key(checkpoint, generator, tmp_path, broken, message):
    broken(checkpoint)
    file = saved(checkpoint, tmp_path)
    with pytest.raises(ValueError, match=r"hyperstyle.pt.*" + message):
        load_codes(file, load_factors(file, generator).layers)


def test_a_damaged_file_is_named(checkpoint, generator, tmp_path):
    file = saved(checkpoint, tmp_path)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"hyperstyle.pt cannot be read as weights"):
        load_factors(file, generator)
