"""BiSeNet against the published implementation, and as a parser."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.parsers import bisenet
from dhr_batch.stages.networks.parsers.bisenet import ORDER, BiSeNet, BiSeNetParser
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX


@pytest.fixture(scope="module")
def facts(golden):
    return json.loads((golden / "bisenet_19.json").read_text())


@pytest.fixture(scope="module")
def weights(facts, fill):
    return {
        key: torch.from_numpy(np.asarray(fill(key, shape, facts["fill_rules"])))
        for key, shape in facts["state_dict"]
    }


@pytest.fixture(scope="module")
def net(weights, tmp_path_factory) -> BiSeNet:
    file = tmp_path_factory.mktemp("bisenet") / "79999_iter.pth"
    torch.save(weights, file)
    return bisenet.bisenet(Context("cpu", "tiny", lambda name: file)).net


def test_logits_equal_published(net, golden, facts, fill):
    arrays, outputs = np.load(golden / "bisenet_19.npz"), facts["outputs"]
    with torch.no_grad():
        logits = net(torch.from_numpy(fill("in.image", (1, 3, 512, 512))))
    means = F.avg_pool2d(logits, 16)[0].numpy()
    assert np.abs(means - arrays["logits_32"]).max() <= outputs["logits_32"]["tolerance_abs"]
    crop = logits[0, :, 200:216, 300:316].numpy()
    assert np.abs(crop - arrays["logits_crop"]).max() <= outputs["logits_crop"]["tolerance_abs"]
    assert (logits[0].argmax(0)[::8, ::8].numpy() == arrays["argmax"]).mean() > 0.999


class Constant(torch.nn.Module):
    """Logits that are 9 for one class everywhere, and the input it was given."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.nothing = index, torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        self.seen = images
        logits = torch.zeros(1, 19, *images.shape[2:])
        logits[:, self.index] = 9
        return logits


def test_classes_come_in_the_order_of_the_project():
    assert sorted(ORDER) == sorted(CLASSES)
    # Skin is the network's class 1; the order is stated in its repository.
    probs = BiSeNetParser(Constant(1)).parse(np.zeros((8, 8, 3), np.uint8))
    assert (probs.argmax(0) == INDEX["face"]).all()
    assert ORDER[17] == "hair"
    assert ORDER[6] == "glasses"


def test_no_skin_is_no_face():
    assert BiSeNetParser(Constant(17)).parse(np.zeros((8, 8, 3), np.uint8)) is None


def test_input_is_normalised_as_imagenet():
    constant = Constant(1)
    BiSeNetParser(constant).parse(np.full((40, 40, 3), 255, np.uint8))
    assert constant.seen.shape == (1, 3, 512, 512)
    wanted = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(constant.seen[0, :, 100, 200], wanted)


@pytest.mark.parametrize("size", [64, 640])
def test_probabilities_have_the_size_of_the_image(size):
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    probs = BiSeNetParser(Constant(1)).parse(image)
    assert probs.shape == (19, size, size)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-4)


def test_another_file_is_refused_by_its_key(weights, tmp_path):
    file = tmp_path / "79999_iter.pth"
    torch.save({k: v for k, v in weights.items() if k != "cp.arm16.conv_atten.weight"}, file)
    with pytest.raises(ValueError, match=r"BiSeNet: cp.arm16.conv_atten.weight is missing"):
        bisenet.load(file)
