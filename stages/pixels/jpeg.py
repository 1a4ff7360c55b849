"""Whether JPEG files have all of their pixels, which Pillow does not tell."""

from __future__ import annotations

from dhr_batch.stages.failures import ImageError

# Warnings of libjpeg, after which it goes on with grey or other pixels.
_DAMAGE = (
    "bad Huffman code",
    "bad arithmetic code",
    "premature end of data segment",
    "instead of RST",
)
# Some writers fill files up before the end mark, and damage may look the same.
_SURPLUS = "extraneous bytes"
# libjpeg computes one pixel instead of 8 x 8 at this scale, and reads all codes nevertheless.
_SCALE = 8


def check(data: bytes) -> list[str]:
    """Return notes on what libjpeg warns of, which damage need not be.

    Args:
        data: The content of a JPEG file.

    Raises:
        ImageError: `damaged` if some pixels cannot be decoded.
    """
    import simplejpeg

    try:
        space = simplejpeg.decode_jpeg_header(data)[2]
        simplejpeg.decode_jpeg(
            data,
            "CMYK" if space in ("CMYK", "YCCK") else "GRAY",
            fastdct=True,
            fastupsample=True,
            min_height=1,
            min_width=1,
            min_factor=_SCALE,
        )
    except ValueError as error:
        # Anything else is either sound or refused by Pillow.
        if any(words in str(error) for words in _DAMAGE):
            raise ImageError("damaged", f"pixels cannot be decoded ({error})") from error
        if _SURPLUS in str(error):
            return ["JPEG with bytes that are no pixels, perhaps damaged"]
    return []
