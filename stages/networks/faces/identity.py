"""Face recognition networks, whose descriptors measure the similarity of faces.

ArcFace: Deng et al. (arXiv 1801.07698), the IR-SE50 of the identity losses of GAN inversion.
CurricularFace: Huang et al. (arXiv 2004.00288), the IR-101 of published identity tables. FaceNet:
Schroff et al. (arXiv 1503.03832), the InceptionResnetV1 of facenet-pytorch, trained on VGGFace2.
Each network crops the face as in its own evaluation protocol, because another crop gives other
numbers. The descriptor of dlib is in `dlib_face`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.transform import SimilarityTransform
from torch import Tensor, nn

from dhr_batch.stages.networks.encoders import psp as encoders
from dhr_batch.stages.networks.files import weight_files
from dhr_batch.stages.networks.transfers import to_device

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.detect import Detector, Face

SIDE = 112
WIDTH = 64
# Eyes, nose tip and mouth corners in a picture of 112 px, the template for training ArcFace.
TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
# Crop of an aligned picture of 256 px in the identity losses of pSp and e4e.
LOSS_SIDE = 256
LOSS_ROWS, LOSS_COLUMNS = slice(35, 223), slice(32, 220)
FACENET_SIDE = 160


class Portrait:
    """A picture whose face is detected only once, even if several networks need it.

    Args:
        rgb: The picture, uint8 [H, W, 3].
        landmarks: The 68 landmarks of dlib in its pixels, [68, 2], or None if no face was found.
    """

    def __init__(self, rgb: np.ndarray, landmarks: np.ndarray | None = None) -> None:
        self.rgb, self.landmarks = rgb, landmarks
        self._found: list[Face] | None = None

    def face(self, detector: Detector) -> Face | None:
        """Return the largest face that MTCNN finds, or None."""
        if self._found is None:
            self._found = detector.detect([self.rgb])[0]
        return self._found[0] if self._found else None


class Identity(Protocol):
    """A network for `measure.identity`. `label` names its model and crop in tables."""

    label: str

    def describe(self, portraits: Sequence[Portrait]) -> list[np.ndarray | None]:
        """Return the descriptor of each face, float [D], or None where no face is found."""
        ...


class IRBackbone(nn.Module):
    """Map faces [B, 3, 112, 112] in [-1, 1] to descriptors [B, 512] of length 1.

    Modules have the published names of their weights.

    Args:
        units: Number of blocks of the four stages.
        squeeze: Use IR-SE, whose blocks have squeeze-and-excitation and whose last normalisation is
            affine; otherwise IR, which has neither.
    """

    def __init__(self, units: Sequence[int], squeeze: bool) -> None:
        super().__init__()
        self.input_layer = encoders.input_layer(3, WIDTH)
        self.body = encoders.body(units, WIDTH, squeeze)
        last, side = 8 * WIDTH, SIDE // 16
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(last * side**2, 512),
            nn.BatchNorm1d(512, affine=squeeze),
        )

    def forward(self, faces: Tensor) -> Tensor:
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))))


def loss_crop(images: Tensor) -> Tensor:
    """Return the fixed crop of identity losses, [B, 3, 256, 256] -> [B, 3, 112, 112]."""
    return F.adaptive_avg_pool2d(images[:, :, LOSS_ROWS, LOSS_COLUMNS], SIDE)


def aligned_crop(rgb: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Warp five points [5, 2] to `TEMPLATE` by a similarity; return uint8 [112, 112, 3]."""
    transform = SimilarityTransform.from_estimate(points, TEMPLATE)
    return cv2.warpAffine(rgb, transform.params[:2], (SIDE, SIDE))


def box_crop(rgb: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Crop the box of a detector without a margin, resized to uint8 [160, 160, 3]."""
    height, width = rgb.shape[:2]
    left, top, right, bottom = (int(v) for v in np.clip(box, 0, (width, height, width, height)))
    face = Image.fromarray(rgb).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    size = (FACENET_SIDE, FACENET_SIDE)
    return np.asarray(face.resize(size, Image.Resampling.BILINEAR))


def _unit(rgb: np.ndarray) -> Tensor:
    """Convert uint8 [H, W, 3] to float32 [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


class Network(ABC):
    """A network on one crop of each picture."""

    def __init__(self, net: nn.Module, context: Context) -> None:
        self.net, self.device = net.to(context.device), context.device

    @torch.inference_mode()
    def describe(self, portraits: Sequence[Portrait]) -> list[np.ndarray | None]:
        """See `Identity`. The faces are described in one batch."""
        crops = [self._crop(portrait) for portrait in portraits]
        found = [crop for crop in crops if crop is not None]
        if not found:
            return [None] * len(crops)
        batch = to_device(torch.cat(found), self.device).float()
        descriptors = iter(self.net(batch).cpu().double().numpy())
        return [None if crop is None else next(descriptors) for crop in crops]

    @abstractmethod
    def _crop(self, portrait: Portrait) -> Tensor | None:
        """Return the input of the network, [1, 3, S, S] on the CPU, or None without a face."""


class ArcFace(Network):
    """ArcFace on a fixed crop, so every aligned picture has a descriptor."""

    label = "arcface-irse50, fixed crop of 256 px"

    def _crop(self, portrait: Portrait) -> Tensor:
        size = (LOSS_SIDE, LOSS_SIDE)
        image = Image.fromarray(portrait.rgb)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return loss_crop(_unit(np.asarray(image)))


class _Detected(Network):
    """A network on a crop of the face that MTCNN finds."""

    def __init__(self, net: nn.Module, context: Context) -> None:
        super().__init__(net, context)
        self.detector: Detector = context.network("detector", "mtcnn")

    def _crop(self, portrait: Portrait) -> Tensor | None:
        face = portrait.face(self.detector)
        return None if face is None else self._cut(portrait.rgb, face)

    @abstractmethod
    def _cut(self, rgb: np.ndarray, face: Face) -> Tensor:
        """Return the input of the network, float32 [1, 3, S, S], from uint8 [H, W, 3]."""


class CurricularFace(_Detected):
    """CurricularFace on a crop of 112 px, aligned by five points."""

    label = "curricularface-ir101, 112 px aligned by 5 points of MTCNN"

    def _cut(self, rgb: np.ndarray, face: Face) -> Tensor:
        return _unit(aligned_crop(rgb, face.points))


class FaceNet(_Detected):
    """FaceNet on the box of the face."""

    label = "facenet-vggface2, 160 px of MTCNN's box"

    def _cut(self, rgb: np.ndarray, face: Face) -> Tensor:
        # The network is trained on pictures scaled as (v - 127.5) / 128.
        return _unit(box_crop(rgb, face.box)) * (127.5 / 128)


def arcface(context: Context) -> ArcFace:
    """Load ArcFace from the model `arcface-irse50`, the published state dict."""
    units = encoders.UNITS
    return ArcFace(_backbone(context.models("arcface-irse50"), units, True), context)


def curricularface(context: Context) -> CurricularFace:
    """Load CurricularFace from the model `curricularface-ir101`, the published state dict."""
    units = (3, 13, 30, 3)
    net = _backbone(context.models("curricularface-ir101"), units, False)
    return CurricularFace(net, context)


def _backbone(path: Path, units: Sequence[int], squeeze: bool) -> IRBackbone:
    with torch.device("meta"):
        net = IRBackbone(units, squeeze)
    return weight_files.fill(net, weight_files.read(path), path)


def facenet(context: Context) -> FaceNet:
    """Load FaceNet from the model `facenet-vggface2`, the published state dict."""
    path = context.models("facenet-vggface2")
    # This import is slow, and most runs do not need it.
    from facenet_pytorch import InceptionResnetV1

    weights: Mapping[str, Tensor] = weight_files.read(path)
    with torch.device("meta"):
        net = InceptionResnetV1()
    weights = {k: v for k, v in weights.items() if not k.startswith("logits.")}
    return FaceNet(weight_files.fill(net, weights, path), context)
