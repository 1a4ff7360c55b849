"""Write size and sha256 of a shipped model file into its description.

python -m dhr_batch.fitting.pin_model mobilestylegan-256
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dhr_batch.pipeline import models
from dhr_batch.pipeline.model_spec import Shipped

FOLDER = Path(__file__).parent.parent / "configs" / "models"


def pin(name: str) -> str:
    """Pin a shipped model to the file that lies beside its description. Returns the sha256."""
    source = models.find(name).source
    if not isinstance(source, Shipped):
        raise ValueError(f"model {name!r} is not shipped with dhr-batch")
    file = FOLDER / source.path
    digest = models.sha256_of(file)
    description = FOLDER / f"{name}.yaml"
    text = description.read_text(encoding="utf-8")
    text = re.sub(r"^  sha256: .*$", f'  sha256: "{digest}"', text, flags=re.MULTILINE)
    text = re.sub(r"^  size: .*$", f"  size: {file.stat().st_size}", text, flags=re.MULTILINE)
    description.write_text(text, encoding="utf-8")
    return digest


if __name__ == "__main__":
    print(pin(sys.argv[1]))
