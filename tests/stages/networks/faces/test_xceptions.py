"""Two small classifiers: foreign layouts of weights, folded and quantised."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dhr_batch.stages.networks.faces import xceptions


def test_padding_is_tensorflows():
    x = torch.ones(1, 1, 5, 8)
    padded = xceptions._padded(x, 3, 2)[0, 0]
    assert padded.shape == (7, 9)
    assert padded[0].eq(0).all()
    assert padded[1:6, :8].eq(1).all()
    assert padded[:, 8].eq(0).all()


def layers(random: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Return weights of the layout of Keras."""
    norms = ("gamma", "beta", "moving_mean", "moving_variance")
    widths = [8, 8, *(w for w in (16, 32, 64, 128) for _ in range(3))]
    found = {
        f"batch_normalization_{i + 1}": {n: random.uniform(0.5, 1.5, width) for n in norms}
        for i, width in enumerate(widths)
    }
    found["conv2d_1"] = {"kernel": random.normal(0, 0.3, (3, 3, 1, 8))}
    found["conv2d_2"] = {"kernel": random.normal(0, 0.1, (3, 3, 8, 8))}
    steps = (8, 16, 32, 64, 128)
    for i, (inner, outer) in enumerate(itertools.pairwise(steps)):
        found[f"conv2d_{i + 3}"] = {"kernel": random.normal(0, 0.3, (1, 1, inner, outer))}
        for part, width in ((1, inner), (2, outer)):
            found[f"separable_conv2d_{2 * i + part}"] = {
                "depthwise_kernel": random.normal(0, 0.3, (3, 3, width, 1)),
                "pointwise_kernel": random.normal(0, 0.2, (1, 1, width, outer)),
            }
    found["conv2d_7"] = {"kernel": random.normal(0, 0.05, (3, 3, 128, 7)), "bias": np.arange(7.0)}
    return found


def reference(found: dict[str, dict[str, np.ndarray]], x: torch.Tensor) -> torch.Tensor:
    """Evaluate the layers one by one, without folding."""

    def conv(x, kernel, **more):
        return F.conv2d(x, torch.from_numpy(kernel).permute(3, 2, 0, 1), **more)

    def norm(x, number):
        own = {k: torch.from_numpy(v) for k, v in found[f"batch_normalization_{number}"].items()}
        statistics = own["moving_mean"], own["moving_variance"]
        return F.batch_norm(x, *statistics, own["gamma"], own["beta"], eps=1e-3)

    def separable(x, number):
        own = found[f"separable_conv2d_{number}"]
        kernel = torch.from_numpy(own["depthwise_kernel"]).permute(2, 3, 0, 1)
        return conv(F.conv2d(x, kernel, padding=1, groups=len(kernel)), own["pointwise_kernel"])

    for number in (1, 2):
        x = norm(conv(x, found[f"conv2d_{number}"]["kernel"]), number).relu()
    for i in range(4):
        beside = norm(conv(x, found[f"conv2d_{i + 3}"]["kernel"], stride=2), 3 * i + 3)
        x = norm(separable(x, 2 * i + 1), 3 * i + 4).relu()
        x = norm(separable(x, 2 * i + 2), 3 * i + 5)
        odd = [n % 2 for n in (x.shape[3], x.shape[2])]
        sides = (odd[0], 1, odd[1], 1)
        x = F.max_pool2d(F.pad(x, sides, value=-torch.inf), 3, 2) + beside
    x = conv(x, found["conv2d_7"]["kernel"], bias=torch.arange(7.0).double(), padding=1)
    return x.mean((2, 3)).softmax(1)


def test_batch_normalisations_are_folded():
    random = np.random.default_rng(0)
    found = layers(random)
    with torch.device("meta"):
        net = xceptions.Expressions()
    net = xceptions._filled(net, list(xceptions._folded(found)), Path("x.hdf5"))
    faces = torch.from_numpy(random.normal(0, 1, (2, 1, 64, 64)))
    expected = reference(found, faces)
    assert torch.allclose(net(faces.float()).double(), expected, atol=1e-4)
    assert expected.std() > 0.01


def archive(folder: Path, net: torch.nn.Module, quantised: bool) -> Path:
    """Write the weights of a network as TensorFlow.js does."""
    about, data = [], b""
    for name, tensor in net.state_dict().items():
        order = {4: (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
        array = tensor.permute(order[tensor.ndim]).numpy().astype("<f4")
        described = {"name": name, "shape": list(array.shape), "dtype": "float32"}
        if quantised and array.ndim > 1:
            low = float(array.min())
            scale = float(np.ptp(array)) / 255
            array = np.round((array - low) / scale).astype("u1")
            described["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
        about.append(described)
        data += array.tobytes()
    file = folder / "face-api.tgz"
    with tarfile.open(file, "w:gz") as made:
        for end, content in (
            ("-weights_manifest.json", json.dumps([{"weights": about}]).encode()),
            (".bin", data),
        ):
            member = tarfile.TarInfo(xceptions._FACE_API + end)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.parametrize(("quantised", "limit"), [(False, 1e-6), (True, 0.05)])
def test_weights_of_tensorflow_js(tmp_path, quantised, limit):
    torch.manual_seed(0)
    net = xceptions.AgeAndGender()
    faces = torch.randn(2, 3, 112, 112)
    read = xceptions.age_and_gender(archive(tmp_path, net, quantised))
    with torch.no_grad():
        difference = (read(faces) - net(faces)).abs().max()
    assert difference < limit
    assert read(faces).shape == (2, 3)


def test_another_archive_is_refused(tmp_path):
    file = archive(tmp_path, torch.nn.Conv2d(3, 32, 3), False)
    with pytest.raises(ValueError, match="holds 2 weights instead of"):
        xceptions.age_and_gender(file)
    with tarfile.open(file, "w:gz"):
        pass
    with pytest.raises(ValueError, match="does not hold package/model/age_gender_model"):
        xceptions.age_and_gender(file)
