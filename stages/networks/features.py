"""Feature vectors of pictures, whose distributions are compared between sets of pictures.

FID (Heusel et al. 2017, arXiv 1706.08500) and KID (Binkowski et al. 2018, arXiv 1801.01401) compare
the last pooled layer of the Inception network of 2015. Other networks give other distances, which
are not called FID or KID.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.networks.files import weight_files
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.networks.transfers import to_device

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context


class Extractor(Protocol):
    """A network for `measure.features`."""

    def extract(self, rgb: np.ndarray) -> np.ndarray:
        """Return the features of a uint8 picture [H, W, 3] of any size, float32 [D]."""
        ...


class Inception:
    """The pooled layer of 2048 numbers, as torch-fidelity computes it for FID and KID.

    Pictures are resized to 299 px as in TensorFlow 1: bilinear, without antialiasing.
    """

    def __init__(self, network: torch.nn.Module, device: str) -> None:
        self.network, self.device = network.to(device), device

    @torch.inference_mode()
    def extract(self, rgb: np.ndarray) -> np.ndarray:
        (pooled,) = self.network(_batch(rgb, self.device))
        return pooled[0].cpu().numpy()


class Backbone:
    """Spatial means of the last layer of a perceptual network, before normalisation."""

    def __init__(self, network: Perceptual, device: str) -> None:
        self.network, self.device = network, device

    @torch.inference_mode()
    def extract(self, rgb: np.ndarray) -> np.ndarray:
        return self.network.pooled(_batch(rgb, self.device) / 127.5 - 1)[0].cpu().numpy()


def _batch(rgb: np.ndarray, device: str) -> Tensor:
    return to_device(torch.from_numpy(rgb.copy()), device).permute(2, 0, 1)[None]


def inception(context: Context) -> Inception:
    """Load Inception of 2015 from the model `inception-2015-12-05`, published by torch-fidelity."""
    path = context.models("inception-2015-12-05")
    # The package loads the file without protection, so first make sure that it holds only tensors.
    weight_files.read(path)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
    )
    return Inception(network, context.device)


def st_alex(context: Context) -> Backbone:
    """Load the shift-tolerant AlexNet of ST-LPIPS, 256 numbers."""
    return Backbone(context.network("perceptual", "st_lpips_alex"), context.device)


def tiny(context: Context) -> Backbone:
    """Load the small network with random weights, 32 numbers."""
    return Backbone(context.network("perceptual", "tiny"), context.device)
