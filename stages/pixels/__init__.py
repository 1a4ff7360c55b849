"""From files to pixels: formats, samples of any depth, colours. Begin with `stages/decode.py`."""

import struct
import zlib

# Exceptions that parsers raise for damaged files. Any other one is a bug of this project.
DAMAGE = (
    ArithmeticError, AttributeError, AssertionError, EOFError, LookupError, NotImplementedError,
    OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
