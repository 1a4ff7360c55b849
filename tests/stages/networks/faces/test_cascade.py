"""MTCNN: the same faces as by its package, with as many waits for few candidates as for many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhr_batch.stages.networks.faces import cascade, detect


@pytest.fixture(scope="module")
def net():
    return detect.Detector("cpu").net


def found(net, pictures: np.ndarray):
    with torch.inference_mode():
        return cascade.detect(net, torch.from_numpy(pictures))


def test_faces_are_those_of_the_package(net, astronaut):
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    # A face at the edge, and two in one picture.
    cut = np.roll(astronaut, -190, 1)
    both = np.concatenate([astronaut[:256, 96:352], mirrored[:256, 160:416]], 1)
    both = np.concatenate([both, both[::-1]])
    pictures = np.stack([astronaut, mirrored, cut, both, np.zeros_like(astronaut)])
    boxes, scores, points = net.detect(pictures, landmarks=True)
    assert [0 if b is None else len(b) for b in boxes] == [1, 1, 1, 2, 0]
    for i, of_image in enumerate(found(net, pictures)):
        order = np.argsort(-of_image[1])
        if boxes[i] is None:
            assert [len(part) for part in of_image] == [0, 0, 0]
            continue
        wanted = np.argsort(-scores[i])
        for part, expected in zip(of_image, (boxes[i], scores[i], points[i]), strict=True):
            expected = np.asarray(expected, np.float64)[wanted]
            np.testing.assert_allclose(part[order], expected, rtol=0, atol=0.01)


def test_crops_are_area_means(net):
    """Also those of boxes that are smaller than a crop or reach over the edge of the picture."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 70, 90, 3), np.uint8)
    boxes = torch.tensor([[11.0, 3, 80, 60], [5, 5, 12, 17], [-8, 40, 30, 99], [-9, -9, 0, 0]])
    kept, images = cascade._visible(boxes, torch.zeros(4, dtype=torch.long), (70, 90))
    assert kept.tolist() == boxes[:3].tolist()
    seen = []

    def network(crops):
        seen.append(crops)
        return (crops.flatten(1)[:, :4], crops.flatten(1)[:, 4:6])

    sums = cascade._sums(torch.from_numpy(picture))
    outputs = cascade._looked_at(network, sums, kept, images, 24)
    assert [part.shape for part in outputs] == [(3, 4), (3, 2)]
    levels = torch.from_numpy(picture).permute(0, 3, 1, 2).float()
    # Boxes count from 1.
    for crop, (left, top, right, bottom) in zip(
        seen[0], ((10, 2, 80, 60), (4, 4, 12, 17), (0, 39, 30, 70)), strict=True
    ):
        area = levels[..., top:bottom, left:right]
        expected = torch.nn.functional.adaptive_avg_pool2d(area, 24)[0]
        torch.testing.assert_close(crop, (expected - 127.5) * 0.0078125, atol=1e-5, rtol=0)


def test_waits_do_not_depend_on_the_number_of_candidates(net, astronaut, monkeypatch):
    waits = []
    back = torch.Tensor.cpu

    def counted(tensor):
        waits.append(tensor.shape)
        return back(tensor)

    counts = []
    face = astronaut[:256, 96:352]
    for picture in (face, np.tile(face, (2, 3, 1))):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "cpu", counted)
            faces = found(net, picture[None])[0][0]
        counts.append((len(faces), len(waits)))
        waits.clear()
    (few, once), (many, again) = counts
    assert few < many
    # One after each network, and two in a function of the package that works on the CPU.
    assert once == again == 5
