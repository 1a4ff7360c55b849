"""The embedded face parser, which needs no trained segmentation network.

dlib's 68 landmarks give the parts of the face (`face_geometry`), OpenCV's GrabCut separates the
person from the background (`grabcut`), and smoothed colour histograms of the picture itself
separate skin, hair and clothes (`face_colours`).

Positions are face coordinates (u, v) in face widths, see `Geometry`; colours are CIE L*a*b*. The
constants describe the geometry of a face or the colours of skin. No measurement of single ones is
on record. The thresholds of `stages.segment` were calibrated with this parser as it is, so changing
a constant calls for a new calibration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dhr_batch.stages.networks.parsers.face_colours import (
    histogram_cells,
    likelihood,
    skin_chroma,
    unlike_skin,
)
from dhr_batch.stages.networks.parsers.face_geometry import Geometry, geometry, part_masks
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.networks.parsers.grabcut import person_mask
from dhr_batch.stages.networks.parsers.soft_masks import (
    WORK_SIZE,
    Map,
    above,
    below,
    sigmoid,
    smooth,
)

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.detect import Detector
    from dhr_batch.stages.networks.faces.dlib_face import Landmarks68

# Soft steps: (position of the middle, width of the transition).
# Distance to the outline of the face, in face widths, positive inside.
_OUTLINE = 0.0, 0.015
_SURELY_PERSON = 0.03, 0.01  # GrabCut is overruled here
_INNER_SKIN = 0.08, 0.02  # the colour of skin is learned from here inwards
_HAIR_BAND = (-0.02, 0.02), (-0.28, 0.02)  # hair is learned between these two, above the brows
_EARS = -0.14, 0.02  # ears reach this far beyond the outline
# Height v below the eyes and distance |u| from the middle of the face, in face widths.
_CLOTHES_BELOW_CHIN = 0.25, 0.03
_EYE_HEIGHT = 0.16, 0.02  # an occluder within this distance of the eyes counts as glasses
_BELOW_EYES = 0.08, 0.03  # patterned masks lie below this height
_EAR_MIDDLE, _EAR_HEIGHT = 0.12, (0.15, 0.03)
_NECK_WIDTH, _HAIR_WIDTH = (0.55, 0.05), (0.95, 0.1)
# Shares of foreign colour around a pixel above which it is an occluder (`_occluder`).
_COVERED = 0.4, 0.06
_NEAR_OCCLUDER, _IN_OCCLUDER, _PLAIN_SKIN = (0.16, 0.03), (0.36, 0.04), (0.75, 0.08)
# Colours of hats (`_hat`): b*, a* and a*.
_BLUE, _GREEN, _VIVID = (-7, 1.5), (-8, 1.5), (32, 2)
_HAT_SHARE = 0.5, 0.06


class LandmarkParser:
    """Parser that takes the parts of a face from 68 landmarks and the other classes from colour.

    Args:
        landmarks: Finds the face box and the 68 points.
        detector: Decides whether there is a face when dlib's own detector finds none, which happens
            with masks and hats. Without a detector, the face is assumed where alignment puts it.
    """

    name = "landmarks"

    def __init__(self, landmarks: Landmarks68, detector: Detector | None = None) -> None:
        self.landmarks, self.detector = landmarks, detector

    def parse(self, image: np.ndarray) -> np.ndarray | None:
        """Parse at 256 px; other sizes are resized to it and back. See `Parser.parse`."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (WORK_SIZE, WORK_SIZE), interpolation=cv2.INTER_AREA)
        points = self._points(np.ascontiguousarray(small))
        if points is None:
            return None
        probs = parse_face(small, points)
        if (height, width) == (WORK_SIZE, WORK_SIZE):
            return probs
        resized = [cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in probs]
        return np.stack(resized)

    def _points(self, image: np.ndarray) -> np.ndarray | None:
        box, found_by = self.landmarks.locate(image)
        if found_by == "ffhq" and self.detector and not self.detector.detect([image])[0]:
            return None
        return self.landmarks.find(image, box)


def landmark_parser(context: Context) -> LandmarkParser:
    """Return the embedded parser (`landmarks`)."""
    return LandmarkParser(
        context.network("landmarks", "dlib68"), context.network("detector", "mtcnn")
    )


def parse_face(image: Map, points: np.ndarray) -> Map:
    """Parse one face.

    What lies over the face and clearly has another colour than its skin is classified as cloth, or
    as glasses around the eyes, so that it is not edited.

    Args:
        image: uint8 RGB [H, W, 3].
        points: 68 landmarks in pixels of the image, [68, 2].

    Returns:
        Probabilities of `CLASSES`, float32 [19, H, W], summing to 1.
    """
    face = geometry(points, image.shape[:2])
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
    guide = lab[..., 0] / 100
    parts = part_masks(face)
    features = np.clip(sum(parts.values()), 0, 1)
    chroma = skin_chroma(lab, face)
    foreign = unlike_skin(lab, chroma)
    person = np.maximum(person_mask(image, face), above(face.inside, *_SURELY_PERSON))
    own = 1 - foreign
    skin, hair, cloth = _likelihoods(lab, face, own, features, person)
    fringe = smooth(guide, _fringe(face, skin, hair))
    in_face = above(face.inside, *_OUTLINE)
    occluder = _occluder(face, guide, in_face * (1 - features) * (1 - fringe), foreign, skin)
    outer = _outer(face, guide, own, skin, hair, cloth)

    around_eyes = below(np.abs(face.v), *_EYE_HEIGHT)
    rest = (1 - in_face) * person
    skin_share = in_face * (1 - fringe)
    probs = np.zeros((len(CLASSES), *image.shape[:2]), np.float32)
    probs[INDEX["background"]] = (1 - in_face) * (1 - person)
    probs[INDEX["neck"]] = rest * outer["neck"]
    probs[INDEX["right_ear"]] = rest * outer["ear"] * (face.u < 0)
    probs[INDEX["left_ear"]] = rest * outer["ear"] * (face.u >= 0)
    probs[INDEX["cloth"]] = rest * outer["cloth"] + skin_share * occluder * (1 - around_eyes)
    probs[INDEX["glasses"]] = skin_share * occluder * around_eyes
    probs[INDEX["hair"]] = rest * outer["hair"] + in_face * fringe
    probs[INDEX["face"]] = skin_share * (1 - occluder)
    for name, mask in parts.items():
        share = mask * (1 - occluder)
        probs *= 1 - share
        probs[INDEX[name]] += share
    probs = _hat(probs, lab, chroma)
    return probs / np.maximum(probs.sum(0), 1e-6)


def _likelihoods(
    lab: Map, face: Geometry, own: Map, features: Map, person: Map
) -> tuple[Map, Map, Map]:
    """Return how well the colour of each pixel fits skin, hair and clothes, float32 [H, W] each.

    Skin is learned from the middle of the face, hair from the band above the forehead and clothes
    from the person below the chin; each later class learns less where an earlier one fits.

    Args:
        own: How well the colour is that of the skin (see `unlike_skin`).
        features: Soft mask of brows, eyes, nose and mouth.
    """
    inside, v, bins = face.inside, face.v, histogram_cells(lab)
    near, far = _HAIR_BAND
    seed = above(inside, *_INNER_SKIN) * own * (1 - features) * (v > face.brow_v - 0.12)
    skin = likelihood(bins, seed)
    band = (v < face.brow_v - 0.15) * below(inside, *near) * above(inside, *far) * person
    hair = likelihood(bins, band / (1 + 0.3 * skin))
    under = person * above(v - face.chin_v, *_CLOTHES_BELOW_CHIN)
    return skin, hair, likelihood(bins, under / (1 + 0.5 * skin + 2 * hair))


def _fringe(face: Geometry, skin: Map, hair: Map) -> Map:
    """Return the probability that a pixel of the face shows hair, from above or from the sides."""
    depth = np.where(face.v < face.brow_v - 0.02, 0.10, 0.03)
    prior = np.clip(0.9 * below(face.inside, depth, 0.04), 0.02, 0.9)
    prior = prior * sigmoid((0.35 * face.chin_v - face.v) / 0.1 + 2 * (face.inside < 0))
    return prior * hair / (prior * hair + (1 - prior) * skin)


def _occluder(face: Geometry, guide: Map, counted: Map, foreign: Map, skin: Map) -> Map:
    """Return the probability that something covers the face at each pixel, float32 [H, W].

    An occluder is an extended region of foreign colour. Lips and eyes are judged by the skin around
    them, because their own colour is always foreign. A patterned mask also has dark and skin-like
    places: close to much foreign colour, pixels that are not clearly skin belong to it as well.

    Args:
        counted: Weight of each pixel: visible skin, without features and hair.
    """
    spread = 0.035 * face.width
    total = cv2.GaussianBlur(counted, (0, 0), spread)
    covered = cv2.GaussianBlur(counted * foreign, (0, 0), spread) / (total + 0.02)
    occluder = above(smooth(guide, covered), *_COVERED)
    wide = cv2.GaussianBlur(counted * occluder, (0, 0), 4 * spread)
    wide = wide / (cv2.GaussianBlur(counted, (0, 0), 4 * spread) + 0.05)
    plain = cv2.GaussianBlur(np.clip(skin / 4, 0, 1), (0, 0), spread)
    doubt = above(wide, *_NEAR_OCCLUDER) * below(plain, *_PLAIN_SKIN)
    doubt = np.maximum(doubt, above(wide, *_IN_OCCLUDER))
    return np.maximum(occluder, doubt * above(face.v, *_BELOW_EYES))


def _outer(
    face: Geometry, guide: Map, own: Map, skin: Map, hair: Map, cloth: Map
) -> dict[str, Map]:
    """Return probabilities of hair, neck, ears and clothes for pixels outside the face outline."""
    u, v, inside, chin = face.u, face.v, face.inside, face.chin_v
    neck = above(v, 0.55 * chin, 0.05) * below(np.abs(u), *_NECK_WIDTH)
    ears = below(np.abs(v - _EAR_MIDDLE), *_EAR_HEIGHT) * above(inside, *_EARS)
    high = below(v, 0.8 * chin, 0.15)
    weights = {
        "hair": hair * (0.25 + 0.75 * high) * below(np.abs(u), *_HAIR_WIDTH),
        "neck": skin * own * neck,
        "ear": 0.8 * skin * own * ears,
        "cloth": cloth * (1 - high) + 0.02,
    }
    norm = sum(weights.values()) + 1e-6
    outer = {name: smooth(guide, w / norm) for name, w in weights.items()}
    outer["cloth"] = np.clip(1 - outer["hair"] - outer["neck"] - outer["ear"], 0, 1)
    return outer


def _hat(probs: Map, lab: Map, chroma: np.ndarray) -> Map:
    """Reclassify hair as a hat where its colour is one that hair does not have.

    These are blue, green and vivid red. Blue light on the whole picture also tints the skin, so
    it does not count.
    """
    hair = probs[INDEX["hair"]]
    a, b = lab[..., 1], lab[..., 2]
    odd = np.maximum(below(b, *_BLUE), below(a, *_GREEN))
    odd = np.maximum(odd, above(a, *_VIVID))
    share = cv2.GaussianBlur(odd * hair, (0, 0), 5) / (cv2.GaussianBlur(hair, (0, 0), 5) + 0.02)
    hat = above(share, *_HAT_SHARE) * (chroma[1] > 0)
    probs[INDEX["hat"]] = hair * hat
    probs[INDEX["hair"]] = hair * (1 - hat)
    return probs
