"""Colour spaces of files, converted to sRGB: ICC profiles, gamma and primaries, code points."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from dhr_batch.stages.failures import ImageError

# x and y of red, green and blue, then those of white (ITU-T H.273, table 2).
_D65 = (0.3127, 0.3290)
SRGB = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *_D65)
ADOBE_RGB = (0.640, 0.330, 0.210, 0.710, 0.150, 0.060, *_D65)
_SMPTE_170M = (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65)
_PRIMARIES = {
    1: SRGB,
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *_D65),
    6: _SMPTE_170M,
    7: _SMPTE_170M,
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
}
# Exponents of the decoding of samples to light (table 3); None stands for the curve of sRGB. The
# curves of television are taken for it: still pictures with them are meant for its screens.
_CURVES = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
_UNSTATED = (0, 2)
# The largest difference, in levels, between a profile and sRGB that counts as rounding.
_ROUNDING = 1
_ERRORS = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Colours(NamedTuple):
    """The colour space of a file.

    Attributes:
        icc: An ICC profile.
        name: Its name in notes; empty for the name in the profile.
    """

    icc: bytes
    name: str = ""


class _Profile(NamedTuple):
    space: str
    name: str
    is_srgb: bool


@lru_cache(maxsize=1)
def srgb() -> Colours:
    """Return sRGB, for files that state it: what their EXIF data says does not count then."""
    return Colours(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), "sRGB")


def described(primaries: tuple[float, ...], gamma: float | None, name: str) -> Colours:
    """Return the colour space of primaries, white and gamma.

    Args:
        primaries: x and y of red, green, blue and white.
        gamma: The exponent of decoding; None for the curve of sRGB.
        name: What the file states, for notes.
    """
    # Files that state a gamma of 2.2 mean sRGB, whose curve it approximates.
    like_srgb = gamma is None or abs(gamma - 2.2) < 0.03
    if like_srgb and np.allclose(primaries, SRGB, atol=0.002):
        return srgb()
    import imagecodecs

    levels = np.linspace(0, 1, 1024)
    curve = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    curve = np.rint(curve * 65535).astype(np.uint16)
    icc = imagecodecs.cms_profile(
        "rgb",
        whitepoint=primaries[6:],
        primaries=primaries[:6],
        transferfunction=None if gamma else curve,
        gamma=gamma,
    )
    return Colours(icc, name)


def code_points(primaries: int, transfer: int) -> Colours | None:
    """Return the colour space of code points of ITU-T H.273 (`cICP`, `nclx`).

    Returns:
        The colour space; None if the code points say that it is not stated.

    Raises:
        ImageError: `unsupported` for high dynamic range and for unknown code points.
    """
    known = {**dict.fromkeys(_UNSTATED, SRGB), **_PRIMARIES}
    curves = {**dict.fromkeys(_UNSTATED, None), **_CURVES}
    if primaries not in known or transfer not in curves:
        what = {16: "PQ", 18: "HLG"}.get(transfer, f"transfer function {transfer}")
        raise ImageError(
            "unsupported",
            f"the colours of the image (primaries {primaries}, {what}) are not read; "
            "export it in standard dynamic range as sRGB",
        )
    if primaries in _UNSTATED and transfer in _UNSTATED:
        return None
    name = f"colours of primaries {primaries} and transfer function {transfer}"
    return described(known[primaries], curves[transfer], name)


def to_srgb(image: Image.Image, colours: Colours | None) -> tuple[Image.Image, list[str]]:
    """Convert an image of 8 bits (L, RGB, CMYK, LAB or YCbCr), with notes on what was done."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted, []
    if colours is None:
        return _as_rgb(image), []
    profile, notes = _fitting(image.mode, colours)
    if profile is None and image.mode == "RGB" and _fits_grey(image, colours):
        return to_srgb(image.getchannel("R"), colours)
    if profile is None or profile.is_srgb:
        return _as_rgb(image), notes
    if profile.space == "RGB":
        image = _as_rgb(image)
    try:
        converted = _converted(image, colours.icc)
    except (ImageCms.PyCMSError, *_ERRORS):
        return _as_rgb(image), [f"ICC profile {profile.name!r} could not be applied"]
    return converted, notes


def _fits_grey(image: Image.Image, colours: Colours) -> bool:
    """Whether pixels are grey and have a profile for grey: some formats store all as RGB."""
    profile, _ = _fitting("L", colours)
    red, green, blue = (channel.tobytes() for channel in image.split())
    return profile is not None and red == green == blue


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def to_srgb_deep(samples: np.ndarray, colours: Colours | None) -> tuple[np.ndarray, list[str]]:
    """Convert samples of 16 bits, with notes on what was done.

    They are reduced to 8 bits after the conversion: dark parts of linear pixels have few levels.

    Args:
        samples: uint16 [H, W, 1] or [H, W, 3].
        colours: The colour space; None for sRGB.

    Returns:
        uint8 [H, W, 3].
    """
    mode = "L" if samples.shape[2] == 1 else "RGB"
    notes: list[str] = []
    if colours is not None:
        profile, notes = _fitting(mode, colours)
        if profile is not None and not profile.is_srgb:
            import imagecodecs

            if profile.space == "RGB" and mode == "L":
                samples = np.repeat(samples, 3, axis=2)
            grey = profile.space == "GRAY"
            try:
                converted = imagecodecs.cms_transform(
                    samples[..., 0] if grey else samples,
                    colours.icc,
                    imagecodecs.cms_profile("srgb"),
                    colorspace="gray" if grey else "rgb",
                    outcolorspace="rgb",
                    outdtype=np.uint8,
                    intent=int(ImageCms.Intent.PERCEPTUAL),
                    # Otherwise a grid of 33 points per channel is interpolated.
                    flags=int(ImageCms.Flags.NOOPTIMIZE),
                )
                return converted, notes
            except _ERRORS:
                notes = [f"ICC profile {profile.name!r} could not be applied"]
    reduced = np.empty(samples.shape, np.uint8)
    # Row by row, so that no wide copy of the picture is made.
    for row, wide in zip(reduced, samples, strict=True):
        row[:] = (wide.astype(np.uint32) * 255 + 32767) // 65535
    return np.broadcast_to(reduced, (*samples.shape[:2], 3)), notes


def _fitting(mode: str, colours: Colours) -> tuple[_Profile | None, list[str]]:
    """Return the profile if it fits the pixels, and the note on it."""
    try:
        profile = _profile(colours.icc)
    except (ImageCms.PyCMSError, *_ERRORS):
        return None, ["unreadable ICC profile ignored"]
    # Grey pixels with a colour profile are colours without saturation.
    fits = {"L": ("GRAY", "RGB"), "YCbCr": ("RGB",)}.get(mode, (mode,))
    if profile.space not in fits:
        # Careless conversions often leave a colour profile on pixels of another kind.
        return None, [f"ICC profile {profile.name!r} ignored: made for {profile.space}"]
    if profile.is_srgb:
        return profile, []
    return profile, [f"{colours.name or f'ICC profile {profile.name!r}'} converted to sRGB"]


@lru_cache(maxsize=4)
def _profile(icc: bytes) -> _Profile:
    """Read a profile, and find out whether it is sRGB, which its name does not tell."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile
    space = profile.xcolor_space.strip()
    name = (profile.profile_description or "unnamed").strip()
    if space not in ("RGB", "GRAY"):
        return _Profile(space, name, False)
    if space == "RGB":
        steps = np.linspace(0, 255, 16).round().astype(np.uint8)
        image = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3))
    else:
        image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    try:
        converted = np.asarray(_converted(image, icc)).astype(int)
    except ImageCms.PyCMSError:
        return _Profile(space, name, False)
    difference = np.abs(converted - np.asarray(image.convert("RGB")))
    return _Profile(space, name, bool(difference.max() <= _ROUNDING))


def _converted(image: Image.Image, icc: bytes) -> Image.Image:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert converted is not None
    return converted
