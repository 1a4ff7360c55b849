"""The StyleGAN2 test bed: the parts of its training, and the shipped file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_batch.fitting.distill_pairs import HELD_OUT, codes
from dhr_batch.fitting.test_bed.figures import faces, figures, pictures, statistics
from dhr_batch.fitting.test_bed.pairs import Pairs, levels, student_rows
from dhr_batch.fitting.test_bed.student import Coordinates, coordinates, dense, student
from dhr_batch.fitting.test_bed.training import Trainer, size_at, train
from dhr_batch.fitting.test_bed.weights import fill, rms, rosinality
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.generators.stylegan2_layouts import named_tensors, read_checkpoint

Models = Callable[[str], Path]

WIDTHS = (8, 8, 8, 4)


@pytest.fixture(scope="module")
def teacher() -> MobileStyleGAN:
    """A small network with the mapping network and rows of the teacher."""
    net = MobileStyleGAN((8, 8, 8, 8, 8, 8), num_ws=23, feature_block=3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in net.weight_names():
            weight = net.weight(name)
            weight.copy_(torch.randn(weight.shape, generator=draw))
            if name.startswith("mapping.") and name.endswith("weight"):
                weight /= 512**0.5
    net.set_w_mean()
    with torch.no_grad():
        size = rms(net.synthesize(net.broadcast(net.w_mean[None])))
        for name in net.weight_names("to_img."):
            if "modulation" not in name:
                net.weight(name).mul_(0.3 / size)
    return net


@pytest.fixture
def trainer(teacher: MobileStyleGAN) -> Trainer:
    net = student(teacher, WIDTHS)
    return Trainer(net, coordinates(teacher), rate=1e-2)


def batch(teacher: MobileStyleGAN, num_ws: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ws = teacher.broadcast(teacher.map(torch.randn(4, 512, generator=draw), 0.7))
    coarse = torch.randn(4, 3, 4, 4, generator=draw)
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear") / 2
    return student_rows(ws, num_ws), images


def test_training_renders_what_the_network_renders(
    trainer: Trainer, teacher: MobileStyleGAN
) -> None:
    """Dense convolutions, coordinates of W and images of every size, against `synthesize`."""
    ws, _ = batch(teacher, trainer.net.num_ws)
    draw = torch.Generator().manual_seed(2)
    params = {n: t + 0.1 * torch.randn(t.shape, generator=draw) for n, t in trainer.tensors.items()}
    net = fill(trainer.net, params, trainer.space)
    params = {n: t.detach() for n, t in params.items()}
    with torch.no_grad():
        expected = net.synthesize(ws)
        made = dense(net, trainer.space.encode(ws), params, torch.float32)
        assert [x.shape[-1] for x in made] == [4, 8, 16, 32]
        # The network holds the weights in half precision.
        assert float((made[-1] - expected).square().mean().sqrt()) < 0.01 * rms(expected)
        fewer = dense(net, trainer.space.encode(ws[:, :6]), params, torch.float32)
    torch.testing.assert_close(fewer[-1], made[2])


def test_coordinates_of_w_change_the_form_of_a_modulation_and_not_its_styles() -> None:
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(256, 512, generator=draw) * torch.linspace(0.01, 3, 512) + 1
    space = Coordinates(w)
    weight, bias = torch.randn(4, 512, generator=draw), torch.randn(4, generator=draw)
    inner_weight, inner_bias = space.from_weights(weight, bias)
    styles = w @ weight.T / 512**0.5 + bias
    torch.testing.assert_close(space.encode(w) @ inner_weight.T + inner_bias, styles)
    back = space.to_weights(inner_weight, inner_bias)
    for value, expected in zip(back, (weight, bias), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)


def test_the_checkpoint_is_read_as_one_of_rosinality(trainer: Trainer, tmp_path: Path) -> None:
    net, file = fill(trainer.net, trainer.tensors, trainer.space), tmp_path / "net.pt"
    torch.save(rosinality(net), file)
    back, layout = read_checkpoint(file)
    assert layout == "rosinality"
    for name, tensor in named_tensors(net).items():
        torch.testing.assert_close(named_tensors(back)[name], tensor)


def test_steps_lower_the_loss_and_keep_kernels_at_unit_variance(
    trainer: Trainer, teacher: MobileStyleGAN
) -> None:
    ws, images = batch(teacher, trainer.net.num_ws)
    scores = [trainer.step(ws, images, 0.0, torch.float32) for _ in range(60)]
    assert scores[-1] > scores[0] + 2
    for name, tensor in trainer.tensors.items():
        if tensor.ndim == 4:
            assert rms(tensor) == pytest.approx(1, rel=1e-5), name


def test_training_continues_where_it_stopped(trainer: Trainer, teacher: MobileStyleGAN) -> None:
    ws, images = batch(teacher, trainer.net.num_ws)
    trainer.step(ws, images, 0.0, torch.float32)
    state = copy.deepcopy(trainer.state())
    net = student(teacher, WIDTHS)
    second = Trainer(net, coordinates(teacher), rate=1e-2)
    second.restore(state)
    for each in (trainer, second):
        each.step(ws, images, 0.1, torch.float32)
    assert second.steps == trainer.steps == 2
    for name, tensor in trainer.average.items():
        torch.testing.assert_close(second.average[name], tensor)


def test_an_interrupted_run_goes_on_and_publishes_its_averaged_weights(
    trainer: Trainer, teacher: MobileStyleGAN, tmp_path: Path
) -> None:
    published: list[Tensor] = []

    def publish(net: StyleGAN2) -> None:
        published.append(net.weight("conv1.weight").clone())

    checkpoint, pairs = tmp_path / "state.pt", Pairs(teacher, tmp_path, trainer.net.num_ws)
    train(trainer, pairs, 0.3, 4, 64, checkpoint, publish)
    assert len(pairs) == 64
    second = Trainer(trainer.net, trainer.space, rate=1e-2)
    second.restore(torch.load(checkpoint, weights_only=True))
    assert (second.steps, second.seconds) == (trainer.steps, trainer.seconds)
    assert second.steps > 0
    train(second, pairs, 0.0, 4, 64, checkpoint, publish)
    assert second.steps == trainer.steps
    assert torch.equal(*published)
    assert torch.equal(published[0], trainer.average["conv1.weight"].half().float())


def test_figures_and_statistics_are_those_of_the_network(
    trainer: Trainer, teacher: MobileStyleGAN
) -> None:
    class Finder:
        def locate(self, rgb: np.ndarray) -> tuple[np.ndarray, str]:
            return np.zeros(4), "hog" if rgb.shape == (32, 32, 3) else "ffhq"

    net = fill(trainer.net, trainer.tensors, trainer.space)
    ws = teacher.broadcast(teacher.map(torch.randn(2, 512)))
    made = pictures(net, ws)
    images = ((made.clamp(-1, 1) + 1) * 127.5).round().byte()
    found = figures(net, ws, images, Finder())  # type: ignore[arg-type]
    assert found.psnr > 45
    assert found.inner > 45
    assert found.faces == found.teacher_faces == 1
    lines = statistics(net, student_rows(ws, net.num_ws))
    assert len(lines) == 2 + net.convs
    feature = rms(net.to_feature(student_rows(ws, net.num_ws)))
    layer = f"convs.{net.feature_layer - 2}" if net.feature_layer > 1 else "conv1"
    line = next(line for line in lines if line.startswith(f"{layer} "))
    assert float(line.split()[1]) == pytest.approx(feature, abs=0.02)


def test_pairs_are_rendered_once_and_hold_the_codes_of_their_seeds(
    teacher: MobileStyleGAN, tmp_path: Path
) -> None:
    pairs = Pairs(teacher, tmp_path, 12)
    pairs.add()
    again = Pairs(teacher, tmp_path, 12)
    again.load()
    assert len(again) == len(pairs) == 64
    assert torch.equal(again.images, pairs.images)
    with torch.no_grad():
        ws = codes(teacher, 5)
        image = teacher.synthesize(ws)
    torch.testing.assert_close(pairs.ws[5:6], student_rows(ws, 12), rtol=1e-3, atol=1e-3)
    expected = torch.nn.functional.avg_pool2d(image, 2).clamp(-1, 1)
    error = levels(pairs.images[5:6], 128) - expected
    assert float(error.square().mean().sqrt()) < 0.05
    assert set(range(6000)).isdisjoint(HELD_OUT)


def test_larger_sizes_are_trained_later() -> None:
    sizes = [size_at(p, 128) for p in np.linspace(0, 1.2, 50)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (16, 128)
    assert size_at(1.5, 32) == 32


def test_the_made_file_is_a_generator_whose_faces_are_found(models: Models) -> None:
    """Skips unless `python -m dhr_batch.fitting.test_bed` has made the file."""
    models("stylegan2-test-bed")
    context = Context(device="cpu", generator="stylegan2-test-bed", models=models)
    net = context.network("generator", "stylegan2-test-bed")
    finder = context.network("landmarks", "dlib68")
    assert (net.resolution, net.num_ws) == (128, 12)
    z = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ws = net.broadcast(net.map(z, 0.7))
        assert faces(finder, net.synthesize(ws)) >= 0.9
        features = net.to_feature(ws)
    assert 0.2 < rms(features) < 2
    for name in net.weight_names():
        if net.weight(name).ndim == 4:
            assert rms(net.weight(name)) == pytest.approx(1, rel=0.01), name
