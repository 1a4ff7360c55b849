"""Face parsers: class probabilities of every pixel, in the order of CelebAMask-HQ.

A parser is any object with a `name` and ``parse(image) -> [19, H, W] | None``. The embedded parser
needs no trained segmentation network: dlib's 68 landmarks give the parts of the face, OpenCV's
GrabCut (Rother, Kolmogorov and Blake, 2004) separates the person from the background, and smoothed
colour histograms of the picture itself separate skin, hair and clothes.

Positions are face coordinates (u, v) in face widths, see `_Geometry`; colours are CIE L*a*b*. The
constants describe the geometry of a face or the colours of skin. No measurement of single ones is
on record. The thresholds of `stages.segment` were calibrated with this parser as it is, so changing
a constant calls for a new calibration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from scipy import ndimage

from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.detect import Detector
    from dhr_batch.stages.networks.faces.dlib_face import Landmarks68


WORK_SIZE = 256
# Typical a*, b* of skin in photographs, and their spread. They only break ties between patches of
# one face, so a colour cast or a grey picture does no harm.
SKIN_CHROMA = np.array([14.0, 17.0])
SKIN_CHROMA_SPREAD = 14.0
HISTOGRAM_BINS = 20

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
# Colours: distance of a*, b* from the line of skin colours; b*, a* and a* of hats (`_hat`).
_FOREIGN = 11, 2
_BLUE, _GREEN, _VIVID = (-7, 1.5), (-8, 1.5), (32, 2)
_HAT_SHARE = 0.5, 0.06
# Radius of the guided filter in pixels of `WORK_SIZE`.
_GUIDED_RADIUS = 4

# Values for each pixel, [H, W] or, for colours, [H, W, 3].
Map = np.ndarray

_EYES = {"right_eye": range(36, 42), "left_eye": range(42, 48)}
_BROWS = {"right_brow": range(17, 22), "left_brow": range(22, 27)}
_UPPER_LIP = (48, 49, 50, 51, 52, 53, 54, 64, 63, 62, 61, 60)
_LOWER_LIP = (54, 55, 56, 57, 58, 59, 48, 60, 67, 66, 65, 64)
_INNER_MOUTH = range(60, 68)


class Parser(Protocol):
    """A face parser for FFHQ-aligned crops."""

    name: str

    def parse(self, image: np.ndarray) -> np.ndarray | None:
        """Return class probabilities of an RGB image.

        Args:
            image: An aligned crop, uint8 [H, W, 3].

        Returns:
            float32 [19, H, W] in the order of `CLASSES`, summing to 1 over the classes, or None if
            no face is found.
        """
        ...


class NoParser:
    """Find no face in any image, as DHR treats pictures without a detected face."""

    name = "none"

    def parse(self, image: np.ndarray) -> None:
        """Return None."""
        return None


class LandmarkParser:
    """Parser that takes the parts of a face from 68 landmarks and the other classes from colour.

    Args:
        landmarks: Finds the face box and the 68 points.
        detector: Decides whether there is a face when dlib's own detector finds none, which happens
            with masks and hats. Without a detector, the face is assumed where alignment puts it.
        person: Finds the person in a picture of 256 px (`parse_face`); by default colours do.
    """

    name = "landmarks"

    def __init__(
        self,
        landmarks: Landmarks68,
        detector: Detector | None = None,
        person: Callable[[np.ndarray], Map] | None = None,
    ) -> None:
        self.landmarks, self.detector, self.person = landmarks, detector, person

    def parse(self, image: np.ndarray) -> np.ndarray | None:
        """Parse at 256 px; other sizes are resized to it and back. See `Parser.parse`."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (WORK_SIZE, WORK_SIZE), interpolation=cv2.INTER_AREA)
        points = self._points(np.ascontiguousarray(small))
        if points is None:
            return None
        probs = parse_face(small, points, self.person and self.person(small))
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


def no_parser(context: Context) -> NoParser:
    """Return the parser that never finds a face (`none`)."""
    return NoParser()


@dataclass(frozen=True)
class _Geometry:
    """A face in the plane of the crop.

    Attributes:
        points: Landmarks, float64 [68, 2], in pixels.
        width: Width of the face in pixels.
        u, v: Face coordinates of each pixel, float32 [H, W] in face widths. The origin lies between
            the eyes, u points to the right of the image and v from the eyes to the chin.
        inside: Signed distance to the outline of the face, float32 [H, W] in face widths, positive
            inside.
        brow_v, chin_v: Height of the brows and of the chin.
    """

    points: np.ndarray
    width: float
    u: np.ndarray
    v: np.ndarray
    inside: np.ndarray
    brow_v: float
    chin_v: float


def _fill(shape: tuple[int, int], polygon: np.ndarray) -> Map:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(polygon * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _signed_distance(mask: Map) -> Map:
    solid = (mask > 0.5).astype(np.uint8)
    inner = cv2.distanceTransform(solid, cv2.DIST_L2, 5)
    signed = inner - cv2.distanceTransform(1 - solid, cv2.DIST_L2, 5)
    # A mask of one value everywhere has no border, and OpenCV then returns huge numbers.
    return np.clip(signed, -sum(mask.shape), sum(mask.shape))


def _geometry(points: np.ndarray, shape: tuple[int, int]) -> _Geometry:
    right, left = points[36:42].mean(0), points[42:48].mean(0)
    # A profile squeezes the jaw line, so the height of the face bounds its width from below.
    centre = (right + left) / 2
    across = left - right
    across = across / max(float(np.hypot(*across)), 1e-6)
    down = np.array([-across[1], across[0]])
    height = max(float((points[8] - centre) @ down), 1.0)
    width = max(float(np.hypot(*(points[16] - points[0]))), 0.8 * height, 1.0)
    grid = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), -1) - centre
    brow = float(((points[17:27].mean(0) - centre) @ down) / width)
    nose = float(((points[33] - centre) @ down) / width)
    # Rule of thirds: the hairline is about as far above the brows as the base of the nose is below.
    hairline = brow - 0.85 * (nose - brow)
    middle = (points[0] + points[16]) / 2
    rise = max(float((middle - centre) @ down) / width - hairline, 0.1)
    half = (points[16] - points[0]) / 2
    angles = np.linspace(0, np.pi, 25)[1:-1]
    arc = middle + np.cos(angles)[:, None] * half - np.sin(angles)[:, None] * rise * width * down
    outline = _fill(shape, np.concatenate([points[:17], arc]))
    return _Geometry(
        points=points,
        width=width,
        u=(grid @ across / width).astype(np.float32),
        v=(grid @ down / width).astype(np.float32),
        inside=(_signed_distance(outline) / width).astype(np.float32),
        brow_v=brow,
        chin_v=height / width,
    )


def _parts(face: _Geometry) -> dict[str, Map]:
    """Return soft masks [H, W] of brows, eyes, nose and mouth."""
    shape, p, width = face.u.shape, face.points, face.width
    parts: dict[str, Map] = {}
    for name, ids in _BROWS.items():
        mask = np.zeros(shape, np.uint8)
        line = np.round(p[list(ids)] * 16).astype(np.int32)
        thickness = max(1, round(0.045 * width))
        cv2.polylines(mask, [line], False, 255, thickness, cv2.LINE_AA, 4)
        parts[name] = mask.astype(np.float32) / 255
    for name, ids in _EYES.items():
        eye = p[list(ids)]
        parts[name] = _fill(shape, eye.mean(0) + 1.25 * (eye - eye.mean(0)))
    wings = (p[[31, 35]] - p[33]) * [1.35, 1.0] + p[33]
    sides = p[28] + 0.55 * (wings - p[28])
    nose = [p[27], sides[1], wings[1], p[35], p[34], p[33], p[32], p[31], wings[0], sides[0]]
    parts["nose"] = _fill(shape, np.array(nose))
    parts["upper_lip"] = _fill(shape, p[list(_UPPER_LIP)])
    parts["lower_lip"] = _fill(shape, p[list(_LOWER_LIP)])
    parts["inner_mouth"] = _fill(shape, p[list(_INNER_MOUTH)])
    return {name: cv2.GaussianBlur(mask, (0, 0), 0.8) for name, mask in parts.items()}


def _skin_chroma(lab: Map, face: _Geometry) -> np.ndarray:
    """Return the chroma (a*, b*) of the skin, float [2], from the patches that agree best.

    An occluder may cover any part of the face and must not set the colour. So the median colours of
    ten patches are compared, each weighted by how likely it is skin, and the patches close to the
    one with the most support are averaged.
    """
    p, radius = face.points, 0.07 * face.width
    up = (p[27] - p[30]) * 0.9
    centres = [
        p[27] + up,
        p[[19, 20]].mean(0) + 0.5 * up,
        p[[23, 24]].mean(0) + 0.5 * up,
        p[[27, 28]].mean(0),
        p[30],
        p[[1, 31, 41]].mean(0),
        p[[15, 35, 46]].mean(0),
        p[[3, 48]].mean(0),
        p[[13, 54]].mean(0),
        p[[8, 57]].mean(0),
    ]
    rows, columns = np.mgrid[: lab.shape[0], : lab.shape[1]]
    chroma, weight = [], []
    for x, y in centres:
        patch = lab[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2]
        if len(patch) == 0:
            continue
        median = np.median(patch, 0)
        distance = np.hypot(*(median[1:] - SKIN_CHROMA)) / SKIN_CHROMA_SPREAD
        chroma.append(median[1:])
        weight.append(np.exp(-0.5 * distance**2) * np.clip(median[0] / 40, 0.1, 1) + 1e-3)
    if not chroma:
        return SKIN_CHROMA
    colours, weights = np.array(chroma), np.array(weight)
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    support = (weights[None] * np.exp(-0.5 * (gaps / 8) ** 2)).sum(1)
    best = int(np.argmax(support * weights))
    near = weights * (gaps[best] < 12)
    return (near[:, None] * colours).sum(0) / near.sum()


def _foreign(lab: Map, chroma: np.ndarray) -> Map:
    """Return how clearly the colour of a pixel is not that of the skin, 0..1.

    Shade and highlights scale the chroma of skin but keep its direction; dark and overexposed
    pixels lose it. A pixel is compared with the nearest such colour.
    """
    lightness, ab = lab[..., 0], lab[..., 1:]
    dark = np.clip((32 - lightness) / 14, 0, 1)
    burnt = np.clip((lightness - 88) / 6, 0, 1)
    lowest = 0.45 * (1 - np.maximum(dark, burnt))
    along = np.clip(ab @ chroma / max(float(chroma @ chroma), 1e-3), lowest, 1.7)
    return _above(np.linalg.norm(ab - along[..., None] * chroma, axis=2), *_FOREIGN)


def _sigmoid(x: Map) -> Map:
    return (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32)


def _above(x: Map, middle: float, width: float) -> Map:
    """Return a soft step from 0 to 1, which is 0.5 at `middle`."""
    return _sigmoid((x - middle) / width)


def _below(x: Map, middle: float | Map, width: float) -> Map:
    """Return a soft step from 1 to 0, which is 0.5 at `middle`."""
    return _sigmoid((middle - x) / width)


def _bins(lab: Map) -> Map:
    """Return the index of the cell of a colour histogram that each pixel falls into, int [H, W]."""
    n = HISTOGRAM_BINS
    low, step = np.array([0, -50, -50]), np.array([100, 100, 100]) / n
    cell = np.clip((lab - low) / step, 0, n - 1).astype(np.int64)
    return (cell[..., 0] * n + cell[..., 1]) * n + cell[..., 2]


def _likelihood(bins: Map, weight: Map) -> Map:
    """Return the density of each pixel's colour among the weighted pixels; 1 is uniform."""
    n = HISTOGRAM_BINS
    counts = np.bincount(bins.ravel(), weight.ravel(), n**3).reshape(n, n, n)
    # Lightness varies more within one material than its chroma does.
    counts = ndimage.gaussian_filter(counts, (1.5, 0.8, 0.8), mode="nearest")
    density = counts / max(counts.sum(), 1e-6) * n**3
    return (density.ravel()[bins] + 0.05).astype(np.float32)


def _person(image: Map, face: _Geometry) -> Map:
    """Return a soft mask of the person, float32 [H, W], from GrabCut seeded with the face.

    Seeds: an ellipse around the head is probably foreground and everything far outside of it
    background; the inner face is foreground; a trapezoid below the chin is probably the body.
    """
    u, v = face.u, face.v
    head = np.hypot(u / 0.72, (v + 0.02) / np.where(v < 0, 1.0, 1.05))
    body = (v > 0.75 * face.chin_v) & (np.abs(u) < 0.4 + 1.2 * (v - 0.75 * face.chin_v))
    seeds = np.full(u.shape, cv2.GC_PR_BGD, np.uint8)
    seeds[(head > 1.7) & (v < 0.25)] = cv2.GC_BGD
    seeds[(head < 1.0) | body] = cv2.GC_PR_FGD
    seeds[(face.inside > 0.06) & (v > face.brow_v - 0.1)] = cv2.GC_FGD
    if not (seeds == cv2.GC_BGD).any():
        seeds[:2] = cv2.GC_BGD
    size = (WORK_SIZE // 2, WORK_SIZE // 2)
    small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1])
    mask = np.ascontiguousarray(cv2.resize(seeds, size, interpolation=cv2.INTER_NEAREST))
    # GrabCut takes its first clusters from OpenCV's global random generator.
    cv2.setRNGSeed(0)
    cv2.grabCut(
        small, mask, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK
    )
    person = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.float32)
    person = cv2.resize(person, u.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(person, (0, 0), 1.5)


def _smooth(guide: Map, mask: Map, eps: float = 4e-3) -> Map:
    """Smooth `mask` but keep the edges of `guide` (guided filter; He, Sun and Tang, 2010)."""

    def mean(x: Map) -> Map:
        return cv2.blur(x, (2 * _GUIDED_RADIUS + 1, 2 * _GUIDED_RADIUS + 1))

    m_g, m_p = mean(guide), mean(mask)
    a = (mean(guide * mask) - m_g * m_p) / (mean(guide * guide) - m_g * m_g + eps)
    return np.clip(mean(a) * guide + mean(m_p - a * m_g), 0, 1)


def parse_face(image: Map, points: np.ndarray, person: Map | None = None) -> Map:
    """Parse one face.

    What lies over the face and clearly has another colour than its skin is classified as cloth, or
    as glasses around the eyes, so that it is not edited.

    Args:
        image: uint8 RGB [H, W, 3].
        points: 68 landmarks in pixels of the image, [68, 2].
        person: Probability that a pixel shows the person, float32 [H, W]; by default GrabCut
            separates the person from the background.

    Returns:
        Probabilities of `CLASSES`, float32 [19, H, W], summing to 1.
    """
    face = _geometry(points, image.shape[:2])
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
    guide = lab[..., 0] / 100
    parts = _parts(face)
    features = np.clip(sum(parts.values()), 0, 1)
    chroma = _skin_chroma(lab, face)
    foreign = _foreign(lab, chroma)
    person = _person(image, face) if person is None else person
    person = np.maximum(person, _above(face.inside, *_SURELY_PERSON))
    own = 1 - foreign
    skin, hair, cloth = _likelihoods(lab, face, own, features, person)
    fringe = _smooth(guide, _fringe(face, skin, hair))
    in_face = _above(face.inside, *_OUTLINE)
    occluder = _occluder(face, guide, in_face * (1 - features) * (1 - fringe), foreign, skin)
    outer = _outer(face, guide, own, skin, hair, cloth)

    around_eyes = _below(np.abs(face.v), *_EYE_HEIGHT)
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
    lab: Map, face: _Geometry, own: Map, features: Map, person: Map
) -> tuple[Map, Map, Map]:
    """Return how well the colour of each pixel fits skin, hair and clothes, float32 [H, W] each.

    Skin is learned from the middle of the face, hair from the band above the forehead and clothes
    from the person below the chin; each later class learns less where an earlier one fits.

    Args:
        own: How well the colour is that of the skin (see `_foreign`).
        features: Soft mask of brows, eyes, nose and mouth.
    """
    inside, v, bins = face.inside, face.v, _bins(lab)
    near, far = _HAIR_BAND
    seed = _above(inside, *_INNER_SKIN) * own * (1 - features) * (v > face.brow_v - 0.12)
    skin = _likelihood(bins, seed)
    band = (v < face.brow_v - 0.15) * _below(inside, *near) * _above(inside, *far) * person
    hair = _likelihood(bins, band / (1 + 0.3 * skin))
    under = person * _above(v - face.chin_v, *_CLOTHES_BELOW_CHIN)
    return skin, hair, _likelihood(bins, under / (1 + 0.5 * skin + 2 * hair))


def _fringe(face: _Geometry, skin: Map, hair: Map) -> Map:
    """Return the probability that a pixel of the face shows hair, from above or from the sides."""
    depth = np.where(face.v < face.brow_v - 0.02, 0.10, 0.03)
    prior = np.clip(0.9 * _below(face.inside, depth, 0.04), 0.02, 0.9)
    prior = prior * _sigmoid((0.35 * face.chin_v - face.v) / 0.1 + 2 * (face.inside < 0))
    return prior * hair / (prior * hair + (1 - prior) * skin)


def _occluder(face: _Geometry, guide: Map, counted: Map, foreign: Map, skin: Map) -> Map:
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
    occluder = _above(_smooth(guide, covered), *_COVERED)
    wide = cv2.GaussianBlur(counted * occluder, (0, 0), 4 * spread)
    wide = wide / (cv2.GaussianBlur(counted, (0, 0), 4 * spread) + 0.05)
    plain = cv2.GaussianBlur(np.clip(skin / 4, 0, 1), (0, 0), spread)
    doubt = _above(wide, *_NEAR_OCCLUDER) * _below(plain, *_PLAIN_SKIN)
    doubt = np.maximum(doubt, _above(wide, *_IN_OCCLUDER))
    return np.maximum(occluder, doubt * _above(face.v, *_BELOW_EYES))


def _outer(
    face: _Geometry, guide: Map, own: Map, skin: Map, hair: Map, cloth: Map
) -> dict[str, Map]:
    """Return probabilities of hair, neck, ears and clothes for pixels outside the face outline."""
    u, v, inside, chin = face.u, face.v, face.inside, face.chin_v
    neck = _above(v, 0.55 * chin, 0.05) * _below(np.abs(u), *_NECK_WIDTH)
    ears = _below(np.abs(v - _EAR_MIDDLE), *_EAR_HEIGHT) * _above(inside, *_EARS)
    high = _below(v, 0.8 * chin, 0.15)
    weights = {
        "hair": hair * (0.25 + 0.75 * high) * _below(np.abs(u), *_HAIR_WIDTH),
        "neck": skin * own * neck,
        "ear": 0.8 * skin * own * ears,
        "cloth": cloth * (1 - high) + 0.02,
    }
    norm = sum(weights.values()) + 1e-6
    outer = {name: _smooth(guide, w / norm) for name, w in weights.items()}
    outer["cloth"] = np.clip(1 - outer["hair"] - outer["neck"] - outer["ear"], 0, 1)
    return outer


def _hat(probs: Map, lab: Map, chroma: np.ndarray) -> Map:
    """Reclassify hair as a hat where its colour is one that hair does not have.

    These are blue, green and vivid red. Blue light on the whole picture also tints the skin, so
    it does not count.
    """
    hair = probs[INDEX["hair"]]
    a, b = lab[..., 1], lab[..., 2]
    odd = np.maximum(_below(b, *_BLUE), _below(a, *_GREEN))
    odd = np.maximum(odd, _above(a, *_VIVID))
    share = cv2.GaussianBlur(odd * hair, (0, 0), 5) / (cv2.GaussianBlur(hair, (0, 0), 5) + 0.02)
    hat = _above(share, *_HAT_SHARE) * (chroma[1] > 0)
    probs[INDEX["hat"]] = hair * hat
    probs[INDEX["hair"]] = hair * (1 - hat)
    return probs
