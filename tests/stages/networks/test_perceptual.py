"""Perceptual distances against the published implementations."""

from __future__ import annotations

import json
import re
import socket

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dhr_batch.pipeline.models.catalogue import path
from dhr_batch.stages.context import Context
from dhr_batch.stages.measure.metrics import perceptual_distance
from dhr_batch.stages.networks import perceptual
from dhr_batch.stages.networks.perceptual import BlurPool, BlurredConv, PackageLPIPS, Perceptual


def load(golden, name):
    return np.load(golden / f"{name}.npz"), json.loads((golden / f"{name}.json").read_text())


def close(value, arrays, facts, key):
    value = value.detach().numpy().reshape(arrays[key].shape)
    assert np.abs(value - arrays[key]).max() <= facts["outputs"][key]["tolerance_abs"], key


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_st_lpips_equals_published(net, golden, models, fill):
    arrays, facts = load(golden, f"stlpips_{net}")
    distance = getattr(perceptual, f"st_lpips_{net}")(Context("cpu", "tiny", models))
    x, y = (
        2
        * F.avg_pool2d(torch.tanh(torch.from_numpy(fill(f"input.{k}", (1, 3, 128, 128)))), 5, 1, 2)
        for k in ("x0", "x1")
    )
    x.requires_grad_()
    errors = distance.maps(x, distance.features(y))
    value = torch.stack([error.mean() for error in errors]).sum()
    value.backward()

    assert distance.name == f"st_lpips_{net}"
    close(value, arrays, facts, "value")
    for i, error in enumerate(errors):
        close(error, arrays, facts, f"map{i}")
    close(x.grad[:, :, 48:80, 48:80], arrays, facts, "grad_crop")
    close(x.grad.double().square().sum(), arrays, facts, "grad_sumsq")


def filled_weights(facts, fill):
    """The fixture's tensors under the key names of the published weight files."""
    weights = {}
    for key, shape in facts["state_dict"]:
        name = re.sub(r"^\w+\.net\.layers\.", "features.", key)
        name = re.sub(r"^\w+\.lin\.(\d)\.1\.", r"lin\1.model.1.", name)
        if not key.endswith(("net.mean", "net.std")):
            weights[name] = torch.from_numpy(fill(key, shape, facts["fill_rules"]))
            if key in facts["fill_check"]:
                assert weights[name].flatten()[:3].tolist() == facts["fill_check"][key]
    return weights


@pytest.fixture
def offline(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("something was downloaded")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refused)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)


def lpips_files(facts, fill, net, folder):
    """A context whose models are files with the fixture's numbers."""
    weights = filled_weights(facts, fill)
    for model, start in ((f"lpips-{net}", "lin"), (f"lpips-{net}-backbone", "features")):
        part = {k: v for k, v in weights.items() if k.startswith(start)}
        torch.save(part | {"classifier.1.weight": torch.zeros(2)}, folder / model)
    return Context("cpu", "tiny", folder.joinpath)


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", ["perceptual", "lpips"])
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_published(net, family, golden, fill, tmp_path):
    arrays, facts = load(golden, f"lpips_{net}")
    context = lpips_files(facts, fill, net, tmp_path)
    draws = torch.random.get_rng_state()
    distance = context.network(family, f"lpips_{net}")
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert distance.name == f"lpips_{net}"

    x, y = (0.5 * torch.from_numpy(fill(f"in.{k}", (2, 3, 128, 128))) for k in ("x", "y"))
    x.requires_grad_()
    errors = distance.maps(x, distance.features(y))
    value = torch.stack([error.mean() for error in errors]).sum()
    value.backward()
    close(value, arrays, facts, "value")
    close(x.grad.double().square().sum(), arrays, facts, "grad_x_sumsq")
    for i, error in enumerate(errors):
        size = arrays[f"map_{i}"].shape[-1]
        close(F.avg_pool2d(error, error.shape[-1] // size), arrays, facts, f"map_{i}")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_reported_lpips_is_what_the_package_returns(net, golden, fill, tmp_path):
    facts = load(golden, f"lpips_{net}")[1]
    context = lpips_files(facts, fill, net, tmp_path)
    distance = context.network("lpips", f"lpips_{net}")
    assert isinstance(distance.network, lpips.LPIPS)
    x, y = torch.rand(2, 1, 3, 70, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = perceptual_distance(distance.maps(x, distance.features(y)))
    torch.testing.assert_close(whole, distance.network(x, y).flatten(), rtol=1e-6, atol=0)
    assert not any(p.requires_grad for p in distance.parameters())


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore:.*'pretrained'", "ignore:Arguments other than")
def test_the_linear_weights_are_those_that_the_package_loads():
    for net in ("alex", "vgg"):
        found = torch.load(path(f"lpips-{net}"), map_location="cpu", weights_only=True)
        own = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False).state_dict()
        assert sorted(found) == [f"lin{i}.model.1.weight" for i in range(5)]
        assert all(torch.equal(value, own[key]) for key, value in found.items())


def test_a_missing_weight_of_reported_lpips_is_named():
    weights = {f"lin{i}.model.1.weight": torch.ones(1, 1, 1, 1) for i in range(5)}
    with pytest.raises(ValueError, match=r"lpips_alex: the weights features\.0\.weight, "):
        PackageLPIPS("lpips_alex", weights)


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (32, 41), (41, 32)])
def test_blurred_convolution_is_blur_after_convolution(size):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 11, 11, generator=draw)
    bias, x = torch.randn(4, generator=draw), torch.randn(2, 3, *size, generator=draw)
    expected = BlurPool(4)(F.conv2d(x, weight, bias, padding=2))
    torch.testing.assert_close(BlurredConv(weight, bias)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def tiny():
    context = Context("cpu", "tiny", lambda name: pytest.fail(f"asked for {name}"))
    return context.network("perceptual", "tiny")


def test_distance_of_an_image_does_not_depend_on_its_batch(tiny):
    x, y = torch.rand(2, 3, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    target = tiny.features(y)
    together = tiny.distance(x, target)
    maps = tiny.maps(x, target)
    torch.testing.assert_close(together, torch.stack([m.mean((1, 2, 3)) for m in maps]).sum(0))
    alone = [tiny.distance(x[i : i + 1], tiny.features(y[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.shape == (3,)
    assert (together > 0).all()


def test_equal_images_have_distance_and_gradient_zero(tiny):
    x = torch.zeros(1, 3, 48, 48, requires_grad=True)
    distance = tiny.distance(x, tiny.features(x.detach()))
    distance.sum().backward()
    assert distance.item() == 0
    assert x.grad.abs().max() == 0


def test_weights_carry_no_gradient(tiny):
    assert not any(p.requires_grad for p in tiny.parameters())


def test_wrong_files_and_names_are_named():
    with pytest.raises(ValueError, match=r"lpips_squeeze: .* must end in _alex or _vgg"):
        Perceptual("lpips_squeeze", {})
    with pytest.raises(ValueError, match=r"lpips_vgg: expected 13 convolutions .* found 0"):
        Perceptual("lpips_vgg", {"conv1.weight": torch.zeros(1)})
    backbone = {f"features.{i}.weight": torch.zeros(8, 3, 3, 3) for i in range(5)}
    backbone |= {f"features.{i}.bias": torch.zeros(8) for i in range(5)}
    with pytest.raises(ValueError, match=r"linear weights are missing: lin0\.model\.1\.weight"):
        Perceptual("lpips_alex", backbone | {"lin1.model.1.weight": torch.ones(1)})
