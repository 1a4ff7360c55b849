"""Open files that others name, which may be no files at all."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def opened(path: str | Path) -> io.BufferedReader:
    """Open a file for reading.

    Pipes, sockets and devices are refused: to open one may wait for ever, and some have no end.

    Raises:
        OSError: It is not a file, or it cannot be read.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return open(path, "rb")
