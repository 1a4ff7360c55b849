"""Pictures in notebooks: small HTML tables that need no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from dhr_batch.pipeline.printable import printable

# Side of the pictures in pixels.
SIDE = 200
_QUALITY = 80


def table(rows: Sequence[Mapping[str, Image.Image]], lines: Iterable[str] = ()) -> str:
    """Return a table of pictures as HTML.

    Args:
        rows: The pictures of each row, by their titles.
        lines: Texts below the table.
    """
    body = "".join(f"<tr>{''.join(_cell(*cell) for cell in row.items())}</tr>" for row in rows)
    texts = "".join(f"<div>{_text(line)}</div>" for line in lines)
    return f"<table>{body}</table>{texts}"


def _cell(title: str, picture: Image.Image) -> str:
    small, stream = picture.copy(), io.BytesIO()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(stream, "JPEG", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    image = f'<img alt="{_text(title)}" src="data:image/jpeg;base64,{data}">'
    return f'<td style="text-align:center">{image}<br>{_text(title)}</td>'


def _text(text: str) -> str:
    return escape(printable(text))
