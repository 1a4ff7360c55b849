"""FaRL against the published implementation, its crop, and its file, whose code is never run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.faces.detect import Face
from dhr_batch.stages.networks.parsers import bisenet, farl
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.networks.parsers.farl import FaRL, FaRLParser

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def published_state(case) -> dict[str, torch.Tensor]:
    """The filled weights of a fixture. The numbers of the normalisation are not filled."""
    constants = {"image_mean": MEAN, "image_std": STD}
    return {
        key: torch.tensor(constants[last]).reshape(1, 3, 1, 1)
        if (last := key.rpartition(".")[2]) in constants
        else case.tensor(key, shape)
        for key, shape in case.facts["state_dict"]
    }


@pytest.fixture(scope="module")
def narrow(golden_case):
    return golden_case("farl_448_narrow")


@pytest.fixture(scope="module")
def state(narrow):
    return published_state(narrow)


@pytest.fixture(scope="module")
def net(state, scripted) -> FaRL:
    return farl.load(scripted(state))


def check(case, net) -> None:
    image = case.input("image")
    with torch.no_grad():
        features = [F.adaptive_avg_pool2d(x, 2)[0].flatten() for x in net.backbone(image)]
        logits = net(image)
    case.check("features_4", torch.stack(features))
    case.check("logits_32", F.avg_pool2d(logits, 16)[0])
    case.check("logits_crop", logits[0, :, 200:216, 300:316])
    assert (logits[0].argmax(0)[::8, ::8].numpy() == case.arrays["argmax"]).mean() > 0.999


def test_logits_equal_published(net, narrow):
    check(narrow, net)


@pytest.mark.slow
def test_logits_of_the_published_size_equal_published(golden_case, scripted):
    case = golden_case("farl_448")
    check(case, farl.load(scripted(published_state(case))))


def test_the_published_size_has_the_published_weights(golden_case):
    with torch.device("meta"):
        wanted = [[key, list(value.shape)] for key, value in FaRL().state_dict().items()]
    listed = golden_case("farl_448").facts["state_dict"]
    assert sorted(wanted) == sorted(row for row in listed if not row[0].startswith(farl.UNUSED))


def test_a_batch_gives_what_single_crops_give(net):
    crops = torch.rand(2, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together, single = net(crops), torch.cat([net(crop[None]) for crop in crops])
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------- geometry


def test_crop_and_way_back_equal_published(golden_case):
    case = golden_case("farl_align")
    base = np.array([[98, 120], [160, 118], [130, 152], [106, 186], [152, 184]])
    matrix = farl.crop_matrix(base + case.input("points").numpy())
    case.check("matrix", torch.from_numpy(matrix))
    image = F.interpolate(case.input("image"), size=(240, 256), mode="bilinear")
    crop = farl.warp(image, np.linalg.inv(matrix), (448, 448))
    case.check("crop_64", F.avg_pool2d(crop, 7)[0])
    case.check("crop_rows", crop[0, :, 220:224, 200:260])
    logits = F.interpolate(case.input("logits"), size=(512, 512), mode="bilinear")
    back = farl.warp(logits, np.diag([512 / 448, 512 / 448, 1]) @ matrix, (240, 256))
    case.check("logits", F.avg_pool2d(back, 8)[0])
    case.check("logits_rows", back[0, :, 100:102, 90:150])


def turned_face(side: int, degrees: float) -> np.ndarray:
    """Five points of an upright face in a picture, turned about its middle."""
    points = np.array([(-0.13, -0.06), (0.13, -0.06), (0, 0.08), (-0.1, 0.22), (0.1, 0.22)])
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (points @ np.array([(c, s), (-s, c)]) + 0.5) * side


class Faces:
    """A detector of given faces."""

    def __init__(self, *points: np.ndarray) -> None:
        self.found = [Face(np.array([0.0, 0, 9, 9]), 0.99, p) for p in points]

    def detect(self, images):
        return [self.found for _ in images]


class Shows(nn.Module):
    """A network that calls red places skin and the rest background, and keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, crops):
        self.seen = crops
        logits = torch.zeros(1, 19, 512, 512)
        red = F.interpolate(crops, size=(512, 512), mode="bilinear")[:, 0]
        logits[:, INDEX["face"]] = 40 * (red - 0.5)
        return logits


@pytest.mark.parametrize(("side", "degrees"), [(256, 0), (256, 25), (1024, -10)])
def test_what_the_network_sees_comes_back_where_it_was(side, degrees):
    rows, columns = np.mgrid[:side, :side] + 0.5
    centre, radius = np.array([0.44, 0.57]) * side, 0.19 * side
    distance = np.hypot(columns - centre[0], rows - centre[1])
    red = np.clip(radius - distance + 0.5, 0, 1)
    image = np.zeros((side, side, 3), np.uint8)
    image[..., 0] = np.round(255 * red)
    points = turned_face(side, degrees)
    mask = FaRLParser(Shows(), Faces(points)).parse(image).argmax(0) == INDEX["face"]
    found = np.array([columns[mask].mean(), rows[mask].mean()])
    # Side of a pixel of the crop in pixels of the picture, of which a grid without the halves of
    # pixel centres would displace it by half.
    coarse = 1 / np.sqrt(np.linalg.det(farl.crop_matrix(points)))
    assert np.abs(found - centre).max() < 0.1 * max(1, coarse)
    assert abs(mask.sum() / (np.pi * radius**2) - 1) < 0.01


def test_the_crop_stands_upright_and_shows_the_template():
    shows, points = Shows(), turned_face(512, 40)
    image = np.zeros((512, 512, 3), np.uint8)
    for x, y in np.round(points).astype(int):
        image[y - 6 : y + 7, x - 6 : x + 7] = 255
    FaRLParser(shows, Faces(points)).parse(image)
    eyes = shows.seen[0, 0, 190:210]
    columns = torch.nonzero(eyes.amax(0) > 0.5)[:, 0].float()
    left, right = columns[columns < 224].mean(), columns[columns > 224].mean()
    # The eyes of the template are 120 of 512 apart, reduced by .8 in a crop of 448.
    assert abs(float(right - left) - 120 / 256 * 0.8 * 447 / 2) < 6
    assert abs(float(right + left) / 2 - 224) < 6


def test_the_largest_face_is_parsed():
    shows, image = Shows(), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    large, other = turned_face(64, 0), turned_face(64, 90)
    FaRLParser(shows, Faces(large, other)).parse(image)
    seen = shows.seen
    FaRLParser(shows, Faces(large)).parse(image)
    assert torch.equal(seen, shows.seen)
    FaRLParser(shows, Faces(other)).parse(image)
    assert not torch.equal(seen, shows.seen)


@pytest.mark.parametrize("shape", [(64, 64), (100, 80)])
def test_probabilities_have_the_size_of_the_image(shape):
    probs = FaRLParser(Shows(), Faces(turned_face(64, 0))).parse(np.zeros((*shape, 3), np.uint8))
    assert (probs.shape, probs.dtype) == ((19, *shape), np.float32)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)


def test_no_face_is_no_parse():
    assert FaRLParser(Shows(), Faces()).parse(np.zeros((64, 64, 3), np.uint8)) is None


def test_classes_are_those_of_the_published_list():
    published = "background neck face cloth rr lr rb lb re le nose imouth llip ulip hair glass hat"
    names = {"rr": "right_ear", "lr": "left_ear", "rb": "right_brow", "lb": "left_brow"}
    names |= {"re": "right_eye", "le": "left_eye", "imouth": "inner_mouth", "llip": "lower_lip"}
    names |= {"ulip": "upper_lip", "glass": "glasses", "earr": "earring", "neckl": "necklace"}
    assert tuple(names.get(n, n) for n in f"{published} earr neckl".split()) == CLASSES


# ------------------------------------------------------------------------------------- the file


def test_the_parser_is_chosen_by_name_with_its_models(state, scripted, astronaut):
    file = scripted(state)
    asked = []
    parser = farl.farl(Context("cpu", "tiny", lambda name: asked.append(name) or file))
    assert asked == ["farl-celebm-448"]
    probs = parser.parse(astronaut)
    assert probs.shape == (19, 512, 512)
    assert parser.parse(np.zeros((256, 256, 3), np.uint8)) is None


def test_a_traced_network_is_read_like_a_scripted_one(net, tmp_path):
    crops = torch.rand(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(net, crops, check_trace=False), tmp_path / "farl.pt")
        assert torch.equal(farl.load(tmp_path / "farl.pt")(crops), net(crops))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"head.head.conv_seg.bias": None}, r"FaRL: head.head.conv_seg.bias is missing"),
        ({"backbone.extra": torch.zeros(1)}, r"FaRL: backbone.extra is unknown"),
        (
            {"head.head.conv_seg.weight": torch.zeros(11, 96, 1, 1)},
            r"conv_seg.weight has shape \[11, 96, 1, 1\], not \[19, 96, 1, 1\]",
        ),
        ({"backbone.visual.conv1.weight": None}, r"has no 'backbone.visual.conv1.weight', only: "),
    ],
)
def test_another_archive_is_refused_by_its_key(state, scripted, broken, message):
    changed = {k: v for k, v in (state | broken).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        farl.load(scripted(changed))


def test_files_of_other_parsers_are_refused(state, scripted, tmp_path):
    file = tmp_path / "79999_iter.pth"
    torch.save({"cp.resnet.conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    with pytest.raises(ValueError, match=r"79999_iter.pth .*: it is not a TorchScript archive"):
        farl.load(file)
    file.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"79999_iter.pth is damaged or not a checkpoint"):
        farl.load(file)
    with pytest.raises(ValueError, match=r"farl.pt cannot be read as weights: .*TorchScript"):
        bisenet.load(scripted(state))
