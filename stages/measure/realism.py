"""How natural the mouth of a rendered face looks.

Edits of a refined generator either lose structure, where a mouth smears, or add some that no mouth
has, such as a second row of teeth or a grid. Both change the contrast of structures against the
photograph. It is compared in the middle of the mouth, in two octaves of size. Finer detail is left
out, so that neither sharpness nor the size of the generator counts.

The rule is our own, found by comparing pictures that had been sorted by eye. The command
`benchmarks.realism` prints how well values agree with such labels (docs/decisions/metrics.md).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.transfers import to_device
from dhr_batch.stages.tensors import to_unit

# The distance of the eyes, to which mouths are scaled, and the border that blurring needs.
_EYES, _BORDER = 64.0, 20
# Half width and half height of the compared region, around the middle of the mouth.
_REGION = (14, 18)
# Standard deviations of Gaussians. Each octave is the difference of two of them.
_SIGMAS = (1.6, 3.2, 6.4)
# Luma and colour differences of ITU-R BT.601.
_CHANNELS = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
# Structures with less energy than this, in squared 8-bit levels, cannot be seen.
_FLOOR = 0.13


@torch.inference_mode()
def realism(pictures: np.ndarray, landmarks: np.ndarray, device: str) -> np.ndarray:
    """Return the realism of renders of a photograph, at most 0; higher is better.

    With the energies E, the mean squares of the structures in channel c and octave o,

        realism = -mean over c and o of |ln((E(render) + f) / (E(photograph) + f))| / 2

    with f = 0.13, so that structures that cannot be seen do not count. Hence -0.69 means that
    structures have half or twice the contrast of those in the photograph, on average. It is 0 for
    the photograph itself, wherever the face lies. A closed mouth that opens has other structures
    even if it is perfect, so compare renders with the same expression: edits at equal effect.

    Args:
        pictures: The photograph and N renders, uint8 [1 + N, H, W, 3].
        landmarks: The 68 landmarks of each, in its pixels, [1 + N, 68, 2].
        device: The device that computes.

    Returns:
        float32 [N].
    """
    images = to_unit(to_device(torch.from_numpy(pictures), device)) * 127.5
    grid = F.affine_grid(
        to_device(torch.from_numpy(_maps(landmarks, pictures.shape[1])), device),
        [len(images), 3, 2 * (_REGION[1] + _BORDER), 2 * (_REGION[0] + _BORDER)],
        align_corners=False,
    )
    mouths = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    channels = torch.einsum("kc,nchw->nkhw", to_device(torch.tensor(_CHANNELS), device), mouths)
    blurred = [_blurred(channels, sigma) for sigma in _SIGMAS]
    octaves = torch.stack([a - b for a, b in pairwise(blurred)], 1)
    logs = (octaves.square().mean((3, 4)) + _FLOOR).log() / 2
    return (logs[:1] - logs[1:]).abs().mean((1, 2)).neg().cpu().numpy()


def _maps(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Return the maps from mouths to pictures in the units of `affine_grid`, float32 [N, 2, 3]."""
    x, y = (landmarks[:, 42:48].mean(1) - landmarks[:, 36:42].mean(1)).T / _EYES
    turn = np.stack([np.stack([x, -y], -1), np.stack([y, x], -1)], 1)
    turn *= 2 * (np.array(_REGION) + _BORDER) / size
    middle = (landmarks[:, 48:68].mean(1) + 0.5) * 2 / size - 1
    return np.concatenate([turn, middle[..., None]], -1).astype(np.float32)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Blur [N, C, h, w] with a Gaussian, and cut the border off."""
    places = torch.arange(-_BORDER, _BORDER + 1, device=x.device, dtype=x.dtype)
    bell = (-places.square() / (2 * sigma**2)).exp()
    kernel = (bell / bell.sum()).reshape(1, 1, 1, -1)
    planes = F.conv2d(F.conv2d(x.flatten(0, 1)[:, None], kernel), kernel.transpose(2, 3))
    return planes.reshape(*x.shape[:2], *planes.shape[2:])
