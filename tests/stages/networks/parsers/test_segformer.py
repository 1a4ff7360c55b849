"""SegFormer against the published implementation, and its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.parsers import bisenet, farl, segformer
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.networks.parsers.segformer import ORDER, SegFormer, SegFormerParser


@pytest.fixture(scope="module")
def case(golden_case):
    return golden_case("segformer_b5")


@pytest.fixture(scope="module")
def state(case):
    return case.state()


@pytest.fixture(scope="module")
def parser(state, tmp_path_factory) -> SegFormerParser:
    file = tmp_path_factory.mktemp("segformer") / "model.safetensors"
    save_file(state, file)
    asked = []
    parser = segformer.segformer(Context("cpu", "tiny", lambda name: asked.append(name) or file))
    assert asked == ["segformer-face-parsing"]
    return parser


def test_logits_equal_published(parser, case):
    with torch.no_grad():
        logits = parser.net(case.input("image"))
    case.check("logits_32", F.avg_pool2d(logits, 4)[0])
    case.check("logits_crop", logits[0, :, 50:66, 75:91])
    assert (logits[0].argmax(0)[::2, ::2].numpy() == case.arrays["argmax"]).mean() > 0.999


def test_a_batch_gives_what_single_images_give(parser):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together, single = parser.net(images), torch.cat([parser.net(x[None]) for x in images])
    assert together.shape == (2, 19, 16, 24)
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-4)


class Corners(torch.nn.Module):
    """Logits at 128 px: skin in the left half and one class in the right half."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.nothing = index, torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        self.seen = images
        logits = torch.zeros(1, 19, 128, 128)
        logits[:, 1, :, :64] = 6
        logits[:, self.index, :, 64:] = 6
        return logits


def test_classes_are_those_of_the_published_configuration():
    labels = "background skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip"
    names = {"skin": "face", "eye_g": "glasses", "mouth": "inner_mouth", "u_lip": "upper_lip"}
    names |= {"l_lip": "lower_lip", "ear_r": "earring", "neck_l": "necklace"}
    sides = {"l": "left", "r": "right"}
    wanted = []
    for label in f"{labels} hair hat ear_r neck_l neck cloth".split():
        side, _, part = label.partition("_")
        wanted.append(names.get(label) or (f"{sides[side]}_{part}" if part else label))
    assert tuple(wanted) == ORDER
    assert sorted(ORDER) == sorted(CLASSES)
    probs = SegFormerParser(Corners(13)).parse(np.zeros((64, 64, 3), np.uint8))
    assert (probs.argmax(0)[:, 8] == INDEX["face"]).all()
    assert (probs.argmax(0)[:, 56] == INDEX["hair"]).all()


@pytest.mark.parametrize("size", [(64, 64), (640, 512)])
def test_logits_and_not_probabilities_are_resized(size):
    net = Corners(13)
    probs = SegFormerParser(net).parse(np.full((*size, 3), 255, np.uint8))
    assert net.seen.shape == (1, 3, 512, 512)
    torch.testing.assert_close(net.seen[0, 0], torch.full((512, 512), (1 - 0.485) / 0.229))
    wanted = F.interpolate(net(None), size=size, mode="bilinear", antialias=True).softmax(1)
    order = [ORDER.index(name) for name in CLASSES]
    np.testing.assert_allclose(probs, wanted[0, order].numpy(), atol=1e-6)


class NoSkin(Corners):
    """Logits at 128 px that are lower for skin than for the other classes."""

    def forward(self, images):
        return -torch.eye(19)[1].reshape(1, 19, 1, 1).expand(1, 19, 128, 128)


def test_no_skin_is_no_face():
    assert SegFormerParser(NoSkin(13)).parse(np.zeros((8, 8, 3), np.uint8)) is None


def small(state):
    """The same names and shapes without numbers, in a small file."""
    return {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"decode_head.classifier.bias": None},
            "SegFormer: decode_head.classifier.bias is missing",
        ),
        ({"extra": torch.zeros(1)}, "SegFormer: extra is unknown"),
        ({"decode_head.classifier.bias": torch.zeros(150)}, r"has shape \[150\], not \[19\]"),
    ],
)
def test_another_file_is_refused_by_its_key(state, monkeypatch, tmp_path, broken, message):
    changed = {k: v for k, v in (small(state) | broken).items() if v is not None}
    monkeypatch.setattr(segformer, "load_file", lambda path: changed)
    with pytest.raises(ValueError, match=message):
        segformer.load(tmp_path / "model.safetensors")


def test_files_of_other_parsers_are_refused(tmp_path):
    torch.save({"cp.resnet.conv1.weight": torch.zeros(1)}, tmp_path / "79999_iter.pth")
    with pytest.raises(ValueError, match=r"79999_iter.pth is not a safetensors file"):
        segformer.load(tmp_path / "79999_iter.pth")
    save_file({"decode_head.classifier.bias": torch.zeros(19)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors does not fit SegFormer: .* missing"):
        segformer.load(tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model.safetensors (does not fit BiSeNet|cannot be read)"
    ):
        bisenet.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or not a checkpoint"):
        farl.load(tmp_path / "model.safetensors")


def test_the_network_has_the_published_weights(case):
    with torch.device("meta"):
        wanted = [[key, list(value.shape)] for key, value in SegFormer().state_dict().items()]
    assert sorted(wanted) == sorted(case.facts["state_dict"])
