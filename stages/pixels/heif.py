"""HEIF files by libheif: what Pillow has no room for."""

from __future__ import annotations

import io

import numpy as np
import pillow_heif

from dhr_batch.stages.pixels import colours
from dhr_batch.stages.pixels.colours import Colours
from dhr_batch.stages.pixels.raster import Raster, integers

# Thumbnails, depths and gain maps of phones are not needed, and damage in them does no harm then.
pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def deep(data: bytes) -> tuple[Raster, list[str]]:
    """Decode the primary picture of a file with more than 8 bits per sample, with notes.

    Pillow has no pictures of several channels with more than 8 bits, so `pillow-heif` cuts samples
    off for it.
    """
    image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    stored = np.asarray(image)
    stored = stored[..., None] if stored.ndim == 2 else stored
    samples, notes = integers(stored, image.info["bit_depth"])
    channels = samples.shape[2] - 1 + samples.shape[2] % 2
    alpha = samples[..., channels] if channels < samples.shape[2] else None
    mode = "L" if channels == 1 else "RGB"
    return Raster(mode, samples[..., :channels], alpha, image.premultiplied_alpha), notes


def stated(info: dict) -> Colours | None:
    """Return the colour space that the primary picture states by code points.

    Further pictures of the file, such as gain maps, have others.

    Args:
        info: Of `pillow-heif`.
    """
    profile = info.get("nclx_profile", {"color_primaries": 2, "transfer_characteristics": 2})
    return colours.code_points(profile["color_primaries"], profile["transfer_characteristics"])
