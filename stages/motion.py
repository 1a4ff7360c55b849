"""The motion of an edit: optical flow between two plain renders, and the person in both.

Plain renders are those of the unedited and of the edited code with the refined weights and without
the refined feature. In them the whole head moves, and not the in-domain part alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Flows, and all lengths below, are in pixels of pictures of this size.
SIDE = 256
# Between these two lengths, a flow changes from 0 to itself.
_STILL = 0.5, 1.5
# Standard deviations of the smoothing of flows, and of their extrapolation beyond the person.
_SMOOTH, _FAR = 3.0, 15.0
# Distances from the person between which the flow of the background fades.
_FADES = 2.0, 24.0
# The edge of the person that its flow is not taken from.
_EDGE = 2


@dataclass(frozen=True)
class Motion:
    """How the content of a picture moves with an edit, at `SIDE` px.

    A flow is float32 [H, W, 2]: for each pixel of the edited picture, where its content was before,
    relative to it (x, y).

    Attributes:
        whole: The flow of everything.
        person: The flow of the person, extrapolated beyond.
        faded: `whole`, but 0 far from the person.
        before: The person in the unedited picture, bool [H, W].
        matte: The person in the edited picture, float32 [H, W] in 0..1.
    """

    whole: np.ndarray
    person: np.ndarray
    faded: np.ndarray
    before: np.ndarray
    matte: np.ndarray

    @property
    def after(self) -> np.ndarray:
        """The person in the edited picture, bool [H, W]."""
        return self.matte > 0.5


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the flow between two pictures, uint8 [H, W, 3], as in `Motion`.

    Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (2016), of OpenCV.
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    first, second = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (after, before))
    return np.asarray(search.calc(first, second, np.zeros((*first.shape, 2), np.float32)))


def motion(before: np.ndarray, after: np.ndarray, person: np.ndarray) -> Motion:
    """Return the motion between two plain renders.

    Args:
        before, after: uint8 [SIDE, SIDE, 3].
        person: Where `before` shows the person, bool [SIDE, SIDE]. If nowhere, everything moves as
            the person does.
    """
    if not person.any():
        person = np.ones_like(person)
    found = optical_flow(before, after)
    smooth = _blurred(found, _SMOOTH)
    moved = carried(person.astype(np.float32), smooth) > 0.5
    # At the edge, flows of the person and of the background mix.
    inner = cv2.erode(moved.astype(np.uint8), _disc(_EDGE)).astype(np.float32)[..., None]
    near, far = (
        (_blurred(found * inner, sigma), _blurred(inner[..., 0], sigma)[..., None])
        for sigma in (_SMOOTH, _FAR)
    )
    own = np.where(near[1] > 0.1, near[0] / near[1].clip(1e-6), far[0] / far[1].clip(1e-6))
    own = _thresholded(own)
    away = cv2.distanceTransform((~(person | moved)).astype(np.uint8), cv2.DIST_L2, 5)
    fading = 1 - _smoothstep(away, *_FADES)[..., None]
    soft = ((_blurred(person.astype(np.float32), 1.0) - 0.3) / 0.4).clip(0, 1)
    return Motion(
        whole=_thresholded(smooth),
        person=own,
        faded=_thresholded(smooth * fading),
        before=person,
        matte=carried(soft, own),
    )


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)


def _blurred(a: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(a, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _thresholded(flow: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(flow, axis=2, keepdims=True)
    return (flow * _smoothstep(length, *_STILL)).astype(np.float32)


def carried(a: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return a map [H, W] where a flow [H, W, 2] brings it."""
    height, width = a.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(
            a, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    )
