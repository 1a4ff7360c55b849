"""Commands on what others made: they end in one line, never in a traceback."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from dhr_batch.cli import main

PLAN = "plan --preset tiny --gpus 0 --dataset"


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def ended(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(file: Path, *words: object) -> str:
    result = ended(*words)
    lines = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    assert lines[0].startswith("Error: ")
    assert str(file) in lines[0]
    assert len(lines) <= 2, result.stderr
    assert max(map(len, lines)) < 1000
    return lines[0]
