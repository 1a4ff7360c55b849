"""HyperStyle: five passes against a reference in double precision, and pictures from its state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.refine.base import Refinement
from dhr_batch.stages.refine.hyperstyle import HyperStyle
from dhr_batch.tests.stages import narrow

# Widths at 4, 8, ..., 512 px, where pictures are averaged for the network.
WIDTHS = (16, 16, 16, 16, 12, 8, 4, 2)
PASSES = 5


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "hyperstyle_ffhq.pt"
    torch.save(narrow.hyperstyle(WIDTHS), path)
    return path


@pytest.fixture(scope="module")
def context(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    generator = tmp_path_factory.mktemp("generators") / "narrow.safetensors"
    layouts.save(narrow.stylegan2(WIDTHS), generator, {})
    return Context("cpu", str(generator), {"hyperstyle-ffhq": file}.__getitem__)


@pytest.fixture(scope="module")
def stage(context: Context) -> HyperStyle:
    made = HyperStyle(HyperStyle.Options())
    made.setup(context)
    for net in (made.generator, made.factors, made.codes):
        net.double()
    return made


@pytest.fixture(scope="module")
def inputs(stage: HyperStyle) -> tuple[Tensor, Tensor, Tensor]:
    """Photographs, codes and masks of two images, in double precision."""
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(2, 512, generator=draw).double()
    ws = stage.generator.broadcast(stage.generator.map(z))
    images = F.avg_pool2d(torch.randn(2, 3, 520, 520, generator=draw).double(), 9, 1) * 4
    return images, ws, torch.ones(2, 1, 512, 512)


@pytest.fixture(scope="module")
def refined(stage: HyperStyle, inputs: tuple[Tensor, Tensor, Tensor]) -> Refinement:
    return stage.refine(*inputs)


@pytest.fixture(scope="module")
def pictures(
    stage: HyperStyle, inputs: tuple[Tensor, Tensor, Tensor], refined: Refinement
) -> Tensor:
    with torch.no_grad():
        return stage.render(inputs[1], refined, inputs[2])


# ------------------------------------------------------------------- the reference


class Reference:
    """HyperStyle from its formulas, for one image, with dense factors that are added up."""

    def __init__(self, file: Path, generator: StyleGAN2) -> None:
        state = torch.load(file, weights_only=True)["state_dict"]
        self.state = {k: v.double() for k, v in state.items()}
        self.generator = generator

    def get(self, name: str) -> Tensor:
        return self.state[f"hypernet.{name}"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = self.get(f"{name}.running_mean"), self.get(f"{name}.running_var")
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return (
            x * self.get(f"{name}.weight")[:, None, None] + self.get(f"{name}.bias")[:, None, None]
        )

    def conv(self, x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        bias = self.state.get(f"hypernet.{name}.bias")
        return F.conv2d(x, self.get(f"{name}.weight"), bias, stride, padding)

    def body(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x, "conv1", 2, 3), "bn1")
        slope = self.get("relu.weight")[:, None, None]
        x = torch.where(x > 0, x, slope * x)
        for i in range(16):
            stride = 2 if i in (3, 7, 13) else 1
            y = self.norm(self.conv(x, f"body.{i}.conv1", stride, 1), f"body.{i}.bn1").relu()
            y = self.norm(self.conv(y, f"body.{i}.conv2", 1, 1), f"body.{i}.bn2")
            if stride == 2:
                x = self.conv(x, f"body.{i}.downsample.0", 2, 0)
                x = self.norm(x, f"body.{i}.downsample.1")
            x = (x + y).relu()
        return x

    def factors(self, target: Tensor, picture: Tensor) -> dict[str, Tensor]:
        features = self.body(torch.cat([target, picture], 1))
        found = {}
        for layer in (0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21):
            block = f"refinement_blocks.{layer}"
            block_index, place = divmod(layer - 2, 3)
            name = f"convs.{2 * block_index + place}" if layer else "conv1"
            out, inp = self.generator.weight(f"{name}.weight").shape[:2]
            x, shared = features, f"hypernet.{block}.linear.weight" in self.state
            strides = (1, 2, 2, 2, 2) if shared else (2, 2, 2)
            for i, stride in enumerate(strides):
                x = self.conv(x, f"{block}.convs.{2 * i}", stride, 1)
                x = torch.where(x > 0, x, 0.01 * x)
            if shared:
                code = self.get(f"{block}.linear.weight") @ x[0, :, 0, 0] / 32**0.5
                code = code + self.get(f"{block}.linear.bias")
                net = [self.get(f"{block}.hypernet.{k}") for k in ("w1", "b1", "w2", "b2")]
                hidden = (code @ net[2] + net[3]).reshape(out, 32)
                found[name] = (hidden @ net[0] + net[1]).reshape(out, inp, 3, 3)
            else:
                kernel = self.get(f"{block}.output.1.weight")[:, :, 0, 0]
                value = kernel @ x[0].mean((1, 2)) + self.get(f"{block}.output.1.bias")
                found[name] = value.reshape(out, inp, 1, 1).repeat(1, 1, 3, 3)
        return found

    def render(self, w: Tensor, factors: dict[str, Tensor]) -> Tensor:
        weights = {name: self.generator.weight(f"{name}.weight") for name in factors}
        delta = {
            f"{k}.weight": (weights[k] * (1 + s) - weights[k])[None] for k, s in factors.items()
        }
        return self.generator.synthesize(w, delta)

    def run(self, image: Tensor, w: Tensor) -> Tensor:
        total: dict[str, Tensor] = {}
        for _ in range(PASSES):
            picture = F.avg_pool2d(self.render(w, total), 2)
            for name, value in self.factors(F.avg_pool2d(image, 2), picture).items():
                total[name] = total.get(name, 0) + value
        return self.render(w, total)


@torch.no_grad()
def test_five_passes_equal_the_formulas(stage, inputs, pictures, file):
    images, ws, _ = inputs
    reference = Reference(file, stage.generator)
    for i in range(len(images)):
        wanted = reference.run(images[i : i + 1], ws[i : i + 1])
        torch.testing.assert_close(pictures[i : i + 1], wanted, rtol=1e-9, atol=1e-9)
    plain = stage.generator.synthesize(ws)
    assert 0.1 < (pictures - plain).std() / plain.std() < 2


def test_an_image_does_not_depend_on_its_batch(stage, inputs, refined):
    alone = stage.refine(*(value[1:] for value in inputs))
    for name, value in alone.state.items():
        torch.testing.assert_close(value, refined.state[name][1:], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_float32_agrees_with_float64(context, inputs, pictures):
    single = HyperStyle(HyperStyle.Options())
    single.setup(Context("cpu", context.generator, context.models))
    images, ws, masks = (value.float() for value in inputs)
    refinement = single.refine(images, ws, masks)
    # With 14 codes of 512 numbers, the published network's state has 28.7 kB.
    assert {k: (v.shape, v.dtype) for k, v in refinement.state.items()} == {
        "codes": ((2, 15, 32), torch.float32),
        "passes": ((2, 1), torch.uint8),
    }
    assert (refinement.state["passes"] == PASSES).all()
    difference = single.render(ws, refinement, masks) - pictures
    assert difference.abs().max() <= 1e-3 * pictures.abs().max()


@torch.no_grad()
def test_edits_keep_the_factors_and_move_the_code(stage, inputs, refined, file):
    _, ws, masks = (value[:1] for value in inputs)
    one = Refinement(state={name: value[:1] for name, value in refined.state.items()})
    found = stage.factors(one.state["codes"], one.state["passes"].double())
    factors = {stage.names[k].removesuffix(".weight"): s[0] for k, s in found.items()}
    wanted = Reference(file, stage.generator).render(ws + 0.5, factors)
    picture = stage.render_edit(ws, ws + 0.5, one, masks)
    torch.testing.assert_close(picture, wanted, rtol=1e-9, atol=1e-9)
    several = stage.render_edit(ws, torch.cat([ws, ws + 0.5, ws - 1]), one, masks)
    torch.testing.assert_close(several[1:2], picture, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(several[:1], stage.render(ws, one, masks), rtol=1e-9, atol=1e-9)
    offsets = {"convs.3.style": torch.ones(1, WIDTHS[2], dtype=torch.float64)}
    styled = stage.render_edit(ws, ws + 0.5, one, masks, offsets)
    assert not torch.allclose(styled, picture, atol=1e-3)


@torch.no_grad()
def test_rendering_loads_only_the_last_layers(context, inputs, refined, pictures):
    drawn = HyperStyle(HyperStyle.Options())
    assert drawn.render_models() == drawn.models(aligned=False) == {"hyperstyle-ffhq"}
    drawn.setup_render(Context("cpu", context.generator, context.models))
    assert not hasattr(drawn, "codes")
    drawn.generator.double()
    drawn.factors.double()
    assert torch.equal(drawn.render(inputs[1], refined, inputs[2]), pictures)


def test_other_generators_are_refused_with_a_way_out(context, tmp_path):
    refiner = HyperStyle(HyperStyle.Options())
    with pytest.raises(registry.InvalidInput, match=r"a StyleGAN2, and tiny is none") as error:
        refiner.setup_render(Context("cpu", "tiny", context.models))
    assert error.value.way_out == "choose generator=stylegan2-ffhq-1024 or another refiner"
    torch.save(narrow.hyperstyle((12, 12, 12, 8)), tmp_path / "a.pt")
    other = Context("cpu", context.generator, lambda name: tmp_path / "a.pt")
    with pytest.raises(registry.InvalidInput, match=r"a.pt has 12 x 12 factors for layer 0"):
        refiner.setup_render(other)
