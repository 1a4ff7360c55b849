"""The distilled 256 px generator: its loader, its training data and its quality."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dhr_batch.fitting import distill, distill_pairs
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.mobilestylegan import (
    FFHQ_CHANNELS,
    MobileStyleGAN,
    inverse_haar,
)
from dhr_batch.stages.networks.generators.named import cut, distilled_tensors, load_distilled

Models = Callable[[str], Path]


@pytest.fixture(scope="module")
def published() -> MobileStyleGAN:
    """A network of the published shape with seeded random weights."""
    net = MobileStyleGAN(FFHQ_CHANNELS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in net.weight_names():
            weight = net.weight(name)
            weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return net


def test_cut_keeps_the_published_layers_and_has_the_agreed_shape(published: MobileStyleGAN) -> None:
    net = cut(published)
    assert (net.resolution, net.head_slot, net.feature_block, net.num_ws) == (256, 15, 3, 23)
    for name in net.weight_names("layers."):
        assert torch.equal(net.weight(name), published.weight(name)), name
    assert torch.equal(
        net.weight("to_img.modulation.weight"), published.weight("layers.5.up.modulation.weight")
    )


def test_exported_tensors_come_back_within_half_precision(
    published: MobileStyleGAN, tmp_path: Path
) -> None:
    net, file = cut(published), tmp_path / "net.safetensors"
    file.with_suffix(".yaml").write_text(f'  sha256: "{"0" * 64}"\n  size: 0\n')
    with torch.no_grad():
        for tensor in distilled_tensors(net).values():
            tensor.normal_()
    digest = distill.export(distilled_tensors(net), file, distill.ABOUT)

    back = load_distilled(cut(published), file)
    for name, tensor in distilled_tensors(net).items():
        assert torch.equal(distilled_tensors(back)[name], tensor.half().float()), name
    for block in range(4):
        for name in back.weight_names(f"layers.{block}."):
            assert torch.equal(back.weight(name), published.weight(name)), name
    description = file.with_suffix(".yaml").read_text()
    assert digest in description
    assert f"size: {file.stat().st_size}" in description


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_file_that_is_not_a_distilled_generator_is_refused_by_name(
    published: MobileStyleGAN, tmp_path: Path, fault: str
) -> None:
    file = tmp_path / "net.safetensors"
    tensors = {n: t.detach().half() for n, t in distilled_tensors(cut(published)).items()}
    if fault == "missing":
        del tensors["to_img.bias"]
    else:
        tensors["to_img.bias"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"net\.safetensors.*to_img\.bias"):
        load_distilled(cut(published), file)


def test_held_out_seeds_are_fixed_and_never_trained_on(published: MobileStyleGAN) -> None:
    assert len(distill_pairs.HELD_OUT) == 64
    option = next(p for p in distill.main.params if p.name == "pairs")
    assert set(range(int(option.default))).isdisjoint(distill_pairs.HELD_OUT)
    ws = distill_pairs.codes(published, distill_pairs.HELD_OUT[0])
    assert bool((ws == ws[:, :1]).all())
    assert torch.equal(ws, distill_pairs.codes(published, distill_pairs.HELD_OUT[0]))


def test_codes_that_change_inside_the_head_are_not_trained_on() -> None:
    ws = torch.zeros(1, 23, 512)
    for row, expected in ((0, True), (15, True), (16, False), (21, False), (22, True)):
        mixed = ws.clone()
        mixed[:, row:] = 1
        assert distill_pairs.uniform_in_head(mixed) is expected, row


def test_haar_is_the_inverse_of_inverse_haar() -> None:
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inverse_haar(distill_pairs.haar(image)), image)


def test_a_tint_and_a_grid_are_told_apart_and_noise_is_neither() -> None:
    flat = torch.full((1, 3, 64, 64), 0.1)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = flat * (1 - 2 * ((rows + columns) % 2))
    noise = 0.1 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    figures = [[float(part) for part in distill_pairs.coherent(e)] for e in (flat, board, noise)]
    np.testing.assert_allclose(figures[0], [0.04, 0], atol=1e-6)
    np.testing.assert_allclose(figures[1], [0, 0.04 / 3], atol=1e-6)
    assert max(figures[2]) < 0.01 / 32


def test_a_cropped_step_sees_what_the_whole_image_shows(published: MobileStyleGAN) -> None:
    """Inside the margin a crop is rendered as in the whole image, noise included."""
    net = cut(published)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in distilled_tensors(net).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        ws = torch.randn(1, 23, 512, generator=generator)
        x = torch.randn(1, 512, 64, 64, generator=generator)
        whole = net.from_feature(x, ws)
    top, left = 8, 0
    trainer = distill.Trainer(net, rate=0.0)
    score = trainer.step([(x[0].numpy(), ws, whole)], (top, left), progress=0.0)
    scale = float(10 * torch.log10(4 / whole.square().mean()))
    assert score - scale > 80
    shifted = F.pad(whole, (1, 0, 0, 0))[..., :256]
    assert trainer.step([(x[0].numpy(), ws, shifted)], (top, left), 0.0) - scale < 20


def test_training_continues_where_it_stopped(published: MobileStyleGAN) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = [
        (
            torch.randn(512, 64, 64, generator=generator).numpy().astype(np.float16),
            torch.randn(1, 23, 512, generator=generator),
            torch.randn(1, 3, 256, 256, generator=generator),
        )
    ]
    first = distill.Trainer(cut(published), rate=1e-2)
    first.step(batch, (0, 0), 0.0)
    state = copy.deepcopy(first.state())
    second = distill.Trainer(cut(published), rate=1e-2)
    second.restore(state)
    first.step(batch, (8, 8), 0.1)
    second.step(batch, (8, 8), 0.1)
    assert second.steps == first.steps == 2
    for name, tensor in first.average.items():
        torch.testing.assert_close(second.average[name], tensor)


def test_the_shipped_generator_matches_its_teacher_on_a_held_out_seed(models: Models) -> None:
    context = Context(device="cpu", generator="mobilestylegan-256", models=models)
    student = context.network("generator", "mobilestylegan-256")
    teacher = context.network("generator", "mobilestylegan-1024")
    with torch.no_grad():
        ws = distill_pairs.codes(teacher, distill_pairs.HELD_OUT[3])
        image, target = student.synthesize(ws), F.avg_pool2d(teacher.synthesize(ws), 4)
    assert image.shape == target.shape == (1, 3, 256, 256)
    assert distill_pairs.psnr(image, target) >= 28


def test_the_shipped_file_holds_only_what_differs(models: Models) -> None:
    stored = load_file(models("mobilestylegan-256"))
    assert {str(t.dtype) for t in stored.values()} == {"torch.float16"}
    assert all(n.startswith(("layers.4.", "to_img.", "noise.layers.4.")) for n in stored)
