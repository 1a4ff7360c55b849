"""PFM files of colours; Pillow reads only those of grey."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels.raster import Raster, stretched

MAGIC = (b"PF\n", b"PF\r", b"PF ")
_HEADER = re.compile(rb"PF\s{1,2}(\d{1,9})\s(\d{1,9})\s{1,2}([-+.\deE]{1,32})(\r?\n|\s)")


def read(data: bytes, check_size: Callable[[tuple[int, int]], None]) -> tuple[Raster, list[str]]:
    """Read the samples, with notes.

    Args:
        data: Content of the file.
        check_size: Raises if an image of some width and height must not be decoded.

    Raises:
        ImageError: `damaged`, `truncated`, or what `check_size` raises.
        ValueError: The scale is no number.
    """
    header = _HEADER.match(data)
    if header is None:
        raise ImageError("damaged", "the header of the PFM file cannot be read")
    width, height = int(header[1]), int(header[2])
    check_size((width, height))
    count = width * height * 3
    if len(data) - header.end() < 4 * count:
        raise ImageError("truncated", "the file ends before its pixels do")
    # The sign of the scale is the byte order. Rows are stored from the bottom to the top.
    kind = "<f4" if float(header[3]) < 0 else ">f4"
    samples = np.frombuffer(data, kind, count, header.end()).reshape(height, width, 3)
    values, notes = stretched(samples[::-1], 32)
    return Raster("RGB", values), notes
