"""HFGI: what is stored, how pictures and edits are rendered from it, and what is refused.

The networks themselves are compared with the published code in `networks/encoders/test_hfgi`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.encoders import hfgi
from dhr_batch.stages.networks.encoders import psp as encoders
from dhr_batch.stages.refine.base import Refinement
from dhr_batch.stages.refine.hfgi import ResidualConditions
from dhr_batch.stages.registry import InvalidInput
from dhr_batch.tests.stages import narrow

# 4 to 64 px, and the rows of its codes.
WIDTHS, ROWS = (16,) * 5, 10
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "hfgi.pt"
    torch.save(narrow.hfgi(16, ROWS), path)
    return path


def refiner(file: Path, widths: tuple[int, ...] = WIDTHS) -> ResidualConditions:
    context = Context("cpu", "narrow", lambda name: file)
    context._networks["generator", "narrow"] = narrow.stylegan2(widths)
    stage = ResidualConditions(ResidualConditions.Options())
    stage.setup(context)
    return stage


@pytest.fixture(scope="module")
def stage(file: Path) -> ResidualConditions:
    return refiner(file)


def batch(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Photographs, codes and masks."""
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 64, 64, generator=draw) * 2 - 1
    ws = torch.randn(count, ROWS, 512, generator=draw)
    return images, ws, torch.ones(count, 1, 64, 64)


def published(
    stage: ResidualConditions, residual: Tensor, ws: Tensor, styles: dict[str, Tensor] | None = None
) -> Tensor:
    """The formula of the publication, written out for codes and a residual at 256 px."""

    def large(x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, size=(256, 256), mode="bilinear")

    render = large(stage.generator.synthesize(ws, styles).clamp(-1, 1))
    scale, shift = stage.consult(stage.align(torch.cat([residual, render], 1)))
    return stage.generator.synthesize(ws, styles, {(64, "up"): lambda h: h * (1 + scale) + shift})


@torch.no_grad()
def test_the_residual_is_stored_and_conditions_the_picture(stage: ResidualConditions) -> None:
    images, ws, masks = batch()
    found = stage.refine(images, ws, masks)
    residual = found.state["residual"]
    assert (found.delta, found.feature, list(found.state)) == ({}, None, ["residual"])
    assert (tuple(residual.shape), residual.dtype) == ((3, 3, 256, 256), torch.float16)
    inverted = hfgi.resized(stage.generator.synthesize(ws).clamp(-1, 1))
    wanted = hfgi.resized(images) - inverted
    torch.testing.assert_close(residual.float(), wanted, atol=1e-3, rtol=1e-3)
    refined = stage.render(ws, found, masks)
    torch.testing.assert_close(refined, published(stage, residual.float(), ws))
    assert (refined - stage.generator.synthesize(ws)).abs().mean() > 0.05


@torch.no_grad()
def test_the_stored_type_costs_a_fraction_of_a_grey_level(stage: ResidualConditions) -> None:
    images, ws, masks = batch()
    found = stage.refine(images, ws, masks)
    inverted = hfgi.resized(stage.generator.synthesize(ws).clamp(-1, 1))
    exact = published(stage, hfgi.resized(images) - inverted, ws)
    levels = (stage.render(ws, found, masks) - exact).abs() * 127.5
    assert levels.mean() < 0.1
    assert levels.max() < 2


@torch.no_grad()
def test_an_edit_aligns_the_residual_to_its_own_render(stage: ResidualConditions) -> None:
    images, ws, masks = batch(1)
    found = stage.refine(images, ws, masks)
    edited = ws + 0.5 * torch.randn(3, 1, 512, generator=torch.Generator().manual_seed(2))
    residual = found.state["residual"].float()
    picture = stage.render_edit(ws, edited, found, masks)
    torch.testing.assert_close(picture, published(stage, residual.expand(3, -1, -1, -1), edited))
    styles = {"convs.2.style": torch.ones(3, 16)}
    moved = stage.render_edit(ws, edited, found, masks, styles)
    expected = published(stage, residual.expand(3, -1, -1, -1), edited, styles)
    torch.testing.assert_close(moved, expected)
    assert (moved - picture).abs().mean() > 0.01


@torch.no_grad()
def test_images_and_strengths_of_a_batch_are_independent(stage: ResidualConditions) -> None:
    images, ws, masks = batch()
    together = stage.refine(images, ws, masks)
    refined = stage.render(ws, together, masks)
    for i in range(3):
        one = slice(i, i + 1)
        alone = stage.refine(images[one], ws[one], masks[one])
        torch.testing.assert_close(
            alone.state["residual"][0], together.state["residual"][i], atol=2e-3, rtol=2e-3
        )
        own = Refinement(state={"residual": together.state["residual"][one]})
        torch.testing.assert_close(
            stage.render(ws[one], own, masks[one])[0], refined[i], atol=1e-4, rtol=1e-4
        )
    first = Refinement(state={"residual": together.state["residual"][:1]})
    codes = torch.cat([ws[:1] + s for s in (-0.1, 0.0, 0.1)])
    pictures = stage.render_edit(ws[:1], codes, first, masks[:1])
    for i in range(3):
        alone_picture = stage.render_edit(ws[:1], codes[i : i + 1], first, masks[:1])
        torch.testing.assert_close(alone_picture[0], pictures[i], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_mask_has_no_effect(stage: ResidualConditions) -> None:
    images, ws, masks = batch(1)
    one, other = (stage.refine(images, ws, m).state["residual"] for m in (masks, 0 * masks))
    assert torch.equal(one, other)


def changed(tmp_path: Path, change: Change) -> Path:
    content = narrow.hfgi(16, ROWS)
    change(content)
    torch.save(content, tmp_path / "hfgi.pt")
    return tmp_path / "hfgi.pt"


@torch.no_grad()
def test_files_of_parallel_training_are_the_same(stage: ResidualConditions, tmp_path: Path) -> None:
    def parallel(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        content["state_dict"] = {
            name.replace(".", ".module.", 1): value for name, value in state.items()
        }
        content["opts"] = Namespace(start_from_latent_avg=True)

    other = refiner(changed(tmp_path, parallel))
    images, ws, masks = batch(1)
    found = stage.refine(images, ws, masks)
    assert torch.equal(other.render(ws, found, masks), stage.render(ws, found, masks))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("state_dict"), r"hfgi\.pt has no 'state_dict', only: latent_avg, opts"),
        (
            lambda c: c.update(state_dict={"encoder.a": torch.zeros(1)}),
            r"hfgi\.pt has no weights grid_align\.\*, only: encoder\.\*",
        ),
        (
            lambda c: c["state_dict"].pop("residue.conv_layer3.2.res_layer.2.weight"),
            r"hfgi\.pt does not fit Consultation: conv_layer3\.2\.res_layer\.2\.weight is missing",
        ),
        (
            lambda c: c["state_dict"].pop("residue.condition_scale3.0.bias"),
            r"hfgi\.pt has no 'condition_scale3.0.bias'",
        ),
        (
            lambda c: c["state_dict"].update({"grid_align.extra": torch.zeros(1)}),
            r"hfgi\.pt does not fit Aligner: extra is unknown",
        ),
        (
            lambda c: c["state_dict"].update(
                {"grid_align.dconv_layer1.0.res_layer.1.weight": torch.zeros(64, 64, 3, 3)}
            ),
            r"dconv_layer1\.0\.res_layer\.1\.weight has shape \[64, 64, 3, 3\], not \[64, 112, 3,",
        ),
    ],
)
def test_wrong_files_are_named(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        refiner(changed(tmp_path, change))


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "hfgi.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"hfgi\.pt cannot be read as weights"):
        refiner(tmp_path / "hfgi.pt")


@pytest.mark.parametrize("widths", [(16, 16, 16, 16), (16, 16, 16, 16, 8)])
def test_generators_with_other_features_are_refused(file: Path, widths: tuple[int, ...]) -> None:
    with pytest.raises(
        InvalidInput, match=r"hfgi-ffhq changes the 16 channels .* at 64 px.*narrow.*set generator="
    ):
        refiner(file, widths)


def test_generators_of_another_kind_are_refused(file: Path) -> None:
    stage = ResidualConditions(ResidualConditions.Options())
    with pytest.raises(InvalidInput, match=r"StyleGAN2 at 64 px, which the generator tiny does"):
        stage.setup(Context("cpu", "tiny", lambda name: file))


def test_models_are_named_for_runs_and_for_renders() -> None:
    stage = ResidualConditions(ResidualConditions.Options(model="mine"))
    assert stage.models(aligned=True) == stage.render_models() == {"mine"}


def test_the_encoder_in_the_file_is_read_as_e4e(file: Path) -> None:
    net, mean = encoders.load(file, shared=True)
    content = torch.load(file, weights_only=True)
    assert (net.heads, net.shared) == (ROWS, True)
    assert torch.equal(mean, content["latent_avg"])
    wanted = content["state_dict"]["encoder.styles.1.linear.weight"]
    assert torch.equal(net.state_dict()["styles.1.linear.weight"], wanted)
