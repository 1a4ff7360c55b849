"""Classes of failures: is an exception about the image, the memory, the process or the disk?

| class | examples | what happens |
|---|---|---|
| `image` | undecodable file, no face, non-finite loss | the image is quarantined, the run goes on |
| `capacity` | CUDA or host memory exhausted | smaller batch; an image alone: quarantined as `oom` |
| `poisoned` | illegal memory access, device-side assert, ECC | the worker is replaced |
| `storage` | disk full or read-only | the run stops, nothing is quarantined |
| `bug` | AssertionError, TypeError | the shard fails; twice: the run stops |
"""

from __future__ import annotations

import errno
import gc
import re
import sys
from typing import Literal

Kind = Literal["image", "capacity", "poisoned", "storage", "bug"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_CAPACITY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
# After one of these errors, every later call of the CUDA context fails, for any image.
_POISONED = (
    "cuda error", "cudaerror", "device-side assert", "illegal memory access", "uncorrectable ecc",
    "unspecified launch failure", "status_execution_failed", "status_internal_error",
    "status_mapping_error", "status_not_initialized",
)  # fmt: skip
_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^\s/'\":,()]+/)+")
_LONGEST = 300


class ImageError(Exception):
    """One image cannot be processed.

    Args:
        error_class: A short snake_case word for the table of failures.
        message: An explanation for the user.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Poisoned(RuntimeError):
    """The process of a worker is unusable, which says nothing about the images."""


# Exceptions that bad data causes in a stage. AssertionError and TypeError are bugs instead.
_PER_IMAGE = (
    ImageError,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
)
# Libraries whose errors derive directly from Exception.
_PER_IMAGE_MODULES = frozenset({"cv2", "struct", "zlib"})


def kind_of(error: BaseException) -> Kind:
    """Return the class of failure of an exception that a stage raised.

    The decision is made by names and messages, so that torch need not be imported.

    Example:
        >>> kind_of(ValueError("no face")), kind_of(MemoryError()), kind_of(TypeError())
        ('image', 'capacity', 'bug')
    """
    if isinstance(error, Poisoned):
        return "poisoned"
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return "capacity"
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        if any(words in text for words in _CAPACITY):
            return "capacity"
        if "AcceleratorError" in names or any(words in text for words in _POISONED):
            return "poisoned"
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return "storage"
    about_data = isinstance(error, _PER_IMAGE) or type(error).__module__ in _PER_IMAGE_MODULES
    return "image" if about_data else "bug"


def explain(error: BaseException) -> str:
    """Return the first line of the message of an exception, without names of local folders.

    Example:
        >>> explain(ValueError("/home/me/data/a.png is broken"))
        'a.png is broken'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    text = _FOLDERS.sub("", lines[0]) if lines else type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def free_memory() -> None:
    """Release cached memory on the host and, if CUDA is in use, on the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
