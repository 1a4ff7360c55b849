"""Taps: functions that change features at a place inside the synthesis, on both architectures."""

from __future__ import annotations

import copy

import pytest
import torch

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks import tiny
from dhr_batch.stages.networks.generators.generator import Generator, replace_feature
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2


def mobilestylegan() -> Generator:
    def no_models(name: str) -> None:
        raise AssertionError(f"asked for {name}")

    return tiny.generator(Context("cpu", "tiny", no_models)).double()  # type: ignore[arg-type]


def stylegan2() -> Generator:
    net = StyleGAN2((8, 6, 5, 4), mapping_layers=1).double()
    source = torch.Generator().manual_seed(0)
    for name in net.weight_names():
        net.weight(name).copy_(torch.randn(net.weight(name).shape, generator=source))
    return net


@pytest.fixture(params=[mobilestylegan, stylegan2], ids=["mobilestylegan", "stylegan2"])
def net(request: pytest.FixtureRequest) -> Generator:
    return request.param()


def codes(net: Generator) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(2, net.num_ws, 512, generator=source).double()


@torch.no_grad()
def test_features_at_a_place_have_the_shape_that_is_named_and_may_be_kept(
    net: Generator,
) -> None:
    seen = {}

    def keeping(place):
        return lambda x: seen.setdefault(place, x)

    ws = codes(net)
    image = net.synthesize(ws, None, {place: keeping(place) for place in net.places})
    assert torch.equal(image, net.synthesize(ws))
    assert list(seen) == list(net.places)
    assert {p: tuple(x.shape[1:]) for p, x in seen.items()} == {
        p: net.place_shape(p) for p in net.places
    }


@torch.no_grad()
def test_a_tap_at_any_place_changes_the_image(net: Generator) -> None:
    ws = codes(net)
    image = net.synthesize(ws)
    # In StyleGAN2, only the image layer follows the last convolution, and it reads the features
    # before a tap behind that.
    for place in net.places[: -1 if isinstance(net, StyleGAN2) else None]:
        changed = net.synthesize(ws, None, {place: lambda x: x + 1})
        assert not torch.allclose(changed, image), place


@torch.no_grad()
def test_a_tap_is_the_same_whichever_layer_is_the_feature_layer(net: Generator) -> None:
    ws = codes(net)
    for place in net.places:
        moved = copy.copy(net)
        if isinstance(moved, StyleGAN2):
            moved.feature_layer = net.places.index(place) + 1
        elif place[1] == "out" and place[0] > 4:
            moved.feature_block = [8 * 2**i for i in range(moved.blocks)].index(place[0])
        else:
            continue
        assert moved.feature_place == place
        feature = torch.ones(2, *net.place_shape(place)).double()
        mask = torch.full((2, 1, *feature.shape[2:]), 0.25).double()
        taps = {place: replace_feature(feature, mask)}
        inside, skip = moved.trunk(ws)
        expected = moved.from_feature(torch.lerp(feature, inside, mask), ws, None, skip)
        torch.testing.assert_close(net.synthesize(ws, None, taps), expected)


@torch.no_grad()
def test_the_image_layer_reads_features_before_a_tap_at_out_and_after_one_at_up() -> None:
    net = stylegan2()
    ws = codes(net)
    last = net.resolution
    image = net.synthesize(ws)
    assert torch.equal(net.synthesize(ws, None, {(last, "out"): lambda x: x + 1}), image)
    assert not torch.equal(net.synthesize(ws, None, {(last, "up"): lambda x: x + 1}), image)


def test_an_unknown_place_is_refused_with_the_existing_ones(net: Generator) -> None:
    with pytest.raises(ValueError, match=r"no features at \(7, 'up'\); choose from: \(4, 'out'"):
        net.synthesize(codes(net), None, {(7, "up"): lambda x: x})
    with pytest.raises(ValueError, match="no features at"):
        net.place_shape((net.resolution * 2, "up"))


@torch.no_grad()
def test_an_offset_of_styles_equals_one_of_the_bias_of_the_modulation(net: Generator) -> None:
    ws = codes(net)
    for name in net.weight_names():
        if name.endswith("modulation.bias"):
            layer = name.removesuffix(".modulation.bias")
            offset = torch.linspace(-1, 1, 2 * net.weight(name).numel()).double().reshape(2, -1)
            shifted = net.synthesize(ws, {f"{layer}.style": offset})
            torch.testing.assert_close(shifted, net.synthesize(ws, {name: offset}))
            assert not torch.allclose(shifted, net.synthesize(ws)), layer
