"""The embedded generator against an independent evaluation of the published IR."""

from __future__ import annotations

import copy
import json
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.generator import replace_feature
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN, inverse_haar
from dhr_batch.stages.networks.generators.openvino_ir import load_mobilestylegan
from dhr_batch.stages.networks.tiny import generator


def draw(key: str, *shape: int) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"dhr:{key}".encode())))
    return torch.tensor(rng.standard_normal(shape, dtype=np.float32))


@pytest.fixture(scope="module")
def net() -> MobileStyleGAN:
    def no_models(name):
        raise AssertionError("the tiny generator needs no model")

    return generator(Context("cpu", "tiny", no_models))


@torch.no_grad()
def test_published_generator_matches_golden(models, golden):
    net = load_mobilestylegan(models("mobilestylegan-ffhq"))
    want = np.load(golden / "mobilestylegan_ir.npz")
    limits = json.loads((golden / "mobilestylegan_ir.json").read_text())["outputs"]

    w = net.map(draw("input.z", 4, 512))
    mean = net.map(draw("input.z_mean", 4096, 512)).mean(0)
    ws = torch.stack([mean + 0.7 * (w[i % 4] - mean) for i in range(23)])[None]
    image = net.synthesize(ws)
    got = {
        "w": w,
        "w_mean_of_4096": mean,
        "image_64": F.avg_pool2d(image, 16),
        "image_crop32": image[:, :, 500:532, 500:532],
    }
    for block in (0, 3, 4):
        net.feature_block = block
        feature = net.to_feature(ws)[0]
        got[f"feature_block{block}_mean"] = feature.mean((1, 2))
        got[f"feature_block{block}_first"] = feature[:4, :8, :8]
    for name, value in got.items():
        difference = np.abs(value.numpy() - want[name]).max()
        assert difference <= limits[name]["tolerance_abs"], name


def test_inverse_haar_inverts_the_published_band_order():
    image = draw("haar", 2, 3, 8, 8)
    p, q = image[..., 0::2, 0::2], image[..., 0::2, 1::2]
    r, s = image[..., 1::2, 0::2], image[..., 1::2, 1::2]
    low = (p + q + r + s) / 2
    high = torch.stack([(p + q - r - s) / 2, (p - q + r - s) / 2, (p - q - r + s) / 2], 2)
    torch.testing.assert_close(inverse_haar(torch.cat([low, high.flatten(1, 2)], 1)), image)


@torch.no_grad()
def test_rows_outside_live_rows_have_no_effect(net):
    ws = net.broadcast(net.map(draw("z", 1, 512))).clone()
    image = net.synthesize(ws)
    for row in range(net.num_ws):
        moved = ws.clone()
        moved[:, row] += 1
        changed = not torch.equal(net.synthesize(moved), image)
        assert changed == (row in net.live_rows), row


@torch.no_grad()
def test_split_at_the_feature_layer_is_exact(net):
    ws = net.broadcast(net.map(draw("z", 2, 512)))
    image = net.synthesize(ws)
    feature = net.to_feature(ws)
    torch.testing.assert_close(net.from_feature(feature, ws), image)
    ones = torch.ones(2, 1, *feature.shape[2:])
    empty = torch.zeros_like(feature)
    kept = {net.feature_place: replace_feature(empty, ones)}
    torch.testing.assert_close(net.synthesize(ws, None, kept), image)
    replaced = net.synthesize(ws, None, {net.feature_place: replace_feature(empty, 0 * ones)})
    torch.testing.assert_close(replaced, net.from_feature(torch.zeros_like(feature), ws))


@torch.no_grad()
def test_per_image_weights_equal_single_images(net):
    net = copy.deepcopy(net).double()
    ws = net.broadcast(net.map(draw("z", 3, 512).double()))
    names = [n for n in net.weight_names() if not n.startswith("mapping.")]
    delta = {n: 0.1 * draw(n, 3, *net.weight(n).shape).double() for n in names}
    batch = net.synthesize(ws, delta)
    for i in range(3):
        single = net.synthesize(ws[i : i + 1], {n: d[i : i + 1] for n, d in delta.items()})
        torch.testing.assert_close(batch[i : i + 1], single)
    assert not torch.allclose(batch, net.synthesize(ws))


def test_every_synthesis_weight_gets_a_gradient(net):
    ws = net.broadcast(net.map(draw("z", 1, 512)))
    names = [n for n in net.weight_names() if not n.startswith("mapping.")]
    delta = {n: torch.zeros(1, *net.weight(n).shape, requires_grad=True) for n in names}
    net.synthesize(ws, delta).square().sum().backward()
    assert all(d.grad is not None and d.grad.abs().max() > 0 for d in delta.values())


def test_directions_of_other_lengths_are_mapped_or_refused(net):
    rows = torch.randn(18, 512)
    expanded = MobileStyleGAN.expand_direction(net, rows)
    assert torch.equal(expanded[2], rows[2])
    assert torch.equal(expanded[5], rows[4])
    with pytest.raises(ValueError, match=r"\[512\], \[8, 512\] or \[18, 512\]"):
        net.expand_direction(torch.randn(14, 512))


def test_wrong_code_shapes_are_named(net):
    with pytest.raises(ValueError, match=r"\[B, 8, 512\], got \[1, 18, 512\]"):
        net.synthesize(torch.zeros(1, 18, 512))
    ws = net.broadcast(net.w_mean[None].repeat(2, 1))
    with pytest.raises(ValueError, match="for 1 images, the codes for 2"):
        net.synthesize(ws, {"to_img.bias": torch.zeros(1, 12)})
